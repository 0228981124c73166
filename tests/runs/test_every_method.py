"""What holds for every method: it learns eight examples, comes back from disk, survives a kill."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from taskfit.data import Example
from taskfit.errors import DataError, SettingsError, TaskfitError
from taskfit.methods.table import METHODS
from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import fit
from taskfit.settings import RunSettings
from tiny_screens import Killed, NotingScreen
from tiny_settings import settings_for

EIGHT = tiny.toy_examples(8)
OTHERS = tiny.toy_examples(6, offset=200)
TRAINED = {
    "label_words": ["training.learning_rate=0.02"],
    "vocabulary": ["method.name=label_words", "method.loss=vocabulary", "training.epochs=60"],
    "branches": [
        "method.name=label_words",
        "method.loss=branches",
        "task.label_words={bad: ' The dog was sad', good: ' The dog was happy'}",
        "training.epochs=60",
    ],
    "full": [
        "method.name=label_words",
        "adapter.weights=full",
        "training.learning_rate=0.003",
    ],
    "focal and balanced": [
        "method.name=label_words",
        "method.class_weights=balanced",
        "method.focal_gamma=1.0",
        "method.sampling=balanced",
    ],
    "head": ["method.prompt=false"],
    "head in a prompt": [
        "method.name=head",
        "adapter.weights=full",
        "training.learning_rate=0.003",
    ],
    "label_text": [],
    "greedy": ["method.name=label_text", "method.decoding=greedy"],
    "free": ["method.name=label_text", "method.decoding=free", "training.epochs=60"],
    "encoder": ["training.learning_rate=0.003", "training.epochs=60"],
}
AT_ONCE = {
    "probe": ["method.prompt=false"],
    "knn": ["method.retriever=model", "method.num_neighbors=1", "method.prompt=false"],
    "tfidf": [],
}
OTHER = {
    "majority": [],
    "probe in a prompt": ["method.name=probe"],
    "knn of an encoder": ["method.name=knn"],
    "in_context": ["method.num_demonstrations=2", "method.num_orders=2"],
    "nearest": [
        "method.name=in_context",
        "method.demonstrations=nearest",
        "method.num_demonstrations=2",
        "method.calibration=pmi",
        "method.length_normalization=true",
    ],
    "distill": ["method.num_demonstrations=2"],
    "self": [
        "method.name=distill",
        "method.teacher=self",
        "method.contexts=redrawn",
        "method.num_demonstrations=2",
    ],
    "full distill": [
        "method.name=distill",
        "adapter.weights=full",
        "method.loss=vocabulary",
        "method.num_demonstrations=2",
    ],
}
ALL = {**TRAINED, **AT_ONCE, **OTHER}


@pytest.fixture
def settings_of(tmp_path: Path, model_folder: Path, encoder_folder: Path) -> Any:
    tiny.write_csv(tmp_path / "train.csv", EIGHT)
    tiny.write_csv(tmp_path / "other.csv", OTHERS)

    def make(name: str, *extra: str) -> RunSettings:
        how = [one for one in extra if one.startswith(("training.", "adapter."))]
        return settings_for(
            [
                f"data.train={tmp_path / 'train.csv'}",
                f"data.tests.other={tmp_path / 'other.csv'}",
                "data.validation_fraction=0",
                f"model.name={model_folder}",
                "model.dtype=float32",
                f"method.name={name if name in METHODS else 'label_words'}",
                "method.num_demonstrations=0",
                f"method.encoder={encoder_folder}",
                f"method.retriever={encoder_folder}",
                "training.epochs=40",
                "training.batch_size=8",
                "training.learning_rate=0.02",
                "training.tensorboard=false",
                *how,
            ],
            [*ALL.get(name, ()), *(one for one in extra if one not in how)],
        )

    return make


@pytest.mark.parametrize("name", [*TRAINED, *AT_ONCE])
def test_eight_examples_are_learned_and_the_run_comes_back_from_disk(
    settings_of: Any, tmp_path: Path, name: str
) -> None:
    run = fit(settings_of(name), tmp_path / "run")
    found = run.fitted.probabilities(EIGHT)
    gold = [run.fitted.task.label_names.index(str(example.label)) for example in EIGHT]
    assert found.argmax(axis=1).tolist() == gold
    np.testing.assert_allclose(found.sum(axis=1), 1)
    again = Classifier.load(tmp_path / "run", device="cpu")
    for examples in (EIGHT, OTHERS):
        np.testing.assert_allclose(
            again.probabilities(examples), run.fitted.probabilities(examples), atol=1e-5
        )


@pytest.mark.parametrize("name", list(OTHER))
def test_a_method_comes_back_from_disk_and_scores_texts_alone_as_together(
    settings_of: Any, tmp_path: Path, name: str
) -> None:
    run = fit(settings_of(name, "training.epochs=2"), tmp_path / "run")
    computes = {"device": "cpu", "dtype": "float32"}
    reads_model = run.fitted.method.settings.reads_model
    assert (computes.items() <= run.result.machine.items()) == reads_model
    texts = [Example(e.id, e.texts) for e in OTHERS]
    together = run.fitted.probabilities(texts)
    alone = np.concatenate([run.fitted.probabilities([text]) for text in texts])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    again = Classifier.load(tmp_path / "run", device="cpu").probabilities(texts)
    np.testing.assert_allclose(again, together, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["label_words", "head", "label_text", "distill", "self", "full distill", "encoder"]
)
def test_a_killed_run_of_any_trained_method_ends_bitwise_equal(
    settings_of: Any, tmp_path: Path, name: str
) -> None:
    short = ["training.epochs=8", "training.batch_size=4", "adapter.lora_dropout=0.1"]
    short.append("training.save_every_steps=5")
    if name in OTHER:
        short.append("method.num_demonstrations=2")
    settings = settings_of(name, *short)
    whole = fit(settings, tmp_path / "whole").fitted.probabilities(OTHERS)
    with pytest.raises(Killed):
        fit(settings, tmp_path / "broken", screen=NotingScreen(7))
    resumed = fit(settings, tmp_path / "broken", resume=True).fitted.probabilities(OTHERS)
    assert np.array_equal(resumed, whole)


def test_the_head_moves_under_lora_and_its_adapter_too(settings_of: Any, tmp_path: Path) -> None:
    run = fit(settings_of("head", "training.epochs=3"), tmp_path / "run")
    method: Any = run.fitted.method
    assert method.head.weight.abs().max() > 0
    adapters = {n: p for n, p in method.module.named_parameters() if "lora_B" in n}
    assert adapters
    assert all(p.abs().max() > 0 for p in adapters.values())
    assert run.result.num_trainable == sum(
        p.numel() for n, p in method.module.named_parameters() if "lora_" in n
    ) + sum(p.numel() for p in method.head.parameters())


def write_several(path: Path, *, neither: str = "") -> Path:
    """Texts about dogs, cats, both or neither."""
    rows = ["text,label"]
    for i in range(24):
        names = ["dog"] * (i % 2) + ["cat"] * (i // 2 % 2)
        subject = " and the ".join(names) or "farmer"
        rows.append(f"The {subject} was at home {i}.,{'|'.join(names) or neither}")
    path.write_text("\n".join(rows) + "\n")
    path.with_name("other.csv").write_text("text,label\nThe bird was awful.,\nThe cat sang.,cat\n")
    return path


@pytest.mark.parametrize("name", ["head", "probe", "tfidf", "majority", "encoder", "knn"])
def test_several_labels_a_text(settings_of: Any, tmp_path: Path, name: str) -> None:
    source = write_several(tmp_path / "several.csv")
    extra = ["task.multi_label=true", f"data.train={source}", "training.epochs=30"]
    run = fit(settings_of(name, *extra, "data.validation_fraction=0.25"), tmp_path / "run")
    evaluation = run.result.evaluations["other"]
    assert evaluation.multi_label
    assert np.sum(evaluation.confusion_matrix) == 2 * evaluation.num_examples
    both = Example("both", {"text": "The dog and the cat was at home 7."})
    neither = Example("neither", {"text": "The farmer was at home 9."})
    found = run.fitted.probabilities([both, neither])
    assert ((found >= 0) & (found <= 1)).all()
    if name in ("head", "probe", "tfidf"):
        assert found[0].min() > 0.5 > found[1].max()
    again = Classifier.load(tmp_path / "run", device="cpu").probabilities([both, neither])
    np.testing.assert_allclose(again, found, atol=1e-5)


@pytest.mark.parametrize("name", ["label_words", "head", "encoder", "probe"])
def test_shares_of_raters_are_learned_as_shares(
    settings_of: Any, tmp_path: Path, name: str
) -> None:
    rows = ["text,liked,disliked"]
    rows += [f"The {noun} was at home.,3,1" for noun in tiny.NOUNS[:4]]
    rows += [f"The {noun} was at home again.,1,9" for noun in tiny.NOUNS[:4]]
    source = tmp_path / "shares.csv"
    source.write_text("\n".join(rows) + "\n")
    shares = "{good: liked, bad: disliked}"
    extra = [f"data.train={source}", f"data.soft_labels={shares}"]
    settings = settings_of(name, *extra, "data.text=[text]", "training.epochs=80")
    run = fit(settings, tmp_path / "run")
    texts = [Example("a", {"text": "The dog was at home."})]
    texts.append(Example("b", {"text": "The dog was at home again."}))
    good = run.fitted.task.label_names.index("good")
    found = run.fitted.probabilities(texts)[:, good]
    assert found == pytest.approx([0.75, 0.1], abs=0.12)


def test_rows_of_several_labels_in_a_task_of_one_are_told_what_to_set(
    settings_of: Any, tmp_path: Path
) -> None:
    source = write_several(tmp_path / "several.csv", neither="farmer")
    with pytest.raises(DataError, match=r"such as 'dog\|cat' .*:5\).*Set task\.multi_label=true"):
        fit(settings_of("head", f"data.train={source}"), tmp_path / "run")


@pytest.mark.parametrize("name", ["label_words", "label_text", "in_context"])
def test_a_method_of_one_label_refuses_several(settings_of: Any, tmp_path: Path, name: str) -> None:
    source = write_several(tmp_path / "several.csv")
    extra = ["task.multi_label=true", f"data.train={source}"]
    with pytest.raises(SettingsError, match=r"gives a text one label.*Use head, probe"):
        fit(settings_of(name, *extra), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("distill", ["method.num_demonstrations=0"], "needs a context that the teacher sees"),
        ("distill", ["method.loss=branches"], "label_words may have it"),
        ("head", ["method.calibration=batch"], "is read by in_context, distill, not by head"),
        ("distill", ["method.calibration=pmi"], "in_context may have it"),
        ("tfidf", ["method.blend=[model]"], "needs a causal language model"),
        (
            "distill",
            ["method.calibration=batch", "method.contexts=redrawn", "method.loss=vocabulary"],
            "distill with method.loss=vocabulary and method.contexts=redrawn",
        ),
        ("head", ["method.demonstrations=nearest"], "in_context may have it"),
        ("nearest", ["method.num_orders=3"], "averages orders of fixed demonstrations"),
        ("remote", [], "needs the model's name at the endpoint"),
        ("knn", ["method.retriever=/no/where"], "no folder"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    settings_of: Any, tmp_path: Path, name: str, extra: list[str], message: str
) -> None:
    with pytest.raises(TaskfitError, match=message):
        fit(
            settings_of(name, f"method.name={'in_context' if name == 'nearest' else name}", *extra),
            tmp_path / "run",
        )


def test_texts_without_labels_cannot_be_drawn_by_class(settings_of: Any, tmp_path: Path) -> None:
    given = ["method.sampling=balanced", f"data.unlabeled={tmp_path / 'texts.csv'}"]
    (tmp_path / "texts.csv").write_text("text\nThe dog was at sea.\n")
    with pytest.raises(SettingsError, match=r"Those of data\.unlabeled have none"):
        fit(settings_of("distill", *given), tmp_path / "run")


def test_a_method_that_learns_needs_training_examples(settings_of: Any, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(
        "name: toy\ntext: text\nlabels: [{name: bad}, {name: good}]\n"
        "template: {line: 'Text: {text}\\nLabel:{label}'}\n"
    )
    settings = settings_of("tfidf", "data.train=null", f"task.name={path}")
    with pytest.raises(DataError, match="tfidf needs training examples"):
        fit(settings, tmp_path / "run")
