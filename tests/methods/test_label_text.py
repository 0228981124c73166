"""The label as text: end tokens close every label, greedy and exact decoding, honest parsing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from taskfit.errors import PromptError
from taskfit.methods.label_text import LabelText, greedy_path
from taskfit.methods.method import MethodContext
from taskfit.models.load import LoadedModel
from taskfit.settings_file import load_settings
from taskfit.tasks import Label, parse_answer, task_from_columns

EXAMPLES = tiny.toy_examples(6)
# One word opens the other: without its end, the shorter one would always be as likely.
LABELS = (Label("a", (" yes",)), Label("b", (" yes or no",)), Label("c", (" maybe",)))


def method_of(loaded: LoadedModel, *overrides: str) -> LabelText:
    settings = load_settings(overrides=["method.name=label_text", *overrides])
    task = task_from_columns(name="t", text=["text"], label_column="label", labels=["a", "b", "c"])
    return LabelText(MethodContext(settings, replace(task, labels=LABELS), [], loaded))


def test_exact_decoding_is_the_joint_with_the_end_token_of_plain_passes(
    loaded: LoadedModel,
) -> None:
    method = method_of(loaded)
    found = method.probabilities(EXAMPLES)
    end = loaded.tokenizer.eos_token_id
    for row, item in zip(found, method.scorer.encoder.encode(EXAMPLES), strict=True):
        joints = []
        for completion in item.completions:
            assert completion[-1] == end
            ids = torch.from_numpy(np.concatenate((item.prompt_ids, completion)))
            with loaded.tree.plain_attention() as plain, torch.no_grad():
                log_probs = torch.log_softmax(plain(ids[None]).logits[0].float(), dim=-1)
            start = len(item.prompt_ids) - 1
            places = torch.arange(start, len(ids) - 1)
            joints.append(float(log_probs[places, ids[start + 1 :]].sum()))
        expected = np.exp(joints - np.logaddexp.reduce(joints))
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-6)


def test_greedy_decoding_takes_the_likeliest_allowed_token_at_every_branch(
    loaded: LoadedModel,
) -> None:
    method = method_of(loaded, "method.decoding=greedy")
    found = method.probabilities(EXAMPLES)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    for row, item in zip(found, method.scorer.encoder.encode(EXAMPLES), strict=True):
        alive, ids = list(range(3)), item.prompt_ids
        depth = 0
        while len(alive) > 1:
            with loaded.tree.plain_attention() as plain, torch.no_grad():
                scores = plain(torch.from_numpy(ids)[None]).logits[0, -1]
            allowed = {int(item.completions[c][depth]) for c in alive}
            best = max(allowed, key=lambda token: float(scores[token]))
            alive = [c for c in alive if int(item.completions[c][depth]) == best]
            ids = np.append(ids, best)
            depth += 1
        assert int(row.argmax()) == alive[0]


def test_a_greedy_path_multiplies_the_shares_of_its_branches() -> None:
    completions = [np.array([1, 9]), np.array([1, 2, 9]), np.array([3, 9])]
    log_probs = [np.log([0.2, 0.6]), np.log([0.2, 0.2, 1.0]), np.log([0.1, 1.0])]
    best, probability = greedy_path(completions, log_probs)
    assert best == 0
    assert probability == pytest.approx((0.2 / 0.3) * (0.6 / 0.8))


def test_free_answers_that_name_no_label_are_counted_and_not_guessed(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = method_of(loaded, "method.decoding=free")
    answers = iter([" yes", "Maybe.", "yes or no", "no idea", "", "maybe yes?"])
    monkeypatch.setattr(
        type(loaded.tokenizer),
        "batch_decode",
        lambda *_, **__: [next(answers) for _ in range(len(EXAMPLES))],
    )
    # Prompts are generated from longest to shortest; equal lengths keep their order.
    lengths = [len(i.prompt_ids) for i in method.scorer.encoder.encode(EXAMPLES)]
    order = sorted(range(len(EXAMPLES)), key=lambda i: -lengths[i])
    found = method.probabilities(EXAMPLES)
    named = [None if np.isnan(found[i, 0]) else int(found[i].argmax()) for i in order]
    assert named == [0, 2, 1, None, None, None]
    assert method.report() == {"num_generated": 6, "num_unparsable": 3}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" positive", 0),
        ("Positive.", 0),
        ('"NEGATIVE"', 1),
        ("not positive", 2),
        ("It is not positive", 2),
        ("negative\npositive", 1),
        ("positive or negative", None),
        ("positively", None),
        ("", None),
        ("\n\n", None),
        ("no answer", None),
    ],
)
def test_an_answer_names_one_label_or_none(text: str, label: int | None) -> None:
    assert parse_answer(text, [["positive"], ["negative"], ["not positive"]]) == label


def test_a_tokenizer_without_an_end_token_is_refused(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare: Any = tiny.byte_level_tokenizer()
    bare.eos_token = None
    with pytest.raises(PromptError, match="needs a tokenizer with an end token"):
        method_of(replace(loaded, tokenizer=bare))
