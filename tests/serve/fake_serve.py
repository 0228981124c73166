"""`taskfit serve` with an engine without a model: `python fake_serve.py ARGUMENTS`."""

import os
import sys

from fake_engine import FakeEngine

import taskfit.cli.serve
from taskfit.cli.main import main

if __name__ == "__main__":
    engine = FakeEngine(
        seconds=float(os.environ.get("FAKE_SECONDS", "0")),
        piece_seconds=float(os.environ.get("FAKE_PIECE_SECONDS", "0")),
    )
    taskfit.cli.serve.load = lambda *args, **options: engine
    sys.argv[1:1] = ["serve", "--model", "tiny"]
    main()
