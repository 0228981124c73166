"""`taskfit inspect --orders` asks the model; `--run` asks a finished run."""

from pathlib import Path
from typing import Any

import pytest

LISTED = ("--set", "task.instruction=Is it {options:or}?")


def test_orders_are_tried_behind_the_usual_check(shell: Any) -> None:
    given = ("train.csv", "--model", str(shell.model), "--set", "model.dtype=float32")
    code, out, err = shell("inspect", *given, *LISTED, "--orders", "6")
    assert code == 0, err
    assert "Label words" in out
    assert "Order of the options, " in out
    assert "in the other order of the options" in out
    assert "total variation" in out


def test_a_finished_run_is_asked_about_its_own_texts_or_a_table(shell: Any) -> None:
    code, _, err = shell.fit(*LISTED)
    assert code == 0, err
    code, own, err = shell("inspect", "--run", "run")
    assert code == 0, err
    assert "20 texts" in own
    code, out, err = shell("inspect", "test.csv", "--run", "run", "--orders", "2")
    assert code == 0, err
    assert out.splitlines()[-1] == own.splitlines()[-1]
    assert "accuracy" in out
    texts = (shell.folder / "test.csv").read_text().replace("text,label", "text,other")
    (shell.folder / "texts.csv").write_text(texts)
    code, out, err = shell("inspect", "texts.csv", "--run", "run", "--orders", "2")
    assert code == 0, err
    assert ("20 texts" in out, "accuracy" in out) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train.csv", "--orders", "3"), "no order of options to try"),
        (("train.csv", "--orders", "1"), "greater than or equal to 2"),
        (("--run", "nowhere"), "nowhere"),
        (("--run", "nowhere", "--task", "cola"), "--task: a finished run (--run) has its own"),
    ],
)
def test_what_cannot_be_tried_ends_in_one_message(
    shell: Any, refused: Any, arguments: tuple[str, ...], said: str
) -> None:
    more = () if "--run" in arguments else ("--model", str(shell.model))
    assert said in refused("inspect", *arguments, *more)
    assert sorted(path.name for path in Path().iterdir()) == ["test.csv", "train.csv"]
