"""Where a linear head starts: undecided, at a probe, or at the LM head's own words."""

import numpy as np
import pytest
import torch

import tiny
from taskfit.methods.head import PROBE_SHARE, Head
from taskfit.methods.label_words import LabelWords
from taskfit.methods.method import MethodContext
from taskfit.methods.probe import Probe
from taskfit.models.load import LoadedModel
from taskfit.settings_file import load_settings
from taskfit.tasks import Task, task_from_columns

EXAMPLES = tiny.toy_examples(24)


def context_of(loaded: LoadedModel, *overrides: str) -> MethodContext:
    settings = load_settings(overrides=[*overrides]).resolved()
    return MethodContext(settings, task(), EXAMPLES[:2], loaded)


def task() -> Task:
    found = task_from_columns(
        name="toy", text=["text"], label_column="label", labels=["bad", "good"]
    )
    assert [label.words for label in found.labels] == [(" bad",), (" good",)]
    return found


def head(loaded: LoadedModel, start: str, *extra: str) -> Head:
    method = Head(context_of(loaded, "method.name=head", f"method.start={start}", *extra))
    method.prepare(EXAMPLES, ())
    return method


def test_from_zero_nothing_is_decided(loaded: LoadedModel) -> None:
    np.testing.assert_array_equal(head(loaded, "zero").probabilities(EXAMPLES), 0.5)


@pytest.mark.parametrize("prompt", ["true", "false"])
def test_from_a_probe_the_first_answers_are_the_probe_s_but_less_sure(
    loaded: LoadedModel, prompt: str
) -> None:
    given = f"method.prompt={prompt}"
    probe = Probe(context_of(loaded, "method.name=probe", given))
    probe.prepare(EXAMPLES, ())
    theirs = np.log(probe.probabilities(EXAMPLES))
    ours = np.log(head(loaded, "probe", given).probabilities(EXAMPLES))
    np.testing.assert_allclose(
        ours[:, 1] - ours[:, 0], PROBE_SHARE * (theirs[:, 1] - theirs[:, 0]), atol=1e-4
    )


def test_from_a_probe_it_is_the_model_s_own_whatever_else_is_blended(loaded: LoadedModel) -> None:
    plain = head(loaded, "probe").probabilities(EXAMPLES)
    other = head(loaded, "probe", "method.blend=[minilm]").probabilities(EXAMPLES)
    np.testing.assert_allclose(other, plain, atol=1e-6)


def test_from_the_words_the_first_answers_are_those_of_the_lm_head(loaded: LoadedModel) -> None:
    words = LabelWords(context_of(loaded, "method.name=label_words", "method.loss=labels"))
    ids = loaded.tokenizer([" bad", " good"], add_special_tokens=False)["input_ids"]
    assert all(len(one) == 1 for one in ids)
    np.testing.assert_allclose(
        head(loaded, "words").probabilities(EXAMPLES), words.probabilities(EXAMPLES), atol=1e-5
    )


def test_permuted_labels_permute_the_start(loaded: LoadedModel) -> None:
    context = context_of(loaded, "method.name=head", "method.start=words")
    turned = task_from_columns(
        name="toy", text=["text"], label_column="label", labels=["good", "bad"]
    )
    other = Head(MethodContext(context.settings, turned, EXAMPLES[:2], loaded))
    other.prepare(EXAMPLES, ())
    assert torch.allclose(other.head.weight.flip(0), head(loaded, "words").head.weight)
