"""An inspection counts what a run would see and run, and shows it on any terminal."""

import io
from pathlib import Path
from typing import Any

import pytest

import tiny
from taskfit.cli.inspect_view import show_inspection
from taskfit.cli.screen import Terminal
from taskfit.data import Example
from taskfit.errors import DataError, ModelError, PromptError, SettingsError
from taskfit.runs.inspection import Inspection, inspect_task
from taskfit.runs.prepare import prepare_data
from taskfit.settings import RunSettings
from taskfit.settings_file import settings_from_dict
from taskfit.tasks import PromptEncoder
from taskfit.tree import unique_tokens


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(60))
    tiny.write_csv(tmp_path / "test.csv", tiny.toy_examples(20, offset=50))
    return tmp_path


def settings_for(folder: Path, /, **sections: Any) -> RunSettings:
    """Settings for `train.csv` and a local model, with other sections on top."""
    data = {"train": "train.csv", "validation_fraction": 0.1, **sections.pop("data", {})}
    chosen = {"name": str(folder), **sections.pop("model", {})}
    return settings_from_dict({"data": data, "model": chosen, **sections})


def screen(inspection: Inspection, width: int = 80) -> str:
    console = Terminal(file=io.StringIO(), width=width, color_system=None)
    show_inspection(inspection, console)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_sizes_are_those_of_the_prepared_sets_and_add_up(folder: Path, model_folder: Path) -> None:
    settings = settings_for(model_folder, data={"tests": {"new": "test.csv"}})
    found, data = inspect_task(settings), prepare_data(settings)
    assert found.num_examples == {
        "train": len(data.train),
        "validation": len(data.validation),
        "new": 20,
    }
    assert found.overlap is not None
    assert found.overlap.num_dropped == 10
    in_training = found.num_examples["train"] + found.num_examples["validation"]
    assert in_training + len(data.demonstrations) + 10 == 60
    assert sum(found.checkup.class_counts.values()) == found.checkup.num_encoded == len(data.train)
    assert (found.task, found.model, found.batch_size) == (data.task, str(model_folder), 8)


def test_a_set_called_like_a_part_is_counted_for_itself(folder: Path, model_folder: Path) -> None:
    found = inspect_task(settings_for(model_folder, data={"tests": {"train": "test.csv"}}))
    assert sum(found.num_examples.values()) == 60 - 2 - 10 + 20
    assert 20 in found.num_examples.values()


@pytest.mark.parametrize("batch_size", [1, 3, 16, 500])
def test_tokens_are_those_of_the_gold_answers_and_shared_ones_run_once(
    folder: Path, model_folder: Path, byte_level_tokenizer, batch_size: int
) -> None:
    words = {"bad": [" no", " not at all, everybody said so"], "good": [" yes", " maybe"]}
    settings = settings_for(
        model_folder, training={"batch_size": batch_size}, task={"label_words": words}
    )
    found, data = inspect_task(settings), prepare_data(settings)
    encoder = PromptEncoder(byte_level_tokenizer, data.task, data.demonstrations, max_length=256)
    answers = {"bad": " no", "good": " yes"}
    full = [
        encoder.text.encode_pair(encoder.render(e.texts), answers[str(e.label)]).ids
        for e in data.train
    ]
    assert found.padded_tokens == len(full) * max(map(len, full))
    # The last token of an answer is predicted only.
    run = [ids[:-1] for ids in full]
    assert unique_tokens(run) <= found.run_tokens <= sum(map(len, run)) < found.padded_tokens
    if batch_size == 1:
        assert found.run_tokens == sum(map(len, run))
    if batch_size == 500:
        assert found.run_tokens == unique_tokens(run)


def test_where_nothing_is_shared_and_all_are_as_long_nothing_is_saved(
    folder: Path, model_folder: Path
) -> None:
    rows = [Example("", {"text": letter}, "ab"[i % 2]) for i, letter in enumerate("cdefghij")]
    tiny.write_csv(folder / "train.csv", rows)
    settings = settings_for(
        model_folder,
        task={"line": "{text}:{label}", "label_words": {"a": " a", "b": " b"}},
        method={"num_demonstrations": 0},
        data={"validation_fraction": 0.0},
    )
    found = inspect_task(settings)
    assert found.checkup.lengths["min"] == found.checkup.lengths["max"]
    # All that a tree leaves out then is each answer's last token, which is predicted only.
    assert found.run_tokens == found.padded_tokens - len(rows)


@pytest.mark.parametrize(("asked", "limit"), [(None, 256), (1000, 256), (60, 60)])
def test_the_models_limit_is_respected(
    folder: Path, model_folder: Path, asked: int | None, limit: int
) -> None:
    long = Example("", {"text": "The dog was happy. " * 200}, "good")
    tiny.write_csv(folder / "train.csv", [*tiny.toy_examples(20), long, long])
    settings = settings_for(
        model_folder,
        model={"max_length": asked},
        method={"num_demonstrations": 0},
        data={"validation_fraction": 0.0},
    )
    found = inspect_task(settings)
    assert found.checkup.max_length == found.checkup.lengths["max"] == limit
    assert found.checkup.num_shortened == 2
    assert f"Limit: {limit} tokens; 2 texts shortened" in screen(found)


def test_the_same_settings_give_the_same_inspection(folder: Path, model_folder: Path) -> None:
    settings = settings_for(model_folder)
    assert inspect_task(settings) == inspect_task(settings)


def test_without_training_data_an_evaluation_set_is_looked_at(
    folder: Path, model_folder: Path
) -> None:
    (folder / "task.yaml").write_text(
        "name: toy\ntext: text\nlabels: [{name: bad}, {name: good}]\n"
        "template: {line: '{text} Mood:{label}'}\n"
    )
    found = inspect_task(
        settings_for(
            model_folder,
            data={"train": None, "tests": {"new": "test.csv"}},
            task={"name": "task.yaml"},
        )
    )
    assert found.overlap is None
    assert found.num_examples == {"new": 20}
    assert found.checkup.num_encoded == 20
    assert "Duplicates" not in screen(found)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_77_labels_with_odd_names_fit_on_the_screen(
    folder: Path, model_folder: Path, width: int
) -> None:
    names = [f"[bold]card_{i}[/]" for i in range(77)]
    rows = [Example("", {"text": f"[red]{e.texts['text']}"}, "") for e in tiny.toy_examples(154)]
    rows = [Example("", e.texts, names[i % 77]) for i, e in enumerate(rows)]
    tiny.write_csv(folder / "train.csv", rows)
    found = inspect_task(settings_for(model_folder, data={"validation_fraction": 0.0}))
    shown = screen(found, width)
    assert all(len(line) <= width for line in shown.splitlines())
    flat = " ".join(shown.split())
    assert "77 labels, with 1 ([bold]card_" in flat
    assert "... and 59 more, 59 of them split inside a word" in flat
    assert "2 texts" not in flat
    assert "\x1b" not in shown


def test_the_screen_says_what_was_found(folder: Path, model_folder: Path) -> None:
    found = inspect_task(settings_for(model_folder, data={"tests": {"new": "test.csv"}}))
    flat = " ".join(screen(found).split())
    for part in (
        "train 43, validation 5, new 20",
        f"Labels: bad {found.checkup.class_counts['bad']}, good",
        "Duplicates: 10 training texts stand in evaluation sets (new 10)",
        f"run {found.run_tokens:,} tokens",
        f"{found.padded_tokens:,}, {found.padded_tokens / found.run_tokens:.1f} times as many",
        "Limit: 256 tokens; no text shortened",
    ):
        assert part in flat


@pytest.mark.parametrize(
    ("sections", "kind", "message"),
    [
        ({"model": {"name": "./absent"}}, ModelError, "There is no folder ./absent"),
        (
            {"model": {"name": "nobody/nothing"}},
            ModelError,
            "tokenizer of 'nobody/nothing' cannot be had: .* give the folder of a model",
        ),
        ({"data": {"train": None}}, SettingsError, "No data"),
        ({"data": {"num_train": 500}}, DataError, "500 examples are asked for"),
        ({"task": {"line": "{txet}{label}"}}, PromptError, r"did you mean \{text\}"),
        ({"model": {"max_length": 8}}, PromptError, "even without its text"),
    ],
)
def test_what_a_run_would_refuse_is_refused_here(
    folder: Path, model_folder: Path, sections: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        inspect_task(settings_for(model_folder, **sections))


def test_texts_with_control_tokens_are_counted_and_one_is_shown(
    folder: Path, model_folder: Path
) -> None:
    examples = tiny.toy_examples(20)
    held = [Example(e.id, {"text": f"{e.texts['text']}</s>"}, e.label) for e in examples[:7]]
    tiny.write_csv(folder / "train.csv", [*held, *examples[7:]])
    settings = settings_for(model_folder, data={"train": "train.csv", "validation_fraction": 0})
    (line,) = (s for s in inspect_task(settings).checkup.advice if "control tokens" in s)
    assert " texts hold control tokens of the model (first: train.csv:" in line
    assert line.split(" of ")[0] in ("5", "6", "7")  # some may stand in the prompt
    allowed = settings_for(
        model_folder,
        data={"train": "train.csv", "validation_fraction": 0},
        task={"allow_control_tokens": True},
    )
    assert any("can end a turn" in s for s in inspect_task(allowed).checkup.advice)
