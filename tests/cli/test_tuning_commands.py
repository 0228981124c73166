"""`taskfit fit --method sft|dpo`, `generate`, `chat` and `judge`, as a user types them."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskfit.files import read_jsonl
from taskfit.runs.fit import fit
from taskfit.runs.tuning.model import Decoding, TunedModel
from taskfit.settings_file import load_settings

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
    assert answers[1] == f"{QUESTIONS[1]}\nno"  # what was piped in is shown
    assert answers[5] == f"{QUESTIONS[3]}\nbad maybe"
    assert "/reset" in answers[0]
    code, out = say(QUESTIONS[3], "/exit", "never read", options=("--stop", "maybe"))
    assert code == 0
    assert [part.strip() for part in out.split("you:")][1:] == [f"{QUESTIONS[3]}\nbad", "/exit"]

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


def test_ctrl_c_stops_an_answer_and_then_the_talk(
    shell: Any, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def stream(
        self: TunedModel, prompt: Any, decoding: Decoding, *, write: Callable[[str], None]
    ) -> str:
        asked.append([message.content for message in prompt])
        if len(asked) != 2:
            write("so far")
        if len(asked) < 3:
            raise KeyboardInterrupt
        return "so far"

    monkeypatch.setattr(TunedModel, "stream", stream)
    options = ("--chat-template", "plain")
    code, out = say("one", "two", "three", model=str(shell.model), options=options)
    assert code == 0
    # An answer that was stopped stays as far as it was shown; one without a word was never asked.
    assert asked == [["one"], ["one", "so far", "two"], ["one", "so far", "three"]]
    assert out.count("[stopped]") == 2

    def interrupted(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    code, out = say(model=str(shell.model), options=options)
    assert code == 130
    assert out.endswith("you: \n")


def test_lines_in_another_encoding_are_one_message(
    shell: Any, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    message = refused("chat", str(shell.model), "--chat-template", "plain")
    assert "Standard input is not utf-8: byte 0xe9" in message


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tuned.json", b"{", "tuned.json cannot be read"),
        ("tuned.json", b"[]", "tuned.json cannot be read"),
        ("tuned.json", b"\xff", "tuned.json cannot be read"),
        ("settings.yaml", b"a: [", "settings.yaml is not YAML"),
        ("settings.yaml", None, "There is no settings file"),
        ("adapter/adapter_config.json", b"{", "model of the run in run cannot be loaded"),
        ("adapter/adapter_model.safetensors", b"xx", "model of the run in run cannot be loaded"),
        ("adapter/adapter_model.safetensors", None, "adapter_model.safetensors missing"),
    ],
)
def test_a_damaged_run_is_one_message(
    shell: Any, refused: Callable[..., str], file: str, content: bytes | None, message: str
) -> None:
    extra = ["adapter.weights=lora", "training.epochs=1", "tuning.num_samples=0"]
    sets = [part for part in fit_arguments(shell, "sft", *extra) if "=" in part]
    given = ["method.name=sft", f"model.name={shell.model}", "data.train=rows.jsonl"]
    fit(load_settings(overrides=[*sets, *given]), Path("run"))
    path = Path("run", file)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    for command in (["chat", "run"], ["generate", "run", "--data", "rows.jsonl", "-o", "a.csv"]):
        assert message in refused(*command, "--device", "cpu")


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
        (
            ["generate", "MODEL", "--data", "rows.jsonl", "-o", "a.csv", "--temperature", "nan"],
            "a temperature of 0 or more",
        ),
        (
            ["generate", "MODEL", "--data", "rows.jsonl", "-o", "a.csv", "--seed", f"{2**64}"],
            "Invalid value for '--seed'",
        ),
        (["chat", "MODEL", "--seed", "-1"], "Invalid value for '--seed'"),
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
