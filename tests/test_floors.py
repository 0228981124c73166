"""Imports between packages go downward only; a data package knows no PyTorch."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "taskfit"
FLOORS = {
    "errors": -1,
    "settings_base": -1,
    "method_settings": -0.5,
    "settings": 0,
    "files": 0,
    "yaml_text": 0,
    "data": 1,
    "remote": 1,
    "tasks": 1.5,
    "evaluation": 2,
    "settings_file": 2,
    "tree": 3,
    "models": 3.5,
    "methods": 4,
    "curate": 4.5,
    "training": 5,
    "experiments": 6,
    "estimator": 7,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,
}
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which floor they reach"
            names.add(str(node.module))
    return names


def test_there_is_something_to_check() -> None:
    assert {room(path) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_downward_only(path: Path) -> None:
    for name in imported(path):
        if name.startswith("taskfit."):
            target = name.split(".")[1]
            assert target == room(path) or FLOORS[target] < FLOORS[room(path)], name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_data_and_tasks_know_no_pytorch_and_files_stay_small(path: Path) -> None:
    if room(path) in ("data", "tasks", "evaluation", "tree"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & {"torch", "transformers", "peft"}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
