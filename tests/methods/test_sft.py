"""Packed rows are the rows alone: losses, gradients, preferences, whatever shares a tree."""

import copy
import importlib
import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import tiny
from taskfit.data.instructions import Conversation, Preference
from taskfit.data.messages import Message
from taskfit.methods.dpo import DpoLoss, dpo_loss
from taskfit.methods.sft import SftLoss, sequence_log_probs, share_of_tokens_saved
from taskfit.models.adapters import add_adapter, trainable_parameters
from taskfit.models.load import LoadedModel
from taskfit.settings import AdapterSettings
from taskfit.tasks.chat import ChatEncoder, EncodedPreference, EncodedText, find_template

SYSTEM = Message("system", "You answer.")
ANSWERS = ("good it is", "bad", "good", "a bad one and a good one")


@pytest.fixture
def encoder() -> ChatEncoder:
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.chat_template = find_template("chatml")
    return ChatEncoder(tokenizer, max_length=256)


@pytest.fixture
def rows(encoder: ChatEncoder) -> list[EncodedText]:
    return encoder.conversations(
        [
            Conversation(
                f"row {i}",
                (
                    SYSTEM,
                    Message("user", f"question {i % 2}"),
                    Message("assistant", answer),
                    Message("user", "and?"),
                    Message("assistant", answer[::-1]),
                ),
            )
            for i, answer in enumerate(ANSWERS)
        ]
    )


@pytest.fixture
def pairs(encoder: ChatEncoder) -> list[EncodedPreference]:
    return encoder.preferences(
        [
            Preference(f"pair {i}", (SYSTEM, Message("user", f"question {i}")), good, bad)
            for i, (good, bad) in enumerate(itertools.pairwise(ANSWERS))
        ]
    )


def plain_log_prob(loaded: LoadedModel, item: EncodedText) -> torch.Tensor:
    """The sum over learned tokens by transformers' own forward pass of one row."""
    with loaded.tree.plain_attention() as plain:
        logits = plain(torch.from_numpy(item.ids)[None]).logits[0, :-1].float()
    targets = torch.from_numpy(item.ids[1:])
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return -losses[torch.from_numpy(item.is_learned[1:])].sum()


def adapted(loaded: LoadedModel) -> dict[str, torch.nn.Parameter]:
    add_adapter(loaded.tree.model, AdapterSettings(lora_dropout=0.0), seed=0)
    parameters = trainable_parameters(loaded.tree.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in parameters.values():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return parameters


def gradient_of(parameters: Any, *losses: torch.Tensor) -> torch.Tensor:
    for p in parameters.values():
        p.grad = None
    for loss in losses:
        loss.backward()
    return torch.cat([p.grad.flatten() for p in parameters.values()])


def test_rows_of_one_tree_have_the_loss_and_gradient_of_rows_alone(
    loaded: LoadedModel, rows: list[EncodedText]
) -> None:
    parameters = adapted(loaded)
    packed = SftLoss(loaded.tree).loss_sum(rows)
    packed_gradient = gradient_of(parameters, packed)
    alone = [-plain_log_prob(loaded, row) for row in rows]
    assert float(packed.detach()) == pytest.approx(
        float(torch.stack(alone).sum().detach()), rel=1e-5
    )
    torch.testing.assert_close(
        packed_gradient, gradient_of(parameters, *alone), rtol=1e-4, atol=2e-5
    )


def test_cutting_a_step_changes_no_gradient_and_counts_add_up(
    loaded: LoadedModel, rows: list[EncodedText]
) -> None:
    parameters = adapted(loaded)
    loss = SftLoss(loaded.tree)
    whole = gradient_of(parameters, loss.loss_sum(rows))
    plan = loss.plan(rows, loss.largest(rows))
    assert len(plan) > 1
    parts = [loss.loss_sum([rows[i] for i in piece]) for piece in plan]
    torch.testing.assert_close(gradient_of(parameters, *parts), whole, rtol=1e-4, atol=2e-5)
    assert loss.count(rows) == sum(loss.count([row]) for row in rows)
    assert loss.count(rows) == sum(int(row.is_learned.sum()) for row in rows)


def test_sequences_score_the_same_alone_and_together(
    loaded: LoadedModel, rows: list[EncodedText]
) -> None:
    together = sequence_log_probs(loaded.tree, rows)
    alone = [float(plain_log_prob(loaded, row).detach()) for row in rows]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert 0 < share_of_tokens_saved(rows) < 1


def test_the_preference_loss_is_equation_seven_on_rows_alone(
    loaded: LoadedModel, pairs: list[EncodedPreference]
) -> None:
    reference = {
        pair.id: tuple(sequence_log_probs(loaded.tree, [pair.chosen, pair.rejected]).tolist())
        for pair in pairs
    }
    parameters = adapted(loaded)
    loss = DpoLoss(loaded.tree, beta=0.3, reference=reference)  # type: ignore[arg-type]
    loss.start_step(0)
    packed = loss.loss_sum(pairs)
    expected, margins = [], []
    for pair in pairs:
        ratios = [
            plain_log_prob(loaded, answer) - reference[pair.id][i]
            for i, answer in enumerate((pair.chosen, pair.rejected))
        ]
        margins.append(float((0.3 * (ratios[0] - ratios[1])).detach()))
        expected.append(-functional.logsigmoid(0.3 * (ratios[0] - ratios[1])))
    assert float(packed.detach()) == pytest.approx(
        float(torch.stack(expected).sum().detach()), rel=1e-5
    )
    assert loss.step_metrics()["reward_margin"] == pytest.approx(np.mean(margins), rel=1e-4)
    share = np.mean([margin > 0 for margin in margins])
    assert loss.step_metrics()["reward_accuracy"] == pytest.approx(share)
    torch.testing.assert_close(
        gradient_of(parameters, packed), gradient_of(parameters, *expected), rtol=1e-3, atol=2e-5
    )


def test_a_policy_equal_to_its_reference_has_the_loss_of_a_coin_and_exchanging_answers_mirrors(
    loaded: LoadedModel, pairs: list[EncodedPreference]
) -> None:
    scores = torch.tensor([[-3.0, -5.0], [-1.0, -1.5]])
    torch.testing.assert_close(
        dpo_loss(scores, scores, beta=0.7), torch.full((2,), float(np.log(2)))
    )
    other = scores + torch.tensor([[0.5, -0.5], [2.0, 1.0]])
    there, back = (
        dpo_loss(p, r, beta=0.7) for p, r in ((other, scores), (other.flip(1), scores.flip(1)))
    )
    # sigmoid(x) + sigmoid(-x) = 1.
    torch.testing.assert_close(torch.exp(-there) + torch.exp(-back), torch.ones(2))


def with_trl() -> Any:
    # The name, not the module, so that a broken installation is an error and no skip.
    if importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed: pip install trl")
    return importlib.import_module("trl")


def trl_arguments(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "max_length": None,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def turns_of(*messages: Message) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def first_batch(trainer: Any) -> Any:
    # Not the trainer's loader, which would shuffle.
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    return trainer.data_collator(rows)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", [{}, {"padding_free": True}], ids=["padded", "padding-free"])
def test_the_loss_is_that_of_trl_on_completions(
    loaded: LoadedModel, encoder: ChatEncoder, tmp_path: Path, variant: dict[str, Any]
) -> None:
    trl = with_trl()
    datasets = importlib.import_module("datasets")
    rows = [
        Conversation(f"row {i}", (SYSTEM, Message("user", f"why {i}?"), Message("assistant", a)))
        for i, a in enumerate(ANSWERS)
    ]
    items = encoder.conversations(rows)
    loss = float(SftLoss(loaded.tree).loss_sum(items)) / SftLoss(loaded.tree).count(items)
    records = [
        {"prompt": turns_of(*row.messages[:-1]), "completion": turns_of(row.messages[-1])}
        for row in rows
    ]
    with loaded.tree.plain_attention() as plain:
        trainer = trl.SFTTrainer(
            plain,
            args=trl.SFTConfig(**trl_arguments(tmp_path), **variant),
            train_dataset=datasets.Dataset.from_list(records),
            processing_class=encoder.tokenizer,
        )
        batch = first_batch(trainer)
        learned = int((batch["labels"] != -100).sum())
        assert learned == sum(item.num_learned for item in items)
        theirs = float(trainer.compute_loss(trainer.model, batch))
    assert loss == pytest.approx(theirs, abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_preference_loss_is_that_of_trl(
    loaded: LoadedModel,
    encoder: ChatEncoder,
    pairs: list[EncodedPreference],
    tmp_path: Path,
) -> None:
    trl = with_trl()
    datasets = importlib.import_module("datasets")
    reference = {
        pair.id: tuple(sequence_log_probs(loaded.tree, [pair.chosen, pair.rejected]).tolist())
        for pair in pairs
    }
    frozen = copy.deepcopy(loaded.tree.model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in loaded.tree.model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.02)
    loss = DpoLoss(loaded.tree, beta=0.3, reference=reference)  # type: ignore[arg-type]
    loss.start_step(0)
    ours = float(loss.loss_sum(pairs)) / len(pairs)
    records = [
        {
            "prompt": turns_of(SYSTEM, Message("user", f"question {i}")),
            "chosen": turns_of(Message("assistant", good)),
            "rejected": turns_of(Message("assistant", bad)),
        }
        for i, (good, bad) in enumerate(itertools.pairwise(ANSWERS))
    ]
    frozen.set_attn_implementation("sdpa")
    with loaded.tree.plain_attention() as plain:
        trainer = trl.DPOTrainer(
            plain,
            ref_model=frozen,
            args=trl.DPOConfig(**trl_arguments(tmp_path), beta=0.3),
            train_dataset=datasets.Dataset.from_list(records),
            processing_class=encoder.tokenizer,
        )
        trainer.model.eval()
        theirs = float(trainer.compute_loss(trainer.model, first_batch(trainer)))
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert abs(ours - float(np.log(2))) > 1e-3, "a loss of the coin would be equal by itself"
