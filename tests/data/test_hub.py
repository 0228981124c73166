"""A hub that does not answer is one message within seconds."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from taskfit.data.hub import why_not_at_hand
from taskfit.errors import ModelError
from taskfit.models.packaged import PACKAGED_MODELS, locate_model
from taskfit.plan.shapes import (
    _HUB_IDS,
    KNOWN_SHAPES,
    find_config,
    known_config,
    known_shape,
)


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the hub be a place that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr("taskfit.data.hub.PATIENCE_SECONDS", 0.3)
        yield


@pytest.mark.usefixtures("silent")
def test_a_hub_that_is_silent_is_not_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with pytest.raises(ModelError, match="could not be had from the hub: http") as found:
        locate_model("nobody/nothing", PACKAGED_MODELS, kind="A folder")
    with pytest.raises(ModelError, match="cannot be had: http"):
        find_config("nobody/nothing")
    assert time.monotonic() - began < 5
    assert "\n" not in str(found.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("silent")
def test_what_is_cached_needs_no_hub(tmp_path: Path) -> None:
    assert why_not_at_hand("owner/name", kind="model") is not None
    (tmp_path / "models--owner--name" / "snapshots" / "abc").mkdir(parents=True)
    assert why_not_at_hand("owner/name", kind="model") is None
    assert why_not_at_hand("owner/name", kind="dataset") is not None


@pytest.mark.usefixtures("silent")
def test_the_shape_of_a_well_known_hub_id_needs_no_hub() -> None:
    for name, shape in (
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b"),
        ("meta-llama/Meta-Llama-3-8B", "llama-3-8b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("HuggingFaceTB/SmolLM2-360M", "smollm2-360m"),
    ):
        config, source = find_config(name)
        assert config.hidden_size == known_config(shape).hidden_size
        assert f"known shape {shape}" in source
    assert set(_HUB_IDS.values()) == set(KNOWN_SHAPES)
    assert all(known_shape(f"{name}-Instruct") for name in _HUB_IDS)
    assert known_shape("nobody/qwen2.5-0.5b") is None
