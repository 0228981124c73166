from pathlib import Path

import pytest

from taskfit.errors import SettingsError
from taskfit.methods.table import METHODS
from taskfit.overrides import nested_setting
from taskfit.settings import RunSettings
from taskfit.settings_file import (
    dump_settings,
    find_settings,
    load_settings,
    preset_names,
    settings_differences,
    settings_reference,
)
from taskfit.yaml_text import parse_yaml


def test_defaults_give_way_to_the_file_the_file_to_flags_and_flags_to_set(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1\ntraining: {epochs: 2, batch_size: 4}\nmodel: {name: file}\n")
    found = load_settings(path, flags={"model": {"name": "flag"}, "seed": 3}, overrides=["seed=5"])
    assert (found.seed, found.model.name, found.training.epochs) == (5, "flag", 2)
    assert found.training.learning_rate == RunSettings().training.learning_rate


def test_all_unknown_keys_are_told_at_once_with_suggestions() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides=["training.learning_rte=1", "modle.name=x", "seed"])
    message = str(caught.value)
    assert "Did you mean training.learning_rate?" in message
    assert "Did you mean model?" in message
    assert "--set seed: write it as section.key=value" in message


def test_unknown_keys_and_wrong_values_are_told_together() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(
            overrides=["training.learning_rate=-1", "method.name=magic", "model=x", "sead=1"]
        )
    assert "model is 'x', but it is a section" in str(caught.value)
    assert "Unknown setting sead. Did you mean seed?" in str(caught.value)
    assert "training.learning_rate is -1" in str(caught.value)
    assert "method.name is 'magic'" in str(caught.value)
    assert "label_words" in str(caught.value)


@pytest.mark.parametrize("value", ["on", "off"])
def test_on_and_off_need_no_quotes_wherever_they_are_given(tmp_path: Path, value: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model: {{compile: {value}}}\ntraining:\n  tensorboard: {value}\n")
    found = load_settings(path)
    assert found.model.compile == value
    assert found.training.tensorboard == (value == "on")
    assert load_settings(overrides=[f"model.compile={value}"]).model.compile == value
    dump_settings(found, path)
    assert load_settings(path) == found


def test_labels_that_read_as_booleans_elsewhere_are_labels() -> None:
    found = load_settings(overrides=["task.label_words={yes: good, no: bad}", "data.label=no"])
    assert found.task.label_words == {"yes": "good", "no": "bad"}
    assert found.data.label == "no"
    assert load_settings(overrides=["method.prompt=false"]).method.prompt is False


def test_values_are_typed_and_reach_into_dictionaries() -> None:
    found = load_settings(
        overrides=[
            "training.learning_rate=1e-3",
            "data.tests.mine=a.csv",
            'task.label_words.good=" fine"',
            "task.label_words.bad=[' poor', ' weak']",
            "data.num_train=null",
        ]
    )
    assert found.training.learning_rate == 0.001
    assert found.data.tests == {"mine": "a.csv"}
    assert found.task.label_words == {"good": " fine", "bad": [" poor", " weak"]}


def test_written_settings_come_back_equal_and_differences_are_named(tmp_path: Path) -> None:
    found = load_settings(overrides=["task.line=' {a} -{label}'", "data.tests.x=y"])
    dump_settings(found, tmp_path / "s.yaml")
    assert load_settings(tmp_path / "s.yaml") == found
    other = load_settings(tmp_path / "s.yaml", overrides=["training.epochs=7"])
    assert settings_differences(found, other) == ["training.epochs: auto -> 7.0"]


@pytest.mark.parametrize("name", preset_names())
def test_every_ready_file_holds_settings_that_serve(name: str) -> None:
    settings = load_settings(find_settings(name)).resolved()
    assert settings != RunSettings()
    assert settings.method.name in METHODS


def test_a_ready_file_that_is_none_lists_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"no settings file few_shots.*cola_t4, few_shot"):
        find_settings("few_shots")


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no settings file"):
        load_settings(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(SettingsError, match="holds no settings"):
        load_settings(tmp_path / "list.yaml")


def test_every_setting_is_documented_and_the_reference_is_fresh() -> None:
    reference = settings_reference()
    assert "|  |" not in reference
    docs = Path(__file__).parents[1] / "docs" / "settings.md"
    assert docs.read_text(encoding="utf-8") == reference, (
        "run: python -m taskfit.settings_file > docs/settings.md"
    )


def test_full_weights_take_small_steps_unless_told_otherwise() -> None:
    full = load_settings(overrides=["adapter.weights=full"]).resolved()
    assert full.training.learning_rate == 2e-5
    told = load_settings(overrides=["adapter.weights=full", "training.learning_rate=1e-4"])
    assert told.resolved().training.learning_rate == 1e-4
    assert load_settings().resolved().training.learning_rate == 5e-4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=-1", "seed is -1: input should be greater than or equal to 0"),
        ("seed=4294967296", "seed is 4294967296: input should be less than or equal to 4294967295"),
        ("seed=true", "seed is True: input should be a number"),
        ("training.learning_rate=nan", "training.learning_rate is 'nan': .* a finite number"),
        ("training.learning_rate=.inf", "training.learning_rate is inf: .* a finite number"),
        ("training.max_grad_norm=1e400", "training.max_grad_norm is inf: .* a finite number"),
        ("training.warmup_fraction=-.inf", "training.warmup_fraction is -inf: .* a finite number"),
        ("training.batch_size=true", "training.batch_size is True: input should be a number"),
        ("training.epochs=1e30", r"training.epochs is 1e\+30: numbers go up to 10{15}"),
        (f"data.num_train={10**40}", "data.num_train is 10{40}: numbers go up to 10{15}"),
        ("adapter.lora_rank=1000000000", "adapter.lora_rank is 1000000000: .* or equal to 16384"),
        ("adapter.lora_dropout=0.999", "adapter.lora_dropout is 0.999: .* or equal to 0.99"),
        *(
            (f"model.device={name}", f"model.device is '{name}': allowed are auto, cpu, cuda and ")
            for name in ("mps", "xpu", "meta", "gpu", "CPU", "cuda:x", "cuda:-1", "cpu:0")
        ),
    ],
)
def test_every_setting_has_limits_however_it_is_given(
    tmp_path: Path, setting: str, message: str
) -> None:
    key, _, value = setting.partition("=")
    path = tmp_path / "run.yaml"
    section, _, name = key.rpartition(".")
    path.write_text(f"{section}:\n  {name}: {value}\n" if section else f"{name}: {value}\n")
    number = parse_yaml(value)
    for load in (
        lambda: load_settings(overrides=[setting]),
        lambda: load_settings(path),
        lambda: load_settings(flags=nested_setting(key, number)),
    ):
        with pytest.raises(SettingsError, match=message) as caught:
            load()
        assert len(str(caught.value).splitlines()) == 1


def test_a_file_gives_way_to_a_method_that_is_typed_and_says_what_it_leaves_out() -> None:
    notes: list[str] = []
    preset = find_settings("cola_t4")
    found = load_settings(preset, flags={"method": {"name": "head"}}, note=notes.append)
    assert (found.method.name, found.method.shown, found.adapter.weights) == ("head", 2, "qlora")
    assert notes == ["head does not read method.loss of cola_t4: left out"]

    found = load_settings(preset, overrides=["method.name=in_context"], note=notes.append)
    assert found.training.batch_size == found.training.epochs == "auto"
    assert found.adapter.weights == "qlora"
    assert "in_context does not read method.loss, adapter.lora_dropout" in notes[1]
    assert "training.batch_size" in notes[1]
    for typed, method in (("method.loss=labels", "head"), ("training.epochs=3", "tfidf")):
        with pytest.raises(SettingsError, match=f"{typed.split('=')[0]} is read by"):
            load_settings(preset, flags={"method": {"name": method}}, overrides=[typed])
    # The same method, or none: nothing is left out, and a file that is wrong stays so.
    same = load_settings(preset, flags={"method": {"name": "label_words"}}, note=notes.append)
    assert same == load_settings(preset, note=notes.append)
    assert len(notes) == 2


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("method", ["tfidf", "head", "in_context", "probe"])
def test_every_ready_file_serves_with_every_method(name: str, method: str) -> None:
    found = load_settings(find_settings(name), flags={"method": {"name": method}})
    assert found.resolved().method.name == method
