"""What a fit tells on the screen: the classes it read, and which of them it confuses."""

import ast
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

import taskfit.cli.screen as screen_module
from taskfit.cli.screen import RichScreen, Terminal, mistakes_table, plain_table
from taskfit.data import Example
from taskfit.runs.labels import MOST_BARS, class_bars
from taskfit.runs.records import RunResult
from taskfit.screen import PlainScreen, show_what_can_be_shown


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


ODD = "[/INST] [bold]a[/bold] [urgent] :smile: [link=x]b"


def printed(*things: object, **options: Any) -> str:
    """Return what a terminal prints."""
    console = Terminal(file=io.StringIO(), **{"width": 200, **options})
    for thing in things:
        console.print(thing)
    return console.file.getvalue()


def test_brackets_and_colons_of_texts_are_shown_wherever_they_stand() -> None:
    table = plain_table("a", ODD)
    table.add_row(ODD, Text(ODD))
    found = printed(ODD, Text(ODD), table)
    assert found.count(ODD) == 5

    file = io.StringIO()
    screen = RichScreen(Terminal(file=file, force_terminal=True, width=300, color_system=None))
    with screen, screen.progress(ODD, 3) as advance:
        advance(1)
    screen.note(ODD)
    screen.record({"kind": "note", "text": ODD})
    assert file.getvalue().count(ODD) >= 3


def test_what_would_steer_the_terminal_is_shown_instead() -> None:
    text = "a\x1b[2Jb\x1b]0;title\x07c\x9bd\x7f\tü🙂"
    table = plain_table("x")
    table.add_row(text)
    found = printed(text, Text(text), table, force_terminal=True, color_system=None)
    assert "\x1b" not in found
    assert "\x9b" not in found
    assert found.count("a␛[2Jb␛]0;title") == 3
    assert "ü🙂" in found
    assert "\x1b" in printed(Text("a", style="red"), force_terminal=True, color_system="standard")


def test_a_file_has_lines_as_long_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    console = Terminal(file=io.StringIO())
    assert console.width > 1000
    assert console.page_width == 100
    monkeypatch.setenv("COLUMNS", "60")
    assert Terminal(file=io.StringIO()).page_width == 60


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_table_breaks_words_and_cuts_nothing_off(width: int) -> None:
    table = plain_table("model", "folder", ">accuracy")
    row = ("/a/very/long/place/of/a/model", "a-folder-name-of-many-letters-0123456789", "0.123")
    table.add_row(*row)
    lines = printed(table, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert sorted("".join("".join(lines[1:]).split())) == sorted("".join(row))


def test_a_terminal_that_moves_nothing_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for term, moves in (("xterm", True), ("dumb", False)):
        monkeypatch.setenv("TERM", term)
        console = Terminal(file=io.StringIO(), force_terminal=True)
        assert console.moves == moves
        with RichScreen(console).progress("reading", 5):
            pass
        assert ("reading: 5" in console.file.getvalue()) != moves


def test_nothing_but_the_terminal_prints_and_nothing_reads_markup() -> None:
    source = Path(screen_module.__file__).parents[1]
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich"):
                names = {alias.name for alias in node.names}
                assert node.module not in ("rich", "rich.markup", "rich.prompt"), where
                assert "Console" not in names or path == Path(screen_module.__file__), where
            if isinstance(node, ast.Attribute):
                assert node.attr != "from_markup", where
            if isinstance(node, ast.Call):
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                markup = given.get("markup")
                off = isinstance(markup, ast.Constant) and markup.value is False
                assert off or markup is None, where
                assert off or called not in ("TextColumn", "Panel"), where


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_terminal_that_cannot_show_a_character_shows_a_question_mark(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for show in (False, True):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
        monkeypatch.setattr(sys, "stdout", stream)
        if show:
            show_what_can_be_shown()
            Terminal().print("label 🙂 日本 \udc80")
        else:
            PlainScreen().note("label 🙂 日本 \udc80")
        found = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert found.split()[0] == "label"
        assert ("🙂 日本 ?" if encoding == "utf-8" else "? ?? ?") in found


def test_commands_show_labels_folders_and_texts_in_brackets(shell) -> None:
    rows = [f'"card {i}",[urgent]\n"sun {i}",[/INST]\n' for i in range(20)]
    (shell.folder / "b.csv").write_text("text,label\n" + "".join(rows))
    for command in (
        ("inspect", "b.csv", "--method", "tfidf"),
        ("fit", "b.csv", "--method", "tfidf", "--out", "runs [/x]/[r]"),
        ("predict", "runs [/x]/[r]", "b.csv", "-o", "[p].csv"),
        ("predict", "runs [/x]/[r]", "--text", "card [/b]"),
        ("evaluate", "runs [/x]/[r]", "b.csv", "--by", "gold"),
        ("runs", "runs [/x]"),
        ("compare", "b.csv", "--methods", "tfidf,majority", "--out", "[c]"),
        ("report", "[c]"),
    ):
        code, out, err = shell(*command)
        assert code == 0, (command, err)
        shown = out + err
        assert "[r]" in shown if command[0] == "runs" else "[" in shown
        if command[0] in ("inspect", "fit", "predict"):
            assert "[urgent]" in shown, command
            assert "[/INST]" in shown, command
    code, _, err = shell("fit", "[/no].csv")
    assert code == 2
    assert "[/no].csv" in err
