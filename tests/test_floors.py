"""Imports between packages go downward only; a data package knows no PyTorch."""

import ast
import graphlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "taskfit"
FLOORS = {
    # Known to all, know nobody but each other.
    "errors": 0,
    "settings_base": 0,
    "start_settings": 0,
    "method_base": 0,
    "method_settings": 0,
    "unread": 0,
    "remote_settings": 0,
    "search_settings": 0,
    "settings": 0,
    "settings_file": 0,
    "overrides": 0,
    "yaml_text": 0,
    "files": 0,
    "lock": 0,
    "screen": 0,
    "data": 1,
    "stats": 1,
    "tree": 1,
    "remote": 1,
    "tasks": 2,
    "models": 3,
    "methods": 4,
    "training": 5,
    "curate": 5,
    "runs": 6,
    "report": 7,
    "search": 7,
    "plan": 7,
    "export": 7,
    "compare": 8,
    "labels": 8,
    "serve": 8,
    "ui": 8,
    "cli": 9,
    "estimator": 9,
    "__main__": 10,
    "__init__": 10,
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


def module(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


def modules_imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, `from package import module` among them."""
    ours = {module(p) for p in FILES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & ours or {str(node.module)}
    return (found & ours) - {module(path)}


def test_there_is_something_to_check() -> None:
    assert {room(path) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_downward_only(path: Path) -> None:
    for name in imported(path):
        if name.startswith("taskfit."):
            target = name.split(".")[1]
            here, there = FLOORS[room(path)], FLOORS[target]
            assert target == room(path) or there < here or here == there == 0, name


def test_no_module_is_its_own_cause() -> None:
    """Imports have no cycle between modules, those for type checking included."""
    graph = {module(path): modules_imported(path) for path in FILES}
    order = graphlib.TopologicalSorter(graph)
    order.prepare()  # raises CycleError, naming the cycle


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_data_and_tasks_know_no_pytorch_and_files_stay_small(path: Path) -> None:
    if room(path) in ("data", "tasks", "stats", "tree"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & {"torch", "transformers", "peft"}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
