"""The published recipe as a good engineer writes it, with Transformers and PEFT, for comparison.

Batches are of like length and padded to their own longest text; the label word itself, which only
is predicted, does not run; the LM head is applied where it is predicted and nowhere else. Adapters
are in the model's own number format, which is faster for this side than PEFT's float32.
"""

from collections.abc import Sequence

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

# Batches whose texts are sorted together, as transformers' grouping by length does.
MEGABATCH = 50


def like_batches(lengths: Sequence[int], batch_size: int, *, seed: int) -> list[list[int]]:
    """Return the batches of an epoch: texts at random, sorted by length within 50 batches each.

    Args:
        lengths: Tokens of each text.
        batch_size: Texts of a batch.
        seed: Of the order of texts, and of batches.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    size = batch_size * MEGABATCH
    batches: list[list[int]] = []
    for start in range(0, len(order), size):
        found = sorted(order[start : start + size].tolist(), key=lambda i: -lengths[i])
        batches += [found[i : i + batch_size] for i in range(0, len(found), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


class StrongRecipe:
    """The peer's model, optimizer and padding."""

    def __init__(
        self,
        folder: str,
        dtype: torch.dtype,
        *,
        total_steps: int,
        seed: int,
        dropout: float = 0.05,
    ) -> None:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        config = LoraConfig(
            r=8,
            lora_alpha=16,
            lora_dropout=dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        self.model: nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
        self.model.train()
        self.decoder: nn.Module = model.get_decoder()
        self.head: nn.Module = model.get_output_embeddings()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=5e-4, weight_decay=0.0)
        self.schedule = get_linear_schedule_with_warmup(
            self.optimizer, round(0.1 * total_steps), total_steps
        )

    def loss(self, rows: Sequence[np.ndarray]) -> torch.Tensor:
        """Return the mean loss of sequences whose last token is the label word (nats)."""
        lengths = torch.tensor([len(row) - 1 for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row) - 1] = torch.from_numpy(row[:-1])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        states = self.decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        scores = self.head(states[torch.arange(len(rows)), lengths - 1]).float()
        return nn.functional.cross_entropy(scores, torch.tensor([int(row[-1]) for row in rows]))

    def step(self, rows: Sequence[np.ndarray]) -> float:
        """Take one optimizer step."""
        loss = self.loss(rows)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def padded_tokens(self, rows: Sequence[np.ndarray]) -> int:
        """Return the tokens that a step runs, padding with them."""
        return len(rows) * (max(map(len, rows)) - 1)
