"""What a fit tells on the screen: the classes it read, and which of them it confuses."""

from taskfit.cli.screen import mistakes_table
from taskfit.data import Example
from taskfit.runs.labels import MOST_BARS, class_bars
from taskfit.runs.records import RunResult


def texts(*labels: str) -> list[Example]:
    return [Example(str(i), {"text": "a"}, label) for i, label in enumerate(labels)]


def test_classes_stand_in_order_of_their_share() -> None:
    lines = class_bars(texts("no", "[yes]", "[yes]", "[yes]"), ["no", "[yes]", "never"])
    assert [line.split()[:2] for line in lines] == [
        ["[yes]", "75%"],
        ["no", "25%"],
        ["never", "0%"],
    ]
    assert lines[0].count("#") == 3 * lines[1].count("#")
    assert "#" not in lines[2]


def test_very_many_classes_are_one_line() -> None:
    labels = [f"class {i}" for i in range(MOST_BARS + 1)]
    (line,) = class_bars(texts(*labels, "class 3"), labels)
    assert "13 classes, from 'class 3' (2)" in line
    assert not class_bars([], labels)


def test_a_fit_tells_its_classes_its_mistakes_and_what_to_do_next(shell) -> None:
    code, out, _ = shell.fit("--method", "majority")
    assert code == 0
    lines = out.splitlines()
    assert any("texts in text, labels in label" in line for line in lines)
    assert sum("50% ####" in line for line in lines) == 2
    start = lines.index("most frequent mistakes")
    assert lines[start + 2].split() in (
        ["new", "good", "bad", "10", "100%"],
        ["new", "bad", "good", "10", "100%"],
    )
    assert any(line.startswith("Next: taskfit predict run new.csv") for line in lines)


def test_a_run_without_mistakes_has_no_table_of_them(shell) -> None:
    shell.fit("--method", "majority")
    result = RunResult.load(shell.folder / "run")
    (evaluation,) = result.evaluations.values()
    evaluation.confusion_matrix[:] = [[10, 0], [0, 10]]
    assert mistakes_table(result) is None
