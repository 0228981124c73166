"""A method has the settings that it reads and no others; what it does not read is refused."""

import ast
import os
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

import tiny
from taskfit.compare.grid import expand_grid
from taskfit.errors import SettingsError
from taskfit.method_base import GUARDED
from taskfit.method_settings import METHOD_SETTINGS, as_method, method_settings
from taskfit.methods.table import METHODS
from taskfit.settings import RunSettings
from taskfit.settings_file import load_run_settings, load_settings, settings_from_dict
from taskfit.unread import is_read, readers_of

FIELDS = list(
    dict.fromkeys(
        key for kind in METHOD_SETTINGS.values() for key in kind.model_fields if key != "name"
    )
)
SECTIONS = {
    f"{section}.{key}": info
    for section in GUARDED
    for key, info in type(RunSettings.model_fields[section].default).model_fields.items()
}
OTHER_VALUES: dict[str, Any] = {
    "adapter.layers": "half",
    "adapter.targets": "mlp",
    "adapter.weights": "qlora",
    "method.blend": ["minilm"],
    "training.trackers": ["mlflow"],
    "tuning.columns": {"prompt": "question"},
}


def other_value(setting: str, annotation: Any, default: Any) -> Any:
    """Return a value that a setting may have and does not have by default."""
    if setting in OTHER_VALUES:
        return OTHER_VALUES[setting]
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType] or [annotation]
    if bool in kinds:
        return not default
    literals = [one for kind in (annotation, *kinds) if get_origin(kind) is Literal
                for one in get_args(kind)]  # fmt: skip
    if literals and set(literals) != {"auto"}:
        return next(one for one in literals if one != default)
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default / 2 + 0.3
    return "other" if str in kinds else 17


def value_of(key: str) -> Any:
    kind = METHOD_SETTINGS[readers_of(f"method.{key}")[-1]]
    info = kind.model_fields[key]
    return other_value(f"method.{key}", info.annotation, info.default)


def value_of_section(setting: str) -> Any:
    info = SECTIONS[setting]
    return other_value(setting, info.annotation, info.get_default(call_default_factory=True))


def old_file(name: str, **changes: Any) -> dict[str, Any]:
    """Return section `method` as versions wrote it that knew one list of settings for all."""
    defaults = {
        key: METHOD_SETTINGS[readers_of(f"method.{key}")[0]].model_fields[key].default
        for key in FIELDS
    }
    return {"method": {**defaults, **changes, "name": name}}


def test_every_method_of_the_table_has_its_settings() -> None:
    assert set(METHOD_SETTINGS) == {"auto", *METHODS}


@pytest.mark.parametrize("name", METHOD_SETTINGS)
def test_a_method_takes_what_it_reads_and_refuses_the_rest_naming_who_reads_it(name: str) -> None:
    own = METHOD_SETTINGS[name].model_fields
    changed = {key: value_of(key) for key in FIELDS}
    found = settings_from_dict(
        {"method": {"name": name, **{k: v for k, v in changed.items() if k in own}}}
    )
    assert found.method.model_dump() == {k: v for k, v in {"name": name, **changed}.items()
                                         if k in own}  # fmt: skip
    others = [key for key in FIELDS if key not in own]
    with pytest.raises(SettingsError) as caught:
        settings_from_dict({"method": {"name": name, **changed}})
    lines = str(caught.value).splitlines()
    assert len(lines) == len(others), "all are told at once, each once"
    for key, line in zip(others, lines, strict=True):
        readers = ", ".join(readers_of(f"method.{key}"))
        assert line.startswith(f"method.{key} is read by {readers}, not by {name}, which reads: ")


@pytest.mark.parametrize("name", METHOD_SETTINGS)
def test_so_it_is_with_the_sections_that_not_every_method_reads(name: str) -> None:
    kind, refused, taken = METHOD_SETTINGS[name], [], []
    for setting in SECTIONS:
        (taken if is_read(setting, kind) else refused).append(setting)

    def nested(settings: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {"method": {"name": name}}
        for setting in settings:
            section, _, key = setting.partition(".")
            found.setdefault(section, {})[key] = value_of_section(setting)
        return found

    assert settings_from_dict(nested(taken)).method.name == name
    if not refused:
        return
    with pytest.raises(SettingsError) as caught:
        settings_from_dict(nested(refused))
    assert str(caught.value).splitlines() == [
        f"{setting} is read by {', '.join(readers_of(setting))}, not by {name}."
        for setting in refused
    ]


@pytest.mark.parametrize("name", METHOD_SETTINGS)
def test_a_file_that_holds_every_setting_serves_where_they_have_their_defaults(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "settings.yaml"
    plain = RunSettings.model_validate({"method": {"name": name}})
    for settings in (plain, plain.resolved()):
        dumped = settings.model_dump()
        old = old_file(**dumped["method"])
        path.write_text(yaml.safe_dump({**dumped, **old}))
        assert load_settings(path) == settings
    old["method"] |= {key: value_of(key) for key in FIELDS if key not in dumped["method"]}
    path.write_text(yaml.safe_dump({**dumped, **old}))
    assert load_run_settings(path) == plain.resolved()


def test_what_is_asked_for_with_the_file_of_a_run_is_refused_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(old_file("tfidf", temperature=2.0)))
    assert load_settings(path, lenient_file=True).method == method_settings("tfidf")
    for given in ("method.temperature=2", "training.epochs=3"):
        with pytest.raises(SettingsError, match="not by tfidf"):
            load_settings(path, overrides=[given], lenient_file=True)
    with pytest.raises(SettingsError, match=r"method.temperature is read by distill, not by tfidf"):
        load_settings(path)


def test_another_method_takes_over_what_both_read() -> None:
    head = method_settings("head", num_demonstrations=3, prompt=False, start="zero")
    words = as_method(head, "label_words", loss="labels")
    assert words == method_settings("label_words", num_demonstrations=3, loss="labels")


def test_auto_for_questions_refuses_what_label_words_does_not_read() -> None:
    settings = load_settings(overrides=["method.prompt=false"])
    assert settings.resolved().method.name == "head"
    with pytest.raises(SettingsError, match=r"does not read method\.prompt"):
        settings.resolved(questions=True)


def test_settings_need_no_heavy_package() -> None:
    source = Path(__file__).parents[1] / "src" / "taskfit"
    for name in ("method_base", "method_settings", "unread", "settings", "settings_file"):
        tree = ast.parse((source / f"{name}.py").read_text())
        modules = {
            node.module.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
        }
        assert not modules & {"torch", "pandas", "transformers", "numpy"}, name


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    tiny.write_csv(Path("train.csv"), tiny.toy_examples(40))
    tiny.write_csv(Path("test.csv"), tiny.toy_examples(12, offset=100))
    names = [name for name in METHOD_SETTINGS if name not in ("remote", "sft", "dpo")]
    methods: dict[str, Any] = {name: {"method": {"name": name}} for name in names}
    methods["zero-shot"] = {"method": {"name": "in_context", "num_demonstrations": 0}}
    return {
        "base": {
            "data": {"train": "train.csv", "tests": {"new": "test.csv"}},
            "method": {"num_demonstrations": 2, "temperature": 2, "blend": []},
            "training": {"tensorboard": False, "epochs": 2},
        },
        "sizes": [8],
        "methods": methods,
    }


def test_runs_of_a_grid_take_what_they_read_and_are_called_as_before(grid: dict[str, Any]) -> None:
    """The folders are those that commit e87278b made, which gave every method every setting."""
    runs = {run.name: run for run in expand_grid(grid).runs}
    assert {run.folder for run in runs.values()} == {
        "majority-8-0-e947e765b6",
        "tfidf-8-0-80af8754a3",
        "knn-8-0-16207cb344",
        "probe-smollm2-135m-8-0-3826d9d73a",
        "zero-shot-smollm2-135m-all-0-a922156f33",
        "in_context-smollm2-135m-8-0-5cbb6c66e7",
        "encoder-8-0-fe9ba54581",
        "auto-smollm2-135m-8-0-7af2816f88",
        "label_words-smollm2-135m-8-0-2de7d4751f",
        "head-smollm2-135m-8-0-7af2816f88",
        "label_text-smollm2-135m-8-0-16a5c44e83",
        "distill-smollm2-135m-8-0-6ce06406c9",
    }
    assert runs["distill"].settings.method.model_dump()["temperature"] == 2
    assert runs["tfidf"].settings.method == method_settings("tfidf", blend=[])
    for run in runs.values():  # so that the settings in its folder serve by themselves
        assert settings_from_dict(run.settings.model_dump()) == run.settings


def test_what_no_method_of_a_grid_reads_is_refused(grid: dict[str, Any]) -> None:
    for name in ("distill", "auto"):
        del grid["methods"][name]
    with pytest.raises(SettingsError) as caught:
        expand_grid(grid)
    message = str(caught.value)
    assert message.startswith("method.temperature is read by distill, not by any method here: in_")
    del grid["base"]["method"]["temperature"]
    grid["methods"]["tfidf"]["method"]["num_neighbors"] = 3
    refused = expand_grid(grid).refused
    assert list(refused) == ["refused-tfidf-8"], "its own settings it must read"
    assert "method.num_neighbors is read by knn, not by tfidf" in refused["refused-tfidf-8"]


def test_the_command_ends_with_2_and_all_lines(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from taskfit.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    given = ("--set", "method.temperature=2", "--set", "remote.model=x", "--set", "tuning.beta=2")
    arguments = ["taskfit", "fit", "--data", "x.csv", "--out", "r", "--method", "tfidf", *given]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capfd.readouterr().err
    assert [line.split(" is read by ")[0].split()[-1] for line in told.splitlines()] == [
        "method.temperature",
        "tuning.beta",
        "remote.model",
    ]
    assert not os.path.exists("r")
