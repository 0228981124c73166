"""`taskfit label` from the command line, against a server on this machine."""

import numpy as np
import pandas as pd
import pytest

import tiny
from chat_server import ChatServer, Reply, answer


@pytest.fixture
def server(server: ChatServer) -> ChatServer:
    def judge(body: dict) -> Reply:
        good = any(word in body["messages"][-1]["content"] for word in tiny.GOOD)
        top = {"good" if good else "bad": np.log(0.9), "bad" if good else "good": np.log(0.1)}
        return answer("good" if good else "bad", top=top)

    server.then = judge
    return server


def test_a_table_is_labelled_checked_and_learned_from(shell, server: ChatServer) -> None:
    texts = [{"text": e.texts["text"]} for e in tiny.toy_examples(30)]
    pd.DataFrame(texts).to_csv(shell.folder / "texts.csv", index=False)
    # The labels are those of the sample that people labelled.
    given = ["label", "texts.csv", "--remote", server.base_url, "--remote-model", "tiny",
             "--check", "test.csv", "--calibrate"]  # fmt: skip
    code, out, _ = shell(*given, "--estimate")
    assert (code, server.bodies) == (0, [])
    # Two of the labelled sample are shown, as by every method that has a prompt.
    assert "18 labels by people, 2 shown" in out
    assert "48 requests" in out
    assert "price: unknown" in out
    code, out, err = shell(*given, "--max-requests", "25")
    assert code == 0, err
    assert "7 of 30 texts labelled" in out
    assert "23 texts were not asked about" in out
    code, out, err = shell(*given)
    assert code == 0, err
    assert "30 of 30 texts labelled (good 15, bad 15): soft.csv" in out
    assert len(server.bodies) == 48
    assert "not calibrated: 18 held-out examples have an answer" in out
    line = next(line for line in out.splitlines() if "soft_labels" in line)
    _, *fit = line.split()
    sets = ("model.dtype=float32", "training.tensorboard=false", "training.max_steps=2")
    more = [part for one in sets for part in ("--set", one)]
    code, out, err = shell(*fit, "--model", str(shell.model), *more, "--out", "student")
    assert code == 0, err
    assert (shell.folder / "student" / "result.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.csv", "--check", "test.csv"], "none.csv"),
        (["train.csv"], "--task"),
        (["train.csv", "--task", "nowhere.yaml"], "nowhere.yaml"),
        (["train.csv", "--check", "test.csv"], "remote.model"),
        (["train.csv", "--check", "test.csv", "--remote-model", "m", "--budget", "2"], "prices"),
        (["train.csv", "--check", "test.csv", "--remote-model", "m", "-o", "x.txt"], "x.txt"),
        (["train.csv", "--check", "test.csv", "--remote-model", "m", "-o", "test.csv"], "test.csv"),
        (["train.csv", "--task", "asked.yaml", "--remote-model", "m"], "several questions"),
        (
            ["train.csv", "--check", "test.csv", "--remote-model", "m",
             "--remote", "http://127.0.0.1:9/v1", "--set", "remote.max_retries=0"],
            "cannot be reached",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_labelled_ends_in_one_message(
    shell, refused, arguments: list[str], told: str
) -> None:
    (shell.folder / "asked.yaml").write_text(
        "name: asked\ntext: [text]\nquestions:\n  - {name: a, ask: 'A?', kind: yes_no}\n"
    )
    assert told in refused("label", *arguments)
    assert not (shell.folder / "soft.csv").exists()
