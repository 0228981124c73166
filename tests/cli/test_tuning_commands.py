"""`taskfit fit --method sft|dpo`, `generate`, `chat` and `judge`, as a user types them."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskfit.files import read_jsonl

NAMES = ("dog", "cat", "bird", "train")
ANSWERS = ("yes", "no", "good", "bad maybe")
QUESTIONS = [f"Is the {name} warm?" for name in NAMES]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


@pytest.fixture(autouse=True)
def _files(shell: Any) -> None:
    pairs = list(zip(QUESTIONS, ANSWERS, strict=True))
    rows = [{"instruction": q, "output": a} for q, a in pairs]
    write_rows(shell.folder / "rows.jsonl", rows)
    rows = [{"prompt": q, "chosen": a, "rejected": ANSWERS[0]} for q, a in pairs[1:]]
    write_rows(shell.folder / "pairs.jsonl", rows)


def fit_arguments(shell: Any, method: str, *extra: str, out: str = "run") -> list[str]:
    settings = (
        *("model.dtype=float32", "model.device=cpu", "tuning.chat_template=headings"),
        *("training.tensorboard=false", "training.batch_size=4", "tuning.max_new_tokens=8"),
        *("data.validation_fraction=0", "training.epochs=50", "training.learning_rate=0.003"),
        *("adapter.weights=full", *extra),
    )
    sets = [part for setting in settings for part in ("--set", setting)]
    data = "pairs.jsonl" if method == "dpo" else "rows.jsonl"
    arguments = ["fit", "--method", method, "--data", data, "--model", str(shell.model)]
    return [*arguments, *sets, "--out", out]


@pytest.fixture
def say(shell: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Talk to a run: lines typed, then the end of the input."""

    def run(*lines: str, options: tuple[str, ...] = (), model: str = "run") -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        code, out, err = shell("chat", model, "--device", "cpu", "--max-new-tokens", "8", *options)
        return code, out + err

    return run


def test_from_rows_to_a_conversation(shell: Any, say: Any) -> None:
    rows = [{"instruction": q, "output": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    write_rows(shell.folder / "held.jsonl", [{**rows[0], "instruction": "Is the dog cold?"}])
    code, out, err = shell(*fit_arguments(shell, "sft", "data.tests.held=held.jsonl"))
    assert code == 0, err
    assert "perplexity" in out
    assert "before" in out
    assert "report: run/report.html" in out
    names = {path.name for path in (shell.folder / "run").iterdir()}
    assert names >= {"tuned.json", "model", "result.json", "samples.jsonl", "report.html"}
    assert "checkpoints" not in names

    options = ["--max-new-tokens", "8", "--device", "cpu"]
    code, out, err = shell("generate", "run", "--data", "rows.jsonl", "-o", "out.jsonl", *options)
    assert code == 0, err
    assert "4 answers: out.jsonl" in out
    found = read_jsonl(shell.folder / "out.jsonl")
    assert [row["answer"] for row in found] == [row["reference"] for row in found] == list(ANSWERS)

    # An answer is the same whatever was said before a reset, and the end of input ends the talk.
    code, out = say(QUESTIONS[1], QUESTIONS[3], "", "/reset", QUESTIONS[3])
    assert code == 0
    answers = [part.strip() for part in out.split("you:")]
    assert answers[1] == "no"
    assert answers[5] == "bad maybe"
    assert "/reset" in answers[0]
    code, out = say(QUESTIONS[3], "/exit", "never read", options=("--stop", "maybe"))
    assert code == 0
    assert [part.strip() for part in out.split("you:")][1:] == ["bad", ""]

    code, out, err = shell("judge", "run", "--data", "held.jsonl", *options)
    assert code == 0, err
    assert "exact match" in out
    judged = json.loads((shell.folder / "run" / "judgement.json").read_text())
    assert judged["rows"].keys() == {"base", "tuned"}

    (shell.folder / "mood.yaml").write_text(
        "name: mood\nversion: 1\ntext: text\nlabels: [{name: bad}, {name: good}]\n"
        'template: {line: "Text: {text}\\nLabel:{label}"}\n'
    )
    task = ["--task", "mood.yaml", "--test", "new=test.csv", "--max-test", "6"]
    code, out, err = shell("judge", "run", *task, "--device", "cpu")
    assert code == 0, err
    assert "mood.yaml new (n = 6)" in out


def test_preferences_end_in_a_table_of_rewards(shell: Any) -> None:
    extra = ["data.validation_fraction=0.4", "training.epochs=2", "adapter.weights=lora"]
    code, out, err = shell(*fit_arguments(shell, "dpo", *extra))
    assert code == 0, err
    assert "reward accuracy" in out
    assert "reward margin" in out
    records = read_jsonl(shell.folder / "run" / "metrics.jsonl")
    assert {"reward_margin", "reward_accuracy"} <= records[-1].keys() | records[-2].keys()


def test_a_conversation_that_does_not_fit_is_told_and_goes_on(shell: Any, say: Any) -> None:
    code, out = say("warm " * 300, model=str(shell.model), options=("--chat-template", "plain"))
    assert code == 0
    assert "more than the 256 tokens" in " ".join(out.split())
    assert out.count("you:") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--method", "sft", "--out", "run"], "needs rows to learn from"),
        (
            ["fit", "--method", "dpo", "--data", "rows.jsonl", "--out", "run"],
            "does not learn from. Use --method sft",
        ),
        (
            ["fit", "--method", "sft", "--data", "lame.jsonl", "--out", "run"],
            "1 of 2 rows cannot be used. line 2: output is missing",
        ),
        (["fit", "--method", "sft", "--data", "empty.jsonl", "--out", "run"], "empty.jsonl"),
        (["fit", "--method", "sft", "--data", "nowhere.jsonl", "--out", "run"], "nowhere.jsonl"),
        (
            ["fit", "--method", "sft", "--data", "rows.jsonl", "--search", "3", "--out", "run"],
            "does not read search",
        ),
        (["generate", "classifier", "--data", "rows.jsonl", "-o", "a.csv"], "use `taskfit predict"),
        (["generate", "half", "--data", "rows.jsonl", "-o", "a.csv"], "is not finished"),
        (["generate", "MODEL", "--data", "rows.jsonl", "-o", "a.txt"], ".csv"),
        (["generate", "MODEL", "--data", "rows.jsonl", "-o", "a.csv"], "has no chat template"),
        (
            ["generate", "MODEL", "--data", "rows.jsonl", "-o", "a.csv", "--max-new-tokens", "0"],
            "at least 1 token",
        ),
        (
            ["generate", "MODEL", "--data", "long.jsonl", "-o", "a.csv", *("--kind", "text")],
            "1 of 1 prompts leave no room for an answer",
        ),
        (
            ["generate", "MODEL", "--data", "rows.jsonl", "-o", "a.csv", "--column", "prompt"],
            "write it as FIELD=COLUMN",
        ),
        (["generate", "MODEL", "--data", "empty.jsonl", "-o", "a.csv"], "empty.jsonl"),
        (["chat", "MODEL"], "has no chat template"),
        (["chat", "MODEL", "--chat-template", "nonsense"], "no chat template nonsense"),
        (["chat", "half"], "is not finished"),
        (["chat", "nowhere/model"], "nowhere/model"),
        (["judge", "half", "--data", "rows.jsonl"], "was interrupted"),
        (["judge", "half"], "Nothing to judge on"),
        (["judge", "half", "--task", "cola", "--task", "mnli", "--test", "a=b"], "one --task"),
    ],
)
def test_what_cannot_be_done_is_one_message(
    shell: Any, refused: Callable[..., str], arguments: list[str], message: str
) -> None:
    write_rows(
        shell.folder / "lame.jsonl", [{"instruction": "a", "output": "b"}, {"instruction": "a"}]
    )
    write_rows(shell.folder / "long.jsonl", [{"text": "warm " * 300}])
    (shell.folder / "empty.jsonl").write_text("")
    for name, file in (("classifier", "classifier.json"), ("half", "settings.yaml")):
        (shell.folder / name).mkdir()
        (shell.folder / name / file).write_text("{}")
    given = [str(shell.model) if part == "MODEL" else part for part in arguments]
    if given[0] == "fit":
        given += ["--model", str(shell.model)]
    assert message in refused(*given)
    assert not (shell.folder / "a.csv").exists()
