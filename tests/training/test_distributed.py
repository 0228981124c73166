"""Two processes are one: losses, weights, predictions and resuming do not tell how many there were.

The processes talk over gloo on the CPU. All but the killed run come from a fork server, which
imports PyTorch once for all of them.
"""

import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import tiny
from taskfit.cli.main import main
from taskfit.cli.screen import RichScreen
from taskfit.errors import SettingsError, TaskfitError
from taskfit.files import read_jsonl
from taskfit.methods.label_words import LabelWordLoss
from taskfit.models.load import LoadedModel, resolve_device
from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import fit
from taskfit.runs.records import RunResult
from taskfit.screen import SilentScreen
from taskfit.settings import RunSettings
from taskfit.settings_file import dump_settings
from taskfit.tasks import PromptEncoder, task_from_columns
from taskfit.training import distributed
from taskfit.tree import unique_tokens
from tiny_processes import SERVER
from tiny_screens import Killed, NotingScreen
from tiny_settings import settings_for

PROCESSES = 2
LABELS = ["p_bad", "p_good"]

Make = Callable[..., RunSettings]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def run_out_of_memory() -> None:
    """Let this process have memory for one example at a time."""
    original = LabelWordLoss.loss_sum

    def limited(self: LabelWordLoss, items: Any) -> torch.Tensor:
        if len(items) > 1:
            raise torch.OutOfMemoryError
        return original(self, items)

    LabelWordLoss.loss_sum = limited  # type: ignore[method-assign]


def as_torchrun(rank: int, port: int) -> None:
    """Set the variables that torchrun sets."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)


def work(
    rank: int,
    port: int,
    settings: RunSettings,
    folder: Path,
    resume: bool,
    killed_at: int | None,
    short_of_memory: bool,
) -> None:
    """What one process of a run does."""
    as_torchrun(rank, port)
    if short_of_memory and rank == 1:
        run_out_of_memory()
    screen = SilentScreen() if killed_at is None else NotingScreen(killed_at)
    try:
        fit(settings, folder, resume=resume, screen=screen, baselines=False)
    except (TaskfitError, Killed) as error:
        path = folder.parent / f"{folder.name}-{rank}.txt"
        path.write_text(f"{type(error).__name__}: {error}")


def fit_together(
    settings: RunSettings | Sequence[RunSettings],
    folder: Path,
    *,
    resume: bool = False,
    killed_at: int | None = None,
    short_of_memory: bool = False,
) -> list[str]:
    """Fit in two processes; return what ended each of them, empty for a good end."""
    each = [settings] * PROCESSES if isinstance(settings, RunSettings) else settings
    files = [folder.parent / f"{folder.name}-{r}.txt" for r in range(PROCESSES)]
    for file in files:
        file.unlink(missing_ok=True)
    port = free_port()
    started = [
        SERVER.Process(
            target=work, args=(r, port, each[r], folder, resume, killed_at, short_of_memory)
        )
        for r in range(PROCESSES)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * PROCESSES
    return [file.read_text() if file.is_file() else "" for file in files]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    tokenizer = tiny.byte_level_tokenizer()
    for name in ("llama", "gemma"):  # the second ties its embeddings to its LM head
        tiny.tiny_model(name, len(tokenizer)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    config = tiny.save_encoder(folder / "encoder") / "config.json"
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.write_text(json.dumps({**json.loads(config.read_text()), **none}))
    tiny.write_csv(folder / "train.csv", tiny.toy_examples(23))
    tiny.write_csv(folder / "other.csv", tiny.toy_examples(9, offset=200))
    return folder


@pytest.fixture
def make(base: Path) -> Make:
    def settings(*extra: str) -> RunSettings:
        return settings_for(
            [
                f"data.train={base / 'train.csv'}",
                f"data.tests.other={base / 'other.csv'}",
                "data.validation_fraction=0.25",
                f"model.name={base / 'llama'}",
                "model.dtype=float32",
                "model.device=cpu",
                f"method.encoder={base / 'encoder'}",
                "method.name=label_words",
                "method.num_demonstrations=0",
                "adapter.lora_dropout=0",
                "training.epochs=2",
                # Six steps; the last of an epoch has one example, so one process has none.
                "training.batch_size=8",
                "training.learning_rate=0.005",
                "training.eval_every_steps=2",
                "training.tensorboard=false",
            ],
            extra,
        )

    return settings


def steps(folder: Path, field: str = "loss", kind: str = "step") -> list[float]:
    return [r[field] for r in read_jsonl(folder / "metrics.jsonl") if r["kind"] == kind]


def predictions(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "predictions" / "other.parquet")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= load_file(path)
    return found


def assert_same_run(one: Path, other: Path, *, atol: float = 2e-5) -> None:
    """The same losses, weights and predictions, up to the order of floating-point sums."""
    np.testing.assert_allclose(steps(other), steps(one), rtol=1e-6, atol=1e-6)
    norms = steps(other, "grad_norm"), steps(one, "grad_norm")
    np.testing.assert_allclose(*norms, rtol=max(2e-5, atol / 10), atol=2e-6)
    found, wanted = weights(other), weights(one)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=atol, rtol=0)
    assert predictions(other)["id"].tolist() == predictions(one)["id"].tolist()
    np.testing.assert_allclose(predictions(other)[LABELS], predictions(one)[LABELS], atol=atol)


FULL = ("adapter.weights=full", "training.learning_rate=0.002")
SHARDED = (*FULL, "training.sharding=full")


@pytest.mark.parametrize(
    ("changed", "sharding", "atol"),
    [
        (["method.name=label_words"], "none", 2e-5),
        (["method.name=label_words", *FULL], "full", 2e-5),
        # The head starts from features, which models that are whole read with another library.
        (["method.name=head", *FULL, "model.name={base}/gemma"], "full", 1e-4),
        # Where a gradient is nearly nothing, Adam's quotient makes much of its last digits.
        (["method.name=label_text", *FULL, "training.gradient_checkpointing=true"], "full", 2e-4),
        # A sharded model keeps the stock pass, which adds up in another order.
        (["method.name=distill", "method.num_demonstrations=2"], "full", 5e-4),
        (["method.name=encoder", "training.learning_rate=0.001"], "full", 2e-5),
    ],
    ids=["label words", "sharded", "tied and head", "checkpointing", "lora", "encoder"],
)
def test_two_processes_are_one(
    make: Make, base: Path, tmp_path: Path, changed: list[str], sharding: str, atol: float
) -> None:
    changed = [entry.format(base=base) for entry in changed]
    fit(make(*changed), tmp_path / "one", baselines=False)
    settings = make(*changed, f"training.sharding={sharding}")
    assert fit_together(settings, tmp_path / "two") == ["", ""]
    assert_same_run(tmp_path / "one", tmp_path / "two", atol=atol)
    one, two = (RunResult.load(tmp_path / name) for name in ("one", "two"))
    assert (two.num_trainable, two.num_parameters) == (one.num_trainable, one.num_parameters)
    assert two.tokens["padded"] == one.tokens["padded"]
    assert two.tokens["unique"] >= one.tokens["unique"]
    names = {path.name for path in (tmp_path / "one").iterdir()}
    decided = {"compile.json"}  # where the layers may be compiled
    assert {path.name for path in (tmp_path / "two").iterdir()} | decided == names | decided
    again = Classifier.load(tmp_path / "two", device="cpu")
    found = again.probabilities(tiny.toy_examples(9, offset=200))
    np.testing.assert_allclose(found, predictions(tmp_path / "two")[LABELS], atol=1e-5)


def test_memory_that_runs_out_in_one_process_halves_the_budget_of_all(
    make: Make, tmp_path: Path
) -> None:
    settings = make("training.token_budget=256", "training.epochs=0.5")
    fit(settings, tmp_path / "one", baselines=False)
    assert fit_together(settings, tmp_path / "two", short_of_memory=True) == ["", ""]
    notes = [r["text"] for r in read_jsonl(tmp_path / "two" / "metrics.jsonl") if "text" in r]
    assert "out of memory; token budget halved to 128" in notes
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_sharded_run_in_bfloat16_resumes_bitwise(make: Make, tmp_path: Path) -> None:
    settings = make(*SHARDED, "model.dtype=bfloat16")
    assert fit_together(settings, tmp_path / "whole") == ["", ""]
    broken = tmp_path / "broken"
    assert fit_together(settings, broken, killed_at=3) == ["Killed: ", "Killed: "]
    assert fit_together(settings, broken, resume=True) == ["", ""]
    assert steps(broken) == steps(tmp_path / "whole")
    found, wanted = weights(broken), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_run_goes_on_with_another_number_of_processes(make: Make, tmp_path: Path) -> None:
    settings = make(*SHARDED)
    fit(settings, tmp_path / "one", baselines=False)
    fewer, more = tmp_path / "fewer", tmp_path / "more"
    assert fit_together(settings, fewer, killed_at=3) == ["Killed: ", "Killed: "]
    fit(settings, fewer, resume=True, baselines=False)
    with pytest.raises(Killed):
        fit(settings, more, screen=NotingScreen(3), baselines=False)
    assert fit_together(settings, more, resume=True) == ["", ""]
    for folder in (fewer, more):
        assert_same_run(tmp_path / "one", folder)


def run_command(rank: int, port: int, arguments: list[str], killed_at: int, folder: Path) -> None:
    """What one process of `torchrun -m taskfit` does; the second is killed at a step."""
    as_torchrun(rank, port)
    sys.argv = ["taskfit", *arguments]

    def record(self: RichScreen, record: Mapping[str, Any]) -> None:
        if rank == 1 and record["kind"] == "step" and record["step"] == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    RichScreen.record = record  # type: ignore[method-assign]
    with (
        (folder / f"screen-{rank}.txt").open("w") as out,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        main()


def test_when_a_process_is_killed_the_others_end_and_the_run_resumes_bitwise(
    make: Make, tmp_path: Path
) -> None:
    # With dropout: each process draws its own, as a function of the step.
    settings = make("adapter.lora_dropout=0.1")
    dump_settings(settings, tmp_path / "run.yaml")
    folder, port = tmp_path / "broken", free_port()
    arguments = ["fit", "--config", str(tmp_path / "run.yaml"), "--out", str(folder)]
    started = [
        SERVER.Process(target=run_command, args=(r, port, arguments, 3, tmp_path))
        for r in range(PROCESSES)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [2, -signal.SIGKILL]
    first, second = ((tmp_path / f"screen-{r}.txt").read_text() for r in range(PROCESSES))
    assert "Another process of this run has ended" in first
    assert "float32: model.dtype=float32" in first
    assert second == ""  # one process speaks for all

    assert fit_together(settings, folder, resume=True) == ["", ""]
    assert fit_together(settings, tmp_path / "whole") == ["", ""]
    assert steps(folder) == steps(tmp_path / "whole")
    found, wanted = weights(folder), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_what_the_main_process_refuses_ends_all_with_its_message(
    make: Make, base: Path, tmp_path: Path
) -> None:
    dump_settings(make(), tmp_path / "settings.yaml")
    (tmp_path / "result.json").write_text("{}")
    first, second = fit_together(make(), tmp_path)
    assert first == second
    assert re.match(r"CheckpointError: .* holds a run already", first)


def test_processes_with_other_settings_are_refused(make: Make, tmp_path: Path) -> None:
    messages = fit_together([make(), make("training.batch_size=4")], tmp_path / "run")
    assert "Process 1 sees other settings than process 0: training" in messages[0]
    assert "Process 0 sees other settings than process 1: training" in messages[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["adapter.weights=qlora", "training.sharding=full"], "cannot divide weights in 4 bits"),
        (["training.optimizer=adamw8bit", "training.sharding=full"], "adamw8bit keeps them"),
        (['model.compile="on"', "training.sharding=full"], "runs its layers uncompiled"),
        (["method.name=remote", "remote.model=x"], "every process would ask it again"),
        (["search.trials=3"], "a search for settings runs in one process"),
    ],
)
def test_what_cannot_be_divided_is_refused(make: Make, changed: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        distributed.check_settings(make(*changed))


def test_shares_cut_a_step_at_its_prefixes_and_leave_nothing_out(
    monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel
) -> None:
    labels = ["bad", "good"]
    task = task_from_columns(name="toy", text=["text"], label_column="label", labels=labels)
    items = PromptEncoder(loaded.tokenizer, task, [], max_length=128).encode(tiny.toy_examples(40))
    objective = LabelWordLoss(loaded.tree, [0, 1], over="labels")
    for size in (2, 3, 7):
        for count in (1, 2, 5, 40):
            batch = items[:count]
            shares = []
            for rank in range(size):
                monkeypatch.setattr(distributed, "num_processes", lambda size=size: size)
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                shares.append(distributed.share_of_step(batch, objective))
            assert sorted(i for share in shares for i in share) == list(range(count))
            costs = [
                unique_tokens([ids for i in share for ids in objective.sequences(batch[i])])
                for share in shares
                if share
            ]
            # No budget that is smaller cuts the step into so few passes.
            assert len(objective.plan(batch, max(costs))) <= size
            if max(costs) > objective.largest(batch):
                assert len(objective.plan(batch, max(costs) - 1)) > size


def test_each_process_takes_the_gpu_of_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert resolve_device("auto") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(SettingsError, match="needs a GPU of its own"):
        resolve_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(SettingsError, match=r"PyTorch sees 2 CUDA .*--nproc-per-node 2"):
        resolve_device("auto")
