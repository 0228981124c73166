"""A toy table, a tiny model, and the real entry point."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import tiny
from taskfit.cli.main import main
from taskfit.method_settings import METHOD_SETTINGS
from taskfit.unread import is_read


@dataclass
class Shell:
    """Runs `taskfit` in process, as the console script does."""

    folder: Path
    model: Path
    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error."""
        self.patch.setattr(sys, "argv", ["taskfit", *arguments])
        self.capture.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = self.capture.readouterr()
        return code, out, err

    def fit(self, *extra: str, out: str = "run") -> tuple[int, str, str]:
        """Fit on the toy table with the tiny model."""
        method = extra[extra.index("--method") + 1] if "--method" in extra else "label_words"
        return self("fit", *self.fit_arguments(method), "--out", out, *extra)

    def fit_arguments(self, method: str = "label_words") -> list[str]:
        """Return what every fit here is given, as far as its method reads it."""
        kind = METHOD_SETTINGS[method]
        settings = (
            "model.dtype=float32",
            "model.device=cpu",
            "training.learning_rate=0.02",
            "training.tensorboard=false",
            # The defaults take longer and read a packaged encoder; tests marked model try them.
            "training.epochs=1",
            "data.validation_fraction=0.1",
        )
        read = [setting for setting in settings if is_read(setting.partition("=")[0], kind)]
        sets = [part for setting in read for part in ("--set", setting)]
        given = ["--data", "train.csv", "--test", "new=test.csv", "--model", str(self.model)]
        return [*given, "--method", method, *sets]


@pytest.fixture
def shell(
    tmp_path: Path,
    model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(60))
    tiny.write_csv(tmp_path / "test.csv", tiny.toy_examples(20, offset=100))
    return Shell(tmp_path, model_folder, capsys, monkeypatch)


@pytest.fixture
def refused(shell: Shell) -> Callable[..., str]:
    """Run a command that must end in one message and exit code 2; return the message."""

    def run(*arguments: str) -> str:
        code, _, err = shell(*arguments)
        assert code == 2, err
        assert "Traceback" not in err
        return " ".join(err.split())

    return run
