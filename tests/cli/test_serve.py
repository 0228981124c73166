"""The command line of `taskfit serve`: names of runs, and mistakes told before models load."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from taskfit.cli.serve import is_loopback, named_runs
from taskfit.errors import SettingsError
from taskfit.serve.limits import Limits

Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Give a finished run"),
        (["nowhere"], "There is no folder nowhere"),
        (["--model", "m", "--log", "loud"], "--log is 'loud'"),
        (["--model", "m", "--timeout", "0"], "--timeout is 0"),
        (["--model", "m", "--port", "70000"], "ports are 0 to 65535"),
        (["--model", "m", "--host", "300.1.2.3"], "give another --host or --port"),
        (["--model", "m", "--api-key", " "], "The API key is empty"),
    ],
)
def test_a_wrong_command_line_is_told_before_anything_is_loaded(
    refused: Refused, arguments: list[str], told: str
) -> None:
    assert told in refused("serve", *arguments)


def test_an_address_that_is_taken_is_told(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "cannot be listened at" in refused("serve", "--model", "m", "--port", port)


def test_runs_are_called_by_their_folder_or_by_the_name_that_is_given(tmp_path: Path) -> None:
    for name in ("a/run", "b/run", "c=d"):
        (tmp_path / name).mkdir(parents=True)
    first, second = str(tmp_path / "a/run"), str(tmp_path / "b/run")
    assert list(named_runs([first, f"other={second}"])) == ["run", "other"]
    assert list(named_runs([str(tmp_path / "c=d")])) == ["c=d"]
    with pytest.raises(SettingsError, match="run-2="):
        named_runs([first, second])
    with pytest.raises(SettingsError, match="without /"):
        named_runs([f"a/b={first}"])


def test_only_loopback_needs_no_key() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.4", "example.org")))


@pytest.mark.parametrize("name", Limits.__slots__)
def test_every_limit_is_positive(name: str) -> None:
    with pytest.raises(SettingsError, match=f"--{name.replace('_', '-')} is -1"):
        Limits(**{name: -1})
