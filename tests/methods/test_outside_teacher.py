"""A teacher that is another model: its shares are what is learned, whoever says them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tiny
from chat_server import ChatServer, Reply, answer
from taskfit.data import Example
from taskfit.errors import DataError, SettingsError
from taskfit.method_settings import method_settings
from taskfit.methods.distill import Distill
from taskfit.methods.label_words import LabelWords
from taskfit.methods.method import MethodContext
from taskfit.methods.scoring import LabelScorer
from taskfit.methods.student import DistillItem, StudentObjective
from taskfit.models.load import LoadedModel
from taskfit.runs.fit import fit
from taskfit.settings_file import load_settings
from taskfit.tasks import PromptEncoder

EXAMPLES = tiny.toy_examples(8)
SHARES = np.random.default_rng(0).dirichlet([1.0, 1.0], len(EXAMPLES))


def objective_of(
    loaded: LoadedModel, taught: np.ndarray, *, temperature: float = 1.0
) -> tuple[StudentObjective, list[DistillItem]]:
    encoder = PromptEncoder(loaded.tokenizer, tiny.toy_task(), [], max_length=256)
    texts = [example.bare() for example in EXAMPLES]
    items = [
        DistillItem(s.id, s.prompt_ids, s.completions, None, s.num_tokens_cut, example=e, taught=t)
        for e, s, t in zip(texts, encoder.encode(texts), taught, strict=True)
    ]
    return StudentObjective(LabelScorer(loaded.tree, encoder), temperature=temperature), items


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_teacher_that_says_what_the_student_says_teaches_nothing(
    loaded: LoadedModel, temperature: float
) -> None:
    objective, _ = objective_of(loaded, SHARES)
    own = objective.student.log_probs([example.bare() for example in EXAMPLES])
    own = np.exp(own - np.logaddexp.reduce(own, axis=1, keepdims=True))
    same, items = objective_of(loaded, own, temperature=temperature)
    other, others = objective_of(loaded, own[:, ::-1].copy(), temperature=temperature)
    with torch.no_grad():
        assert float(same.loss_sum(items)) == pytest.approx(0, abs=1e-4)
        assert float(other.loss_sum(others)) > 1e-3


def test_a_label_that_the_teacher_rules_out_adds_nothing(loaded: LoadedModel) -> None:
    objective, items = objective_of(loaded, np.eye(2)[[0, 1] * 4])
    own = objective.student.log_probs([example.bare() for example in EXAMPLES])
    own -= np.logaddexp.reduce(own, axis=1, keepdims=True)
    with torch.no_grad():
        found = float(objective.loss_sum(items))
    # KL(one label || student) = -log p of that label.
    assert found == pytest.approx(-own[range(8), [0, 1] * 4].sum(), rel=1e-4)


def test_the_gradient_is_that_of_label_words_on_the_same_shares(loaded: LoadedModel) -> None:
    """KL(t || p) is cross-entropy less the entropy of t, which has no gradient."""
    task = tiny.toy_task()
    taught = [
        replace(e, target=dict(zip(task.label_names, row.tolist(), strict=True)))
        for e, row in zip(EXAMPLES, SHARES, strict=True)
    ]
    gradients = []
    for sets in (
        ("method.name=label_words", "method.loss=labels"),
        ("method.name=distill", "method.teacher=soft_labels", "data.soft_labels.bad=p_bad"),
    ):
        settings = load_settings(overrides=[*sets, "adapter.weights=full"]).resolved()
        context = MethodContext(settings, task, [], loaded)
        method = (LabelWords if "label_words" in sets[0] else Distill)(context)
        weights = method.make_trainable()
        for weight in weights.values():
            weight.grad = None
        method.objective().loss_sum(method.encode(taught)).backward()
        found = [w.grad.flatten() for w in weights.values() if w.grad is not None]
        gradients.append(torch.cat(found).clone())
    assert gradients[0].norm() > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_the_student_of_another_model_keeps_the_instruction_unless_it_is_told_not_to() -> None:
    kept = {
        (teacher, given): method_settings(
            "distill", teacher=teacher, student_instruction=given
        ).keeps_instruction
        for teacher in ("frozen", "self", "soft_labels", "remote")
        for given in (None, True, False)
    }
    assert {key for key, found in kept.items() if found} == {
        ("soft_labels", None),
        ("remote", None),
        *((teacher, True) for teacher in ("frozen", "self", "soft_labels", "remote")),
    }


def judge(body: dict[str, Any]) -> Reply:
    """Read the words; say nothing of some."""
    text = body["messages"][-1]["content"]
    if "bird" in text:
        return answer("I cannot say.")
    good = any(word in text for word in tiny.GOOD)
    top = {"good" if good else "bad": np.log(0.9), "bad" if good else "good": np.log(0.1)}
    return answer("good" if good else "bad", top=top)


def remote_settings(server: ChatServer, folder: Path, model: Path, *sets: str) -> Any:
    task = folder / "task.yaml"
    task.write_text(
        "name: toy\ntext: text\nlabels: [{name: bad}, {name: good}]\n"
        "template: {line: 'Text: {text}\\nLabel:{label}'}\n"
    )
    texts = [{"text": e.texts["text"]} for e in tiny.toy_examples(40)]
    pd.DataFrame(texts).to_csv(folder / "texts.csv", index=False)
    given = (
        f"task.name={task}",
        f"data.unlabeled={folder / 'texts.csv'}",
        f"data.tests.new={tiny.write_csv(folder / 'new.csv', tiny.toy_examples(20, offset=100))}",
        "method.name=distill",
        "method.teacher=remote",
        f"model.name={model}",
        "model.dtype=float32",
        "model.device=cpu",
        *server.settings,
        "training.tensorboard=false",
        "training.learning_rate=0.02",
        "training.epochs=15",
    )
    return load_settings(overrides=[*given, *sets])


def test_an_endpoint_teaches_from_texts_alone_and_is_asked_once(
    server: ChatServer, tmp_path: Path, model_folder: Path
) -> None:
    server.then = judge
    found = fit(remote_settings(server, tmp_path, model_folder), tmp_path / "run").result
    assert len(server.bodies) == 40
    assert found.details["num_unparsable"] == 10
    assert found.details["num_requests"] == 40
    assert found.evaluations["new"].accuracy > 0.8
    # Every answer was kept, so another student pays nothing.
    fit(remote_settings(server, tmp_path, model_folder, "seed=1"), tmp_path / "other")
    assert len(server.bodies) == 40


def test_a_teacher_without_any_answer_is_one_message(
    server: ChatServer, tmp_path: Path, model_folder: Path
) -> None:
    server.then = lambda body: answer("As a language model, I")
    with pytest.raises(DataError, match=r"None of the teacher's 40 answers.*bad, good"):
        fit(remote_settings(server, tmp_path, model_folder), tmp_path / "run")


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (("method.teacher=soft_labels",), "data.soft_labels"),
        (("method.teacher=remote",), "remote.model"),
        (("method.teacher=remote", "remote.model=m", "method.loss=vocabulary"), "method.loss"),
        (("method.teacher=remote", "remote.model=m", "method.contexts=redrawn"), "contexts"),
        (("method.teacher=remote", "remote.model=m", "method.sampling=balanced"), "sampling"),
        (("remote.model=m",), "remote.model is read by remote, not by distill"),
        (
            ("method.teacher=soft_labels", "data.soft_labels.bad=b", "data.unlabeled=t.csv"),
            "data.unlabeled",
        ),
    ],
)
def test_what_means_nothing_with_this_teacher_is_refused(
    loaded: LoadedModel, sets: tuple[str, ...], told: str
) -> None:
    def make() -> Distill:
        settings = load_settings(overrides=["method.name=distill", *sets]).resolved()
        return Distill(MethodContext(settings, tiny.toy_task(), [], loaded))

    with pytest.raises(SettingsError, match=told):
        make()


def test_a_text_without_shares_is_named(loaded: LoadedModel) -> None:
    sets = ["method.name=distill", "method.teacher=soft_labels", "data.soft_labels.bad=p_bad"]
    settings = load_settings(overrides=sets).resolved()
    method = Distill(MethodContext(settings, tiny.toy_task(), [], loaded))
    with pytest.raises(DataError, match="toy:0 has no shares"):
        method.encode([Example("toy:0", EXAMPLES[0].texts, "good")])
