"""A question for help and a wrong command line are answered before anything heavy is imported."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from taskfit.models.packaged import packaged_folder, packaged_tokenizer

CODE = """
import sys
from taskfit.cli.main import main
try:
    main()
finally:
    print("imported:", *sorted({"torch", "transformers", "pandas"} & sys.modules.keys()))
"""


def start(*arguments: str) -> tuple[int, str, str]:
    """Run `taskfit` in a process of its own; its output ends in what heavy things it imported."""
    command = [sys.executable, "-c", CODE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["fit", "--help"], ["--version"], ["methods"]], ids=" ".join
)
def test_a_question_is_answered_without_heavy_imports(arguments: list[str]) -> None:
    code, out, err = start(*arguments)
    assert code == 0, err
    assert out.endswith("imported:\n")


def test_the_version_is_that_of_the_package() -> None:
    _, out, _ = start("--version")
    assert out.splitlines()[0] == f"taskfit {metadata.version('taskfit')}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["fit", "--nonsense"], "No such option: --nonsense"),
        (["predict"], "Missing argument"),
        (["fit"], "taskfit fit mine.csv"),
        (["fit", "x.csv", "--data", "y.csv"], "x.csv and --data y.csv are two tables"),
        (["fit", "x.csv", "--out", "a", "--resume", "b"], "Give --out FOLDER"),
        (["fit", "x.csv", "--methods", "head,probe"], "compare TABLE --methods head,probe"),
        (["fit", "x.csv", "--method", "a", "--method", "b"], "takes one method: --method a"),
        (["plan", "x.csv", "--methods", "head"], "takes one method: --method head"),
        (["evaluate", "run"], "taskfit evaluate run FILE"),
        (["generate", "model", "-o", "y.csv"], "taskfit generate model FILE -o y.csv"),
        (["fit", "--out", "r", "--method", "nonsense"], "method.name"),
        (["fit", "--out", "r", "--set", "training.nonsense=1"], "training.nonsense"),
        (["fit", "--out", "r", "--search", "0"], "--search 0"),
        (["predict", "run", "x.csv", "-o", "y.csv", "--per-class"], "--per-class"),
        (["predict", "run", "x.csv", "-o", "y.csv", "--options", "x"], "--options x"),
        (["inspect", "--config", "nowhere"], "no settings file nowhere"),
        (["prompts", "--table"], "--table writes"),
        (["compare", "--budget", "soon"], "--budget soon"),
        (["compare", "--sizes", "some"], "--sizes 'some'"),
        (["compare", "--gpus-per-run", "1"], "are for --ray"),
        (["compare", "--max-memory", "much"], "--max-memory much"),
        (["report", "folder", "--max-latency", "little"], "--max-latency little"),
        (["plan", "--set", "training.nonsense=1"], "training.nonsense"),
        (["curate", "x.jsonl", "--column", "x"], "--column x"),
        (["export", "run", "-o", "out"], "Give one of --merge"),
        (["generate", "model", "--data", "x", "-o", "y.csv", "--top-p", "2"], "--top-p 2.0"),
        (["chat", "model", "--temperature", "-1"], "--temperature -1.0"),
        (["judge", "run", "--test", "x"], "--test x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_refused_without_heavy_imports(
    arguments: list[str], message: str
) -> None:
    code, out, err = start(*arguments)
    assert code == 2, err
    assert message in " ".join(err.split())
    assert out.endswith("imported:\n")


def test_predictions_of_a_run_without_a_model_never_load_pytorch(shell: Any) -> None:
    code, _, err = shell("fit", "--data", "train.csv", "--method", "tfidf", "--out", "run")
    assert code == 0, err
    code, out, err = start("predict", "run", "test.csv", "-o", "labelled.csv")
    assert code == 0, err
    assert out.endswith("imported: pandas\n")


def test_a_dry_run_of_a_comparison_never_loads_pytorch(shell: Any) -> None:
    methods = ("--methods", "tfidf,zero-shot,head,auto")
    code, out, err = start("compare", "--data", "train.csv", *methods, "--dry-run")
    assert code == 0, err
    assert out.endswith("imported: pandas\n")


@pytest.mark.model
def test_an_inspection_with_a_packaged_model_never_loads_pytorch(shell: Any) -> None:
    code, out, err = start("inspect", "--data", "train.csv")
    assert code == 0, err
    assert out.splitlines()[-1] == "imported: pandas transformers"


@pytest.mark.model
def test_a_packaged_tokenizer_is_the_one_that_a_run_reads() -> None:
    found, limit = packaged_tokenizer("smollm2-135m")
    folder = packaged_folder("smollm2-135m")
    expected = AutoTokenizer.from_pretrained(folder)
    assert type(found) is type(expected)
    assert found.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()
    assert found.special_tokens_map == expected.special_tokens_map
    assert found.chat_template == expected.chat_template
    assert limit == AutoConfig.from_pretrained(folder).max_position_embeddings


def test_the_shell_can_complete_commands() -> None:
    asked = {"_TASKFIT_COMPLETE": "complete_bash", "COMP_WORDS": "taskfit ins", "COMP_CWORD": "1"}
    done = subprocess.run(
        [Path(sys.executable).with_name("taskfit")],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["inspect"]
