"""The published recipe as people write it, with Transformers and PEFT, for comparison.

Every text is padded to the longest of the data set; `model(..., labels=labels).loss` computes
scores over the whole vocabulary at every position; evaluation reads them at each label position.
"""

from collections.abc import Sequence

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, get_linear_schedule_with_warmup


class PeerRecipe:
    """The peer's model, optimizer and padding."""

    def __init__(
        self, folder: str, dtype: torch.dtype, *, length: int, total_steps: int, seed: int
    ) -> None:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.adopt(model, length=length, total_steps=total_steps)

    @classmethod
    def over(cls, model: PreTrainedModel, *, length: int, total_steps: int) -> "PeerRecipe":
        """Return the recipe over a model that is loaded already."""
        recipe = cls.__new__(cls)
        recipe.adopt(model, length=length, total_steps=total_steps)
        return recipe

    def adopt(self, model: PreTrainedModel, *, length: int, total_steps: int) -> None:
        """Put adapters on a model, and make its optimizer."""
        config = LoraConfig(
            r=8,
            lora_alpha=16,
            lora_dropout=0.05,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        self.model: nn.Module = get_peft_model(model, config)
        self.model.train()
        self.device = model.device
        self.length = length
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=0.0)
        self.schedule = get_linear_schedule_with_warmup(
            self.optimizer, round(0.1 * total_steps), total_steps
        )
        self.trained = trained

    def pad(self, rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ids, mask, and labels that are -100 but for the last token of each row."""
        ids = torch.zeros(len(rows), self.length, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.from_numpy(row)
            mask[i, : len(row)] = 1
            labels[i, len(row) - 1] = int(row[-1])
        return ids.to(self.device), mask.to(self.device), labels.to(self.device)

    def step(self, rows: Sequence[np.ndarray]) -> float:
        """Take one optimizer step on sequences whose last token is the label word."""
        ids, mask, labels = self.pad(rows)
        loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return float(loss)

    @torch.no_grad()
    def predict(
        self, rows: Sequence[np.ndarray], words: Sequence[int], *, batch_size: int = 8
    ) -> np.ndarray:
        """Return the index of the more probable word at each row's label position, (rows,)."""
        self.model.eval()
        predicted = []
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            ids, mask, _ = self.pad(chunk)
            logits = self.model(input_ids=ids, attention_mask=mask).logits
            at = torch.tensor([len(row) - 2 for row in chunk])
            scores = logits[torch.arange(len(chunk)), at][:, list(words)]
            predicted.append(scores.argmax(dim=-1).cpu().numpy())
        return np.concatenate(predicted)
