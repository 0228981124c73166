"""Processes of tests: forked from a server that imports PyTorch once for all of them."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Sequence

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["taskfit.cli.main", "taskfit.search.search_and_fit", "tiny"])


def run_command(arguments: Sequence[str]) -> None:
    """Do what `taskfit` with these arguments does, and show nothing."""
    from taskfit.cli.main import main

    sys.argv = ["taskfit", *arguments]
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        main()
