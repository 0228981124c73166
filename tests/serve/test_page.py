"""The files of the playground: nothing inline or from elsewhere, no text that becomes HTML."""

import re
import tomllib
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

FOLDER = Path(str(files("taskfit.serve") / "page"))
FILES = sorted(FOLDER.iterdir())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
MAKES_MORE_OF_TEXT = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|eval\(|new Function"
)
CALLED = re.compile(r"\bat\(\"([\w-]+)\"\)")


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page() -> Page:
    return Page((FOLDER / "index.html").read_text(encoding="utf-8"))


def test_no_script_style_or_handler_is_inline(page):
    assert not [tag for tag, of in page.tags if tag == "style" or "style" in of]
    assert not [tag for tag, of in page.tags if tag == "script" and not of.get("src")]
    assert not [name for _, of in page.tags for name in of if name.startswith("on")]


def test_every_file_that_is_named_is_there(page):
    named = {of[key] for _, of in page.tags for key in ("src", "href") if of.get(key)} - {"docs"}
    assert len(named) >= 3
    assert all((FOLDER.parent / name).is_file() for name in named)
    for path in SCRIPTS:
        for name in re.findall(r'from "\./([\w.]+)"', path.read_text(encoding="utf-8")):
            assert (FOLDER / name).is_file(), (path.name, name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_fetched_from_elsewhere(path):
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(?:https?:)?//[a-z]+\.[a-z]", text)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_turns_text_into_html_or_code(path):
    text = path.read_text(encoding="utf-8")
    assert not MAKES_MORE_OF_TEXT.search(text)


def test_scripts_find_what_they_look_for(page):
    ids = [of["id"] for _, of in page.tags if of.get("id")]
    assert len(ids) == len(set(ids))
    for path in SCRIPTS:
        assert set(CALLED.findall(path.read_text(encoding="utf-8"))) <= set(ids), path.name


def test_the_package_takes_every_file_along():
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    of_package = patterns["tool"]["setuptools"]["package-data"]["taskfit"]
    taken = {found for pattern in of_package for found in (root / "src" / "taskfit").glob(pattern)}
    assert set(FILES) <= taken
