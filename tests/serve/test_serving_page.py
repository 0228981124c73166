"""docs/serving.md holds: its requests run, its options and metrics are those there are."""

import re
import subprocess
from pathlib import Path

import httpx2
import pytest
from typer.main import get_command

from taskfit.cli.main import app
from taskfit.serve.limits import Limits

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)


def test_there_are_requests_of_every_kind() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}
    text = "".join(code for _, code in BLOCKS)
    for part in ("curl", "typesafe_sdk", "openai", "requests.post"):
        assert part in text


@pytest.mark.parametrize(
    ("kind", "code"), BLOCKS, ids=[f"{i}-{k}" for i, (k, _) in enumerate(BLOCKS)]
)
def test_its_requests_run(live: httpx2.Client, kind: str, code: str) -> None:
    base = str(live.base_url).rstrip("/")
    assert "http://127.0.0.1:8000" in code
    code = code.replace("http://127.0.0.1:8000", base)
    if kind == "python":
        exec(compile(code, "serving.md", "exec"), {})
        return
    code = f"set -e\n{code}".replace("curl -s", "curl -sS --fail-with-body")
    ran = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "error" not in ran.stdout
    assert ran.stdout.count("{") >= code.count("curl")


def test_its_options_are_those_of_the_command() -> None:
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    options = {option for one in command.params for option in one.opts if option[0] == "-"}
    before = PAGE.split("\n## On a Ray cluster")[0]
    told = set(re.findall(r"(--[a-z][a-z-]+)", before))
    assert told == options - {"--help"}
    table = dict(re.findall(r"^\| `(--[a-z-]+)`[^|]*\| ([^|]*) \|", PAGE, re.MULTILINE))
    for option, default in table.items():
        field = option.removeprefix("--").replace("-", "_")
        if field in Limits.__slots__:
            first = default.split(", ")[0]
            assert float(first) == getattr(Limits(), field), option
    defaults = {one.name: one.default for one in command.params}
    for field in set(Limits.__slots__) & set(defaults):
        assert defaults[field] == getattr(Limits(), field)


def test_its_metrics_and_addresses_are_those_of_the_server(live: httpx2.Client) -> None:
    names = set(re.findall(r"^# HELP (\w+)", live.get("/metrics").text, re.MULTILINE))
    names = {name for name in names if not name.endswith("_created")}
    assert set(re.findall(r"`(taskfit_\w+)`", PAGE)) == names
    for path in live.get("/openapi.json").json()["paths"]:
        assert path.replace("{model}", "NAME") in PAGE
