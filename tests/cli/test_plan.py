"""`taskfit plan` as a user runs it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import tiny
from taskfit.cli.plan import duration, plan
from taskfit.errors import TaskfitError

MODEL = {
    "model_type": "llama",
    "vocab_size": 480,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@dataclass
class Answer:
    code: int
    text: str


Run = Callable[..., Answer]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command as `main` does: the user's errors are one message and exit code 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    Path("config.json").write_text(json.dumps(MODEL))
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(plan)

    def call(*arguments: str) -> Answer:
        result = CliRunner().invoke(app, [*arguments])
        if isinstance(result.exception, TaskfitError):
            return Answer(2, str(result.exception))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return Answer(result.exit_code, " ".join(result.output.split()))

    return call


def test_a_plan_from_a_config_file_names_every_part(run: Run) -> None:
    answer = run("--config-file", "config.json", "--gpu", "t4", "--weights", "qlora")
    assert answer.code == 0
    for part in (
        "weights in NF4",
        "double quantization",
        "Adam moments",
        "kept for backward",
        "It fits.",
        "float16",  # a T4 has no bfloat16
        "65 TFLOP/s",
        "35% utilisation (assumed)",
        "padded to the longest",
    ):
        assert part in answer.text, answer.text


def test_the_parts_add_up_to_the_peak(run: Run) -> None:
    answer = run("--model", "smollm2-360m", "--gpu", "a100", "--weights", "full")
    rows = answer.text.split("memory GB ")[1].split(" of 84.9 GB")[0]
    numbers = [float(word) for word in rows.split() if word.count(".") == 1 and word[0].isdigit()]
    assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.05)


def test_a_table_is_measured_by_the_tokenizer_at_hand(run: Run, model_folder: Path) -> None:
    tiny.write_csv(Path("train.csv"), tiny.toy_examples(60))
    answer = run("--model", str(model_folder), "--data", "train.csv", "--gpu", "l4")
    assert answer.code == 0
    assert "tokens a prompt on average" in answer.text


def test_what_does_not_fit_comes_with_a_remedy(run: Run) -> None:
    given = ("--model", "llama-3-8b", "--weights", "qlora", "--gpu", "t4", "--tokens", "250")
    given += ("--method", "label_words", "--batch-size", "16")
    answer = run(*given, "--set", "adapter.layers=all")
    assert "It does not fit." in answer.text
    assert "training.gradient_checkpointing=true" in answer.text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("adapter.layers=all",), "layers all 2 are trained"),
        (
            ("adapter.layers=half",),
            "layers the upper 1 of 2 are trained; the others run once, what they give out is kept: "
            "0.16 GB in main memory",
        ),
        (
            ("adapter.layers=half", "adapter.cache_gigabytes=0.06"),
            "kept: 0.06 GB in main memory and 0.10 GB in the run",
        ),
        (
            ("adapter.layers=half", "adapter.cache_gigabytes=null"),
            "the others run in each step, without gradients; nothing is kept",
        ),
        (
            ("adapter.layers=half", "training.epochs=1"),
            "the others run in each step, without gradients; nothing is kept",
        ),
    ],
)
def test_one_line_says_which_layers_are_trained_and_what_is_kept(
    run: Run, options: tuple[str, ...], expected: str
) -> None:
    given = ("--config-file", "config.json", "--gpu", "t4", "--method", "label_words")
    given += ("--tokens", "200", "--examples", "12500")
    epochs = () if "training.epochs=1" in options else ("training.epochs=3",)
    answer = run(*given, *(word for option in (*options, *epochs) for word in ("--set", option)))
    assert answer.code == 0, answer.text
    assert expected in answer.text
    assert ("once, before: frozen layers" in answer.text) == ("kept: " in answer.text)


def test_a_method_that_only_reads_says_nothing_of_trained_layers(run: Run) -> None:
    answer = run("--config-file", "config.json", "--gpu", "t4", "--method", "in_context")
    assert answer.code == 0
    assert "are trained" not in answer.text


def test_on_a_cpu_kept_states_are_a_part_of_the_peak(run: Run) -> None:
    answer = run(
        *("--config-file", "config.json", "--gpu", "cpu", "--method", "label_words"),
        *("--tokens", "200", "--examples", "12500", "--set", "training.epochs=2"),
        *("--set", "adapter.layers=half"),
    )
    assert "kept states " in answer.text
    assert "of 2,500,000 tokens" in answer.text


def test_instructions_and_preferences_are_planned_from_lengths(run: Run) -> None:
    given = ("--config-file", "config.json", "--gpu", "t4", "--weights", "qlora")
    lengths = ("--tokens", "50", "--answer-tokens", "30", "--examples", "100")
    row = run(*given, *lengths, "--method", "sft")
    pair = run(*given, *lengths, "--method", "dpo")
    assert row.code == pair.code == 0
    assert "rows 100, 50 tokens a prompt, 0 shared by all, 30 an answer (assumed)" in row.text
    assert "pairs 100, 50 tokens a prompt, 0 shared by all, 30 an answer, of two" in pair.text
    for answer in (row, pair):
        assert "kept for backward" in answer.text
        assert "It fits." in answer.text
    assert "the reference" in pair.text
    assert "the reference" not in row.text
    assert "unique tokens (taskfit) 7,900 " in row.text  # 50 + 29, 100 times


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_rows_are_measured_by_the_tokenizer_at_hand(
    run: Run, model_folder: Path, method: str
) -> None:
    pairs = {"chosen": "yes indeed", "rejected": "no"} if method == "dpo" else {}
    rows = [{"instruction": f"Say {i}", "output": "yes", **pairs} for i in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--model", str(model_folder), "--method", method, "--data", "rows.jsonl")
    template = ("--set", "tuning.chat_template=headings")
    answer = run(*given, *template, "--gpu", "l4")
    assert answer.code == 0, answer.text
    assert "of them learned, on the mean of all; read as" in answer.text
    assert "no chat template" in run(*given, "--gpu", "l4").text
    refused = run(*given, *template, "--answer-tokens", "5", "--examples", "9")
    assert refused.code == 2
    assert "--answer-tokens, --examples would have no effect" in refused.text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--gpu", "a1000"), ["no figures for the card 'a1000'", "Did you mean a100?", "t4"]),
        (("--model", "./nowhere"), ["no folder ./nowhere", "--config-file", "llama-3-8b"]),
        (("--model", "owner/nothing"), ["'owner/nothing' cannot be had", "--config-file"]),
        (("--config-file", "none.json"), ["--config-file none.json", "beside the model's weights"]),
        (("--tokens", "5", "--shared", "5"), ["--tokens 5 --shared 5"]),
        (("--method", "majority"), ["majority needs no causal language model", "label_words"]),
        (("--method", "knn"), ["knn needs no causal language model", "method.retriever=model"]),
        (("--answer-tokens", "5"), ["--answer-tokens is for --method sft and dpo"]),
        (("--method", "sft", "--answer-tokens", "0"), ["--answer-tokens 0", "at least one token"]),
        (
            ("--method", "dpo", "--data", "rows.json", "--model", "llama-3-8b"),
            ["tokenizer of 'llama-3-8b'", "--answer-tokens"],
        ),
        (("--task", "cola", "--model", "llama-3-8b"), ["tokenizer of 'llama-3-8b'", "--tokens"]),
    ],
)
def test_mistakes_end_in_one_message_and_exit_code_2(
    run: Run, arguments: tuple[str, ...], expected: list[str]
) -> None:
    given = ("--config-file", "config.json") if "--model" not in arguments else ()
    given = () if "--config-file" in arguments else given
    answer = run(*given, *arguments)
    assert answer.code == 2
    for part in expected:
        assert part in answer.text


def test_durations_are_readable() -> None:
    assert [duration(s) for s in (3.14159, 2160, 9000)] == ["3.14 s", "36 min", "2.5 h"]


def test_flags_of_a_training_have_no_part_in_plans_without_one(shell) -> None:
    given = ("plan", "--model", "smollm2-135m", "--gpu", "t4", "--tokens", "20")
    _, plain, _ = shell(*given, "--method", "in_context")
    code, out, err = shell(*given, "--method", "in_context", "--batch-size", "4", "--epochs", "2")
    assert (code, out) == (0, plain)
    assert "--batch-size has no part" in err
    assert "--epochs has no part" in err
    code, _, err = shell("plan", "--method", "tfidf", "--batch-size", "4")
    assert code == 2
    assert "nothing to plan" in err
