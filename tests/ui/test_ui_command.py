"""`taskfit ui` before its page opens."""

import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taskfit.cli.main import app
from taskfit.errors import SettingsError


def refused(arguments: list[str]) -> str:
    result = CliRunner().invoke(app, ["ui", *arguments])
    assert isinstance(result.exception, SettingsError)
    return str(result.exception)


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        message = refused(["--folder", str(tmp_path), "--port", port])
    assert f"--port {port} cannot be had" in message
    assert "--port 0" in message


def test_without_the_extra_it_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    message = refused(["--folder", str(tmp_path)])
    assert "uvicorn" in message
    assert "pip install 'taskfit[serve]'" in message


def test_settings_that_are_wrong_for_every_run_are_told_at_once(tmp_path: Path) -> None:
    message = refused(["--folder", str(tmp_path / "ui"), "--set", "training.learning_rte=1"])
    assert "learning_rate" in message
    assert not (tmp_path / "ui").exists()
