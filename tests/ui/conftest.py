"""A server of the page with a finished comparison behind it, made once a module."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the page needs the extra `serve`")

from fastapi.testclient import TestClient

import tiny
from taskfit.compare.grid import expand_grid, load_grid
from taskfit.compare.run import run_grid
from taskfit.screen import SilentScreen
from taskfit.ui.app import make_app
from taskfit.ui.budgets import BUDGETS, write_grid
from taskfit.ui.guard import key_of
from taskfit.ui.project import Project, find_project

ADDRESS = "http://127.0.0.1:8321"


def entered(home: Path, app) -> TestClient:
    """A browser that has opened the address that the terminal shows."""
    browser = TestClient(app, base_url=ADDRESS, raise_server_exceptions=True)
    assert browser.get(f"/?key={key_of(home)}").status_code == 200
    return browser


def base_settings(model: Path) -> dict:
    return {"model": {"name": str(model), "dtype": "float32"}}


@dataclass
class Page:
    """A server of the page: where its projects are, and a browser in front of it."""

    home: Path
    browser: TestClient

    def drop(self, file: Path, name: str = "") -> str:
        """Drop a file; return the project's id."""
        with file.open("rb") as body:
            answer = self.browser.post(
                "/api/projects", params={"name": name or file.name}, content=body.read()
            )
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def project(self, name: str) -> Project:
        return find_project(self.home, name)


@pytest.fixture
def page(tmp_path: Path, model_folder: Path) -> Page:
    app = make_app(tmp_path / "ui", base=base_settings(model_folder))
    return Page(tmp_path / "ui", entered(tmp_path / "ui", app))


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[tuple[Page, str]]:
    """A quick comparison of toy texts."""
    home = tmp_path_factory.mktemp("finished") / "ui"
    page = Page(home, entered(home, make_app(home, base=base_settings(model_folder))))
    name = page.drop(tiny.write_csv(home / "toy.csv", tiny.toy_examples(120)))
    project = page.project(name)
    assert page.browser.get(f"/api/projects/{name}/columns").status_code == 200
    project.choose(budget="quick")
    write_grid(project, BUDGETS["quick"])
    run_grid(
        expand_grid(load_grid(project.folder / "grid.yaml")),
        project.comparison,
        screen=SilentScreen(),
    )
    return page, name


@pytest.fixture
def copied(finished, tmp_path: Path, model_folder: Path) -> tuple[Page, str]:
    """The same in a folder of its own, to be changed."""
    page, name = finished
    shutil.copytree(page.home, tmp_path / "ui")
    app = make_app(tmp_path / "ui", base=base_settings(model_folder))
    return Page(tmp_path / "ui", entered(tmp_path / "ui", app)), name
