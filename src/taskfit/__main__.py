"""`python -m taskfit` is the command `taskfit`."""

from taskfit.cli.main import main

main()
