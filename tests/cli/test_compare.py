"""`taskfit compare` and `taskfit methods` on a tiny model."""

import pandas as pd
import pytest

import tiny


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
    code, out, _ = shell(*arguments)
    assert code == 0
    assert "[1/9]" not in out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--methods", "magic"], "there is no such method. Allowed: majority, tfidf"),
        (["--sizes", "8,many"], "--sizes 'many': write whole numbers"),
        (["--budget", "soon"], "--budget soon: write a number and s, m or h"),
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
    assert "1 runs failed" in out
    assert "needs the model's name at the endpoint" in " ".join(out.split())


def test_methods_are_listed_with_the_ready_settings(shell) -> None:
    code, out, _ = shell("methods")
    assert code == 0
    assert "distill" in out
    assert "few_shot" in out


def test_a_ready_settings_file_is_taken_by_name(shell) -> None:
    tiny.write_csv(shell.folder / "train.csv", tiny.toy_examples(60))
    short = ["--set", "training.max_steps=2"]
    code, _, err = shell.fit("--config", "sentiment_head", *short)
    assert code == 0, err
    text = (shell.folder / "run" / "settings.yaml").read_text()
    assert "class_weights: balanced" in text
    code, _, err = shell.fit("--config", "no_such_file", out="other")
    assert code == 2
    assert "cola_t4, few_shot" in " ".join(err.split())
