"""`taskfit compare` and `taskfit methods` on a tiny model."""

import json
from pathlib import Path

import pandas as pd
import pytest

import tiny
from taskfit.cli.limits import parse_bytes, parse_seconds
from taskfit.cli.report import report
from taskfit.errors import CheckpointError


def flags(shell) -> list[str]:
    settings = ("model.dtype=float32", "training.tensorboard=false", "data.max_validation=6")
    sets = [part for setting in settings for part in ("--set", setting)]
    return ["--data", "train.csv", "--test", "new=test.csv", "--model", str(shell.model), *sets]


def test_a_comparison_ends_in_a_table_of_all_runs_and_goes_on_where_it_was(shell) -> None:
    arguments = ["compare", *flags(shell), "--methods", "majority,tfidf,zero-shot", "--seeds", "2"]
    arguments += ["--sizes", "8,16", "--out", "grid"]
    code, out, err = shell(*arguments)
    assert code == 0, err
    assert "9 runs: " in out
    table = pd.read_csv(shell.folder / "grid" / "results.csv")
    assert len(table) == 9
    assert set(table["method"]) == {"majority", "tfidf", "in_context"}
    assert "Report: grid/report.html" in out
    advice, _, _ = (shell.folder / "grid" / "advice.txt").read_text().partition("Details.")
    assert " ".join(advice.split()) in " ".join(out.split())
    assert "Details: grid/advice.txt" in out
    code, out, _ = shell(*arguments)
    assert code == 0
    assert "[1/9]" not in out


def test_the_draws_of_a_method_are_one_line_of_the_table_on_screen(shell) -> None:
    arguments = ["compare", *flags(shell), "--methods", "majority,tfidf", "--seeds", "2"]
    code, out, err = shell(*arguments, "--sizes", "8", "--out", "grid")
    assert code == 0, err
    lines = out.splitlines()
    (place,) = [i for i, line in enumerate(lines) if line.startswith("tfidf ")]
    accuracy = pd.read_csv(shell.folder / "grid" / "results.csv").query("name == 'tfidf'").accuracy
    told = f"tfidf tfidf 8 new 20 2 {accuracy.mean():.3f}"
    assert " ".join(lines[place].split()).startswith(told)
    spread = f"{accuracy.min():.3f} to {accuracy.max():.3f}"
    assert lines[place + 1].strip().startswith(spread)
    assert max(map(len, lines[place : place + 2])) <= 80


def test_a_dry_run_shows_the_runs_in_their_order_and_runs_none(shell) -> None:
    arguments = ["compare", *flags(shell), "--methods", "tfidf,zero-shot", "--sizes", "8,16"]
    code, out, err = shell(*arguments, "--dry-run", "--out", "grid")
    assert code == 0, err
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert [row[:2] for row in rows[1:]] == [["1", "tfidf"], ["2", "tfidf"], ["3", "zero-shot"]]
    assert all(row[-2:] == ["to", "do"] for row in rows[1:])
    assert not (shell.folder / "grid").exists()


def test_without_an_evaluation_set_a_part_of_the_table_is_held_out(shell) -> None:
    arguments = ["compare", "--data", "train.csv", "--methods", "majority,tfidf"]
    code, out, err = shell(*arguments, "--sizes", "8,16", "--seeds", "2", "--out", "grid")
    assert code == 0, err
    assert "30% of the training table, the same for every run, is held out as `test`" in (
        " ".join(out.split())
    )
    table = pd.read_csv(shell.folder / "grid" / "results.csv")
    assert set(table["evaluation"]) == {"test"}
    assert set(table["num_examples"]) == {18}
    prints = {
        json.loads(path.read_text())["test"]
        for path in (shell.folder / "grid" / "runs").glob("*/data.json")
    }
    assert len(prints) == 1


def test_a_report_is_made_anew_with_other_limits(shell, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", *flags(shell), "--methods", "majority,tfidf", "--sizes", "8"]
    code, _, err = shell(*arguments, "--out", "grid")
    assert code == 0, err
    earlier = {
        path: path.read_bytes() for path in (shell.folder / "grid").glob("*") if path.is_file()
    }
    report(Path("grid"), max_latency="1h", max_memory="1.5GB")
    name = "memory-1500MB-latency-3600s"
    told = capsys.readouterr().out
    assert f"Report: grid/report-{name}.html" in told
    assert "The limits exclude nothing." in (
        (shell.folder / "grid" / f"advice-{name}.txt").read_text(encoding="utf-8")
    )
    assert (shell.folder / "grid" / f"report-{name}.html").is_file()
    assert {path: path.read_bytes() for path in earlier} == earlier
    with pytest.raises(CheckpointError, match="no finished run"):
        report(Path("elsewhere"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("0.2s", 0.2), ("30m", 1800), (" 2 H ", 7200)]
)
def test_a_duration_is_read_with_its_unit(text: str, seconds: float) -> None:
    assert parse_seconds("--budget", text) == pytest.approx(seconds)


def test_memory_is_read_with_its_unit() -> None:
    assert parse_bytes("--max-memory", "4GB") == 4 * 10**9
    assert parse_bytes("--max-memory", "1.5 mb") == 1_500_000
    assert parse_bytes("--max-memory", None) is None


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--methods", "magic"], "there is no such method. Allowed: majority, tfidf"),
        (["--sizes", "8,many"], "--sizes 'many': write whole numbers"),
        (["--budget", "soon"], "--budget soon: write a number above 0 and ms, s, m or h"),
        (["--max-memory", "4"], "--max-memory 4: write a number above 0 and KB, MB, GB or TB"),
        (["--max-latency", "-1s"], "--max-latency -1s: write a number above 0 and ms, s, m"),
        (["--max-train-time", "0h"], "--max-train-time 0h: write a number above 0"),
        (["--gpus-per-run", "1"], "are for --ray"),
        (["--config", "none.yaml"], "no grid file none.yaml"),
        (["--set", "training.epochs"], "write it as section.key=value"),
    ],
)
def test_what_cannot_be_compared_is_refused(shell, refused, extra: list[str], message: str) -> None:
    assert message in refused("compare", *flags(shell), *extra)


def test_a_failed_run_is_told_and_the_others_stand(shell) -> None:
    arguments = ["compare", *flags(shell), "--methods", "majority,remote", "--sizes", "8"]
    code, out, _ = shell(*arguments, "--out", "grid")
    assert code == 0
    assert "1 runs failed and 0 were not started" in out
    assert "  taskfit compare --data train.csv --test new=test.csv" in out
    assert "needs the model's name at the endpoint" in " ".join(out.split())


def test_a_comparison_of_which_nothing_finished_does_not_end_well(shell) -> None:
    code, out, _ = shell(*["compare", *flags(shell), "--methods", "remote", "--out", "grid"])
    assert code == 2
    assert "1 runs failed" in out


def test_methods_are_listed_with_the_ready_settings(shell) -> None:
    code, out, _ = shell("methods")
    assert code == 0
    assert "distill" in out
    assert "few_shot" in out


def test_a_ready_settings_file_is_taken_by_name(shell) -> None:
    tiny.write_csv(shell.folder / "train.csv", tiny.toy_examples(60))
    short = ["--set", "training.max_steps=2"]
    code, _, err = shell.fit("--config", "sentiment_head", "--method", "head", *short)
    assert code == 0, err
    text = (shell.folder / "run" / "settings.yaml").read_text()
    assert "class_weights: balanced" in text
    code, _, err = shell.fit("--config", "no_such_file", out="other")
    assert code == 2
    assert "cola_t4, few_shot" in " ".join(err.split())
