"""A run knows the models it was made from: it finds them again, and refuses others."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import taskfit
import tiny
from taskfit.cli.main import app
from taskfit.compare.grid import expand_grid
from taskfit.compare.judge import judge
from taskfit.compare.run import run_grid
from taskfit.errors import CheckpointError, ModelError, TrainingError
from taskfit.export.export import export_run
from taskfit.models.whole import NotFiniteError
from taskfit.runs.bases import BASES_FILE, find_bases, read_bases
from taskfit.runs.classifier import ARRAYS
from taskfit.runs.evaluate import evaluate_file
from taskfit.runs.fit import fit
from taskfit.runs.load import load_run
from taskfit.runs.predict import predict_file
from taskfit.runs.saved import ADAPTER
from taskfit.runs.tuning.generate import generate_file
from taskfit.runs.tuning.model import Decoding
from taskfit.screen import SilentScreen
from taskfit.settings_file import load_settings
from tiny_screens import Killed, NotingScreen

WEIGHTS = "model.safetensors"
FEW = Decoding(max_new_tokens=2)
OPTIONS: dict[str, Any] = {"encoding": "utf-8", "device": "cpu", "screen": SilentScreen()}
OF_RUN = ("training.tensorboard=false", "training.max_steps=2", "model.dtype=float32")
OTHER = "other weights"


def other_weights(folder: Path, change: Callable[[str, Any], Any] = lambda _, w: w * 1.01) -> None:
    """Write other numbers into a model's file."""
    weights = {key: change(key, tensor) for key, tensor in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, encoder_folder: Path
) -> Path:
    """A folder with a base, an encoder, tables, a run of labels with a blend, and a tuned one."""
    home = tmp_path_factory.mktemp("bases") / "home"
    shutil.copytree(model_folder, home / "base")
    shutil.copytree(encoder_folder, home / "enc")
    tiny.write_csv(home / "train.csv", tiny.toy_examples(24))
    tiny.write_csv(home / "test.csv", tiny.toy_examples(12, offset=100))
    rows = [{"prompt": f"Is {n} warm?", "completion": "yes"} for n in ("a", "b", "c", "d")]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = Path.cwd()
    os.chdir(home)  # all names are relative
    try:
        own = ["data.train=train.csv", "method.name=head", "method.blend=[model, enc]"]
        settings = load_settings(overrides=[*OF_RUN, *own, "model.name=base"])
        fit(settings, Path("labels"), baselines=False)
        own = ["data.train=rows.jsonl", "method.name=sft", "tuning.num_samples=0"]
        settings = load_settings(
            overrides=[*OF_RUN, *own, "model.name=base", "tuning.chat_template=plain"]
        )
        fit(settings, Path("tuned"))
        predict_file(Path("labels"), "test.csv", Path("before.csv"), **OPTIONS)
    finally:
        os.chdir(before)
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; the original's places are not there any more."""
    folder = tmp_path / "home"
    shutil.copytree(made, folder)
    for path in folder.glob(f"*/{BASES_FILE}"):
        path.write_text(path.read_text().replace(str(made.resolve()), str(folder.resolve())))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def same_predictions(home: Path, **options: Any) -> None:
    predict_file(home / "labels", str(home / "test.csv"), Path("now.csv"), **OPTIONS, **options)
    before, now = pd.read_csv(home / "before.csv"), pd.read_csv("now.csv")
    np.testing.assert_allclose(now["p_good"], before["p_good"], atol=1e-6)


def test_a_run_works_from_any_folder_also_where_another_model_has_the_same_name(
    home: Path,
) -> None:
    same_predictions(home)
    for name in ("base", "enc"):
        shutil.copytree(home / name, name)
        other_weights(Path(name))
    same_predictions(home)


def test_a_run_and_its_base_that_moved_together_or_apart_are_found(
    home: Path, tmp_path: Path
) -> None:
    moved = home.rename(tmp_path / "moved")
    same_predictions(moved)
    # The base back to where it was, the run elsewhere.
    home.mkdir()
    for name in ("base", "enc"):
        (moved / name).rename(home / name)
    same_predictions(moved)


def test_a_base_that_is_gone_is_told_with_its_place(home: Path) -> None:
    shutil.rmtree(home / "base")
    with pytest.raises(CheckpointError, match=f"base model .* not where it was: {home}/base"):
        load_run(home / "labels")


def use(command: str, home: Path, *, allow: bool = False) -> object:
    """Go on with a run in one of the ways there are."""
    labels, tuned, test = home / "labels", home / "tuned", str(home / "test.csv")
    rows, given = str(home / "rows.jsonl"), {"allow_other_base": allow}
    ways: dict[str, Callable[[], object]] = {
        "predict": lambda: predict_file(labels, test, Path("o.csv"), **OPTIONS, **given),
        "evaluate": lambda: evaluate_file(labels, test, name="again", **OPTIONS, **given),
        "export": lambda: export_run(labels, Path("out"), form="merged", device="cpu", **given),
        "load": lambda: taskfit.load(labels, device="cpu", **given),
        "load tuned": lambda: taskfit.load(tuned, device="cpu", **given),
        "generate": lambda: generate_file(
            str(tuned), rows, Path("o.jsonl"), decoding=FEW, screen=SilentScreen(), **given
        ),
        "judge": lambda: judge(
            tuned, rows=None, tasks=["sentiment"], tests={}, decoding=FEW, max_test=2,
            device="cpu", screen=SilentScreen(), **given,
        ),
    }  # fmt: skip
    return ways[command]()


COMMANDS = ("predict", "evaluate", "export", "load", "load tuned", "generate", "judge")


def test_no_command_goes_on_with_another_base_unless_it_is_allowed(home: Path) -> None:
    other_weights(home / "base")
    for command in COMMANDS:
        with pytest.raises(CheckpointError, match=rf"{OTHER}.*--allow-other-base"):
            use(command, home)
    assert not list(Path.cwd().iterdir()), "something was written"
    for command in COMMANDS[:-1]:  # what is judged on would have to be fetched
        use(command, home, allow=True)


def test_the_encoder_of_a_blend_is_a_base_as_well(home: Path) -> None:
    other_weights(home / "enc", lambda key, w: w if key.endswith("bias") else w * 1.1)
    with pytest.raises(CheckpointError, match=f"The encoder enc .*{OTHER}"):
        use("predict", home)
    use("generate", home)  # which does not read it
    use("predict", home, allow=True)


def test_another_tokenizer_is_told(home: Path) -> None:
    path = home / "base" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": True}))
    with pytest.raises(CheckpointError, match="another tokenizer"):
        use("predict", home)


def test_weights_that_are_not_the_model_are_refused_by_every_command(home: Path) -> None:
    weights = load_file(home / "base" / WEIGHTS)
    del weights["lm_head.weight"]
    save_file(weights, home / "base" / WEIGHTS, metadata={"format": "pt"})
    for command in COMMANDS[:-1]:
        with pytest.raises(ModelError, match=r"lm_head\.weight"):
            use(command, home, allow=True)


def test_an_adapter_or_head_that_is_not_finite_or_not_whole_is_refused(home: Path) -> None:
    path = home / "labels" / ADAPTER / "adapter_model.safetensors"
    good = load_file(path)
    save_file({key: w * torch.inf for key, w in good.items()}, path, metadata={"format": "pt"})
    with pytest.raises(NotFiniteError, match="adapter_model"):
        use("predict", home)
    save_file(good, path, metadata={"format": "pt"})
    arrays = load_file(home / "labels" / ARRAYS)
    for change, said in (
        (lambda key, a: None if key == "head.weight" else a, "does not hold .*head.weight"),
        (lambda key, a: a[:1] if key == "head.weight" else a, r"head\.weight is \(1, 32\)"),
        (lambda key, a: a / 0 if key == "head.weight" else a, "not finite, in head.weight"),
    ):
        changed = {k: new for k, a in arrays.items() if (new := change(k, a)) is not None}
        save_file({k: a.contiguous() for k, a in changed.items()}, home / "labels" / ARRAYS)
        with pytest.raises(CheckpointError, match=said):
            use("predict", home)


def test_a_run_of_full_weights_needs_its_base_no_more(home: Path) -> None:
    os.chdir(home)
    settings = load_settings(home / "labels" / "settings.yaml")
    adapter = settings.adapter.model_copy(update={"weights": "full"})
    method = settings.method.model_copy(update={"blend": None})
    settings = settings.model_copy(update={"adapter": adapter, "method": method})
    fit(settings, home / "full", baselines=False)
    assert list(read_bases(home / "full")) == ["model"]
    shutil.rmtree(home / "base")
    assert find_bases(home / "full", settings, own_weights=True) == {}
    predict_file(home / "full", str(home / "test.csv"), Path("o.csv"), **OPTIONS)


def test_an_interrupted_run_does_not_go_on_from_another_base(home: Path) -> None:
    os.chdir(home)
    settings = load_settings(
        home / "labels" / "settings.yaml", overrides=["training.save_every_steps=1"]
    )
    run = home / "run"
    with pytest.raises(Killed):
        fit(settings, run, baselines=False, screen=NotingScreen(2))
    recorded = (run / BASES_FILE).read_text()
    other_weights(home / "base")
    with pytest.raises(CheckpointError, match=rf"changed since the run was started: .*{OTHER}"):
        fit(settings, run, baselines=False, resume=True)
    assert (run / BASES_FILE).read_text() == recorded
    fit(settings, run, baselines=False, resume=True, allow_other_base=True)
    predict_file(run, "test.csv", Path("o.csv"), **OPTIONS)  # its base is the other one now


def test_a_comparison_does_runs_of_another_base_anew_and_keeps_what_was(home: Path) -> None:
    base = {
        "data": {"train": str(home / "train.csv"), "tests": {"new": str(home / "test.csv")}},
        "model": {"name": str(home / "base"), "dtype": "float32", "device": "cpu"},
    }
    methods = {
        "words": {"method": {"name": "in_context", "num_demonstrations": 0}},
        "tfidf": {"method": {"name": "tfidf"}},
    }
    grid = expand_grid({"base": base, "methods": methods})

    def run(**options: Any) -> dict[str, int]:
        screen = NotingScreen()
        run_grid(grid, home / "grid", screen=screen, **options)
        times = (home / "grid" / "runs").glob("*/result.json")
        return {path.parent.name.split("-")[0]: path.stat().st_mtime_ns for path in times}

    first = run()
    assert run() == first
    other_weights(home / "base")
    assert run(allow_other_base=True) == first
    second = run()
    assert second["tfidf"] == first["tfidf"]
    assert second["words"] != first["words"]
    (kept,) = (home / "grid" / "runs" / "earlier").iterdir()
    assert (kept / "result.json").stat().st_mtime_ns == first["words"]
    assert run() == second


def test_the_command_line_refuses_and_goes_on_with_the_flag(home: Path) -> None:
    other_weights(home / "base")
    given = ["predict", str(home / "labels"), str(home / "test.csv"), "-o", "o.csv"]
    found = CliRunner().invoke(app, given)
    assert isinstance(found.exception, CheckpointError)
    assert CliRunner().invoke(app, [*given, "--allow-other-base"]).exit_code == 0


@pytest.mark.parametrize("validation", [0.0, 0.4])
def test_training_that_runs_away_ends_in_an_error_that_names_the_step(
    validation: float, home: Path
) -> None:
    os.chdir(home)
    settings = load_settings(
        home / "labels" / "settings.yaml",
        overrides=[
            "training.learning_rate=1e15",
            f"data.validation_fraction={validation}",
            "method.blend=[]",
        ],
    )
    with pytest.raises(TrainingError, match=r"step [12]\b.*lower training\.learning_rate"):
        fit(settings, home / "run", baselines=False)
    assert not (home / "run" / "result.json").exists()
    assert not (home / "run" / ADAPTER).exists()


def test_a_base_of_the_hub_is_the_commit_that_it_was(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, commits = tmp_path / "hub", {"a": "a" * 40, "b": "b" * 40}
    model = hub / "models--me--tiny"
    for commit in commits.values():
        shutil.copytree(home / "base", model / "snapshots" / commit)
    other_weights(model / "snapshots" / commits["b"])
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commits["a"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(hub))
    os.chdir(home)
    settings = load_settings(
        home / "labels" / "settings.yaml", overrides=["model.name=me/tiny", "method.blend=[]"]
    )
    fit(settings, home / "run", baselines=False)
    assert read_bases(home / "run")["model"].commit == commits["a"]
    (model / "refs" / "main").write_text(commits["b"])  # the branch goes on
    found = find_bases(home / "run", settings, own_weights=False)["model"]
    assert (found.name, found.revision) == ("me/tiny", commits["a"])
    predict_file(home / "run", "test.csv", Path("o.csv"), **OPTIONS)
    shutil.rmtree(model / "snapshots" / commits["a"])
    with pytest.raises(CheckpointError, match=r"me/tiny at a+ cannot be had"):
        load_run(home / "run")
    assert load_run(home / "run", allow_other_base=True)
