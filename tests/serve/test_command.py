"""`taskfit serve` as a process: what it says first, and how it ends."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2

from taskfit.serve.documentation import curl

SCRIPT = Path(__file__).with_name("fake_serve.py")


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, once it has said where it is; the text is what it said."""
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    ) as found:
        try:
            assert found.stdout is not None
            said = ""
            while "curl " not in said and (line := found.stdout.readline()):
                said += line
            yield found, said
        finally:
            found.kill()


def test_the_first_curl_works_and_a_signal_ends_it_once_all_is_answered() -> None:
    with (
        process("--api-key", "s3cret", "--grace", "20", FAKE_SECONDS="0.5") as (server, said),
        ThreadPoolExecutor(2) as pool,
    ):
        base = said.split()[0]
        assert re.search(r"tone +Sentiment of a text\.", said)
        command = said.strip().splitlines()[-1]
        key = {"TASKFIT_API_KEY": "s3cret"}
        ran = subprocess.run(
            ["bash", "-c", f"{command} -s"],
            capture_output=True,
            text=True,
            env={**os.environ, **key},
        )
        assert '"answers":{"label":{"type":"choice"' in ran.stdout, ran.stderr
        headers = {"X-Api-Key": "s3cret"}
        body = {"model": "tone", "input": "good"}
        with httpx2.Client(base_url=base, headers=headers, timeout=10) as client:
            accepted = [pool.submit(client.post, "/classify", json=body) for _ in range(2)]
            while "taskfit_queue_requests 2.0" not in client.get("/metrics").text:
                time.sleep(0.01)
            server.send_signal(signal.SIGTERM)
            while client.get("/readyz").status_code == 200:
                time.sleep(0.01)
            late = client.post("/classify", json=body)
            assert late.status_code == 503
            assert "stopping" in late.json()["error"]["message"]
            assert [one.result().status_code for one in accepted] == [200, 200]
        assert server.wait(10) == 0
        assert server.stderr is not None
        log = server.stderr.read()
        assert "Traceback" not in log
        assert log.count("classify 200") == 2


def test_what_cannot_be_finished_in_the_grace_time_is_told() -> None:
    everywhere = ("--grace", "0.2", "--host", "0.0.0.0")
    with process(*everywhere, FAKE_PIECE_SECONDS="0.05") as (server, said):
        body = {"model": "writer", "prompt": "a b", "max_tokens": 4000, "stream": True}
        url = f"{said.split()[0]}/v1/completions"
        with httpx2.stream("POST", url, json=body, timeout=10) as response:
            lines = response.iter_lines()
            next(lines)
            server.send_signal(signal.SIGINT)
            assert "stopping" in [line for line in lines if line][-1]
        assert server.wait(10) == 0
        assert server.stderr is not None
        # Beyond this machine and without a key: that is said.
        assert "note: whoever reaches 0.0.0.0 can ask" in server.stderr.read()


def test_the_command_shown_quotes_what_a_shell_would_read() -> None:
    body = {"a": 'it\'s $HOME `ls` "x" \\ ü'}
    assert json.loads(shlex.split(curl("http://x", "/y", body))[-1]) == body
