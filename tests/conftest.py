"""Shared fixtures: all made in process; only tests marked model fetch anything."""

import base64
import gc
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread a process: tests run side by side, and what is to be equal bit by bit in two processes
# must add up in the same order.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from chat_server import ChatServer
    from taskfit.models.load import LoadedModel
    from taskfit.serve.engine import RunsEngine

# What a picture that is not rendered leaves.
NO_SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'
NO_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_counted = itertools.count()


def pytest_collection() -> None:
    """Set libraries up where tests run: what only hands tests to others does not load them."""
    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    transformers_logging.set_verbosity_error()


@pytest.fixture(scope="module", autouse=True)
def _modules_are_no_garbage() -> None:
    """Take what is imported by now out of the garbage collection that ends every run.

    With the libraries loaded one takes half a second, longer than most runs of tiny models.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> "Iterator[ChatServer]":
    """An endpoint on this machine, asked without a key."""
    from chat_server import ChatServer

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = ChatServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> "PreTrainedTokenizerFast":
    import tiny

    return tiny.byte_level_tokenizer()


@pytest.fixture(scope="session")
def metaspace_tokenizer() -> "PreTrainedTokenizerFast":
    import tiny

    return tiny.metaspace_tokenizer()


@pytest.fixture(scope="session")
def wordpiece_tokenizer() -> "PreTrainedTokenizerFast":
    import tiny

    return tiny.wordpiece_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer() -> "PreTrainedTokenizerFast":
    import tiny

    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    return tokenizer


@pytest.fixture
def loaded(byte_level_tokenizer: "PreTrainedTokenizerFast") -> "LoadedModel":
    """A fresh tiny Llama with the byte-level tokenizer."""
    import tiny
    from taskfit.models.load import LoadedModel
    from taskfit.models.tree_model import TreeModel

    model = tiny.tiny_model("llama", len(byte_level_tokenizer))
    model.requires_grad_(False)
    return LoadedModel(TreeModel(model), byte_level_tokenizer, "tiny", None)


@pytest.fixture(scope="session")
def model_folder(
    tmp_path_factory: pytest.TempPathFactory, byte_level_tokenizer: "PreTrainedTokenizerFast"
) -> Path:
    """A tiny Llama saved with its tokenizer, as a user's local model."""
    return _saved_model("llama", byte_level_tokenizer, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def hybrid_folder(
    tmp_path_factory: pytest.TempPathFactory, byte_level_tokenizer: "PreTrainedTokenizerFast"
) -> Path:
    """A tiny hybrid of attention and recurrent layers, which the token tree does not serve."""
    return _saved_model("jamba", byte_level_tokenizer, tmp_path_factory.mktemp("hybrid") / "tiny")


def _saved_model(name: str, tokenizer: "PreTrainedTokenizerFast", folder: Path) -> Path:
    import tiny

    tiny.tiny_model(name, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT saved with its tokenizer, as a user's local encoder."""
    import tiny

    return tiny.save_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Path]:
    """Finished runs of many kinds over one tiny base, by name."""
    from tiny_runs import fit_runs

    return fit_runs(tmp_path_factory.mktemp("runs"), model_folder)


@pytest.fixture(scope="session")
def engine(runs: dict[str, Path], model_folder: Path) -> "RunsEngine":
    """All of them in memory together, with the base."""
    from taskfit.serve.engine import load_engine

    return load_engine(runs, base=str(model_folder), device="cpu")


@pytest.fixture(autouse=True)
def _own_feature_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    """Keep features and remote answers of tests out of the user's cache."""
    # Made by who writes into it; most tests do not.
    folder = tmp_path_factory.getbasetemp() / "features" / str(next(_counted))
    monkeypatch.setattr("taskfit.methods.features.cache_folder", lambda: folder)
    monkeypatch.setattr("taskfit.methods.remote_reader.cache_folder", lambda: folder)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Leave written files in memory: a process that is killed loses nothing there.

    What tests cannot try is a machine that loses its power.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _pictures_without_pixels(request: pytest.FixtureRequest, monkeypatch: Any) -> None:
    """Lay pictures out but do not render them, which takes most of a tiny run's report.

    Tests of the room that draws them, and those marked `pictures`, render them.
    """
    rendered = "report" in request.path.relative_to(Path(__file__).parent).parts
    if not rendered and request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", _save_blank)


@pytest.fixture
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resample learning curves less often, which takes most of the time."""
    monkeypatch.setattr("taskfit.stats.learning_curve.NUM_RESAMPLES", 200)


def _save_blank(_: object, path: Path, **options: object) -> None:
    if path.suffix == ".svg":
        path.write_text(NO_SVG, encoding="utf-8")
    else:
        path.write_bytes(NO_PNG)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets; tests that need it skip where it is absent."""
    given = os.environ.get("TASKFIT_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data here: set TASKFIT_DATA to a folder with them")
    return folder
