"""A comparison that has ended: what the page says of it, and which model is kept."""

import io
import json
import os
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from taskfit.data import Example
from taskfit.errors import ModelError
from taskfit.files import write_json_atomic
from taskfit.report.evidence import read_evidence
from taskfit.runs.load import load_classifier
from taskfit.runs.records import RunResult
from taskfit.ui.progress import state_of
from taskfit.ui.trying import Tried
from taskfit.ui.verdict import changed_rows, read_verdict, reloaded, write_verdict


def run_of(project, method: str) -> Path:
    (found,) = project.comparison.glob(f"runs/{method}-*")
    return found


def spoil_bag_of_words(project) -> None:
    """Let the bag of words have answered the first label to everything."""
    folder = run_of(project, "tfidf")
    path = folder / "predictions" / "test.parquet"
    table = pd.read_parquet(path)
    result = RunResult.load(folder)
    labels = result.evaluations["test"].labels
    table["predicted"] = labels[0]
    table[[f"p_{label}" for label in labels]] = [[0.9, 0.1]] * len(table)
    table.to_parquet(path)


def test_the_table_shows_what_the_runs_recorded(finished) -> None:
    page, name = finished
    state = page.browser.get(f"/api/projects/{name}/state").json()
    project = page.project(name)
    assert state["num_runs"] == state["num_finished"] == len(state["methods"]) == 4
    for row in state["methods"]:
        result = RunResult.load(project.comparison / "runs" / row["run"])
        evaluation = result.evaluations["test"]
        assert result.name == row["method"]
        assert row["num_examples"] == evaluation.num_examples == 36
        for metric, (mean, low, high) in row["scores"].items():
            assert mean == pytest.approx(getattr(evaluation, metric))
            assert low <= mean <= high
        assert row["seconds"] == pytest.approx(result.whole_seconds)
        assert row["memory_bytes"] == result.peak_memory_bytes


def test_no_model_is_kept_that_a_bag_of_words_equals(copied, fewer_resamples: None) -> None:
    page, name = copied
    project = page.project(name)
    write_verdict(project)
    verdict = read_verdict(project)
    assert verdict is not None
    assert verdict["kept"] is False
    assert verdict["best"]["method"] == "tfidf"
    assert "none is kept" in verdict["reason"]
    assert (project.comparison / "report.html").is_file()


def test_a_model_is_kept_that_beats_the_baselines_and_is_the_same_after_reloading(
    copied, fewer_resamples: None
) -> None:
    page, name = copied
    project = page.project(name)
    spoil_bag_of_words(project)
    write_verdict(project)
    verdict = read_verdict(project)
    assert verdict is not None
    assert verdict["best"]["method"] == "probe"
    assert verdict["kept"] is True
    assert verdict["interval"][0] > 0
    assert verdict["reload"]["num_rows"] == 36
    assert verdict["reload"]["largest"] < 5e-5
    # What is newly right and newly wrong makes up the difference.
    gained, lost = verdict["num_gained"], verdict["num_lost"]
    assert verdict["difference"] == pytest.approx((gained - lost) / 36)
    assert all(row["now"] == row["label"] != row["before"] for row in verdict["gained"])
    assert all(row["before"] == row["label"] != row["now"] for row in verdict["lost"])
    assert verdict["advice"][0]["heading"] == "Which method"
    # The same with weights that are not those it was measured with: it is not kept.
    file = run_of(project, "probe") / "method.safetensors"
    arrays = load_file(file)
    save_file({key: np.ascontiguousarray(-value) for key, value in arrays.items()}, file)
    write_verdict(project)
    changed = read_verdict(project)
    assert changed is not None
    assert changed["kept"] is False
    assert "not kept: read back from disk, it answers" in changed["reason"]
    # And where the file is gone, that is said.
    file.unlink()
    (probe,) = (r for r in read_evidence(project.comparison).runs if r.name == "probe")
    found = reloaded(probe, "test")
    assert found["same"] is False
    assert "method.safetensors" in found["problem"]


def test_every_finished_run_is_the_same_after_reloading(finished) -> None:
    page, name = finished
    for run in read_evidence(page.project(name).comparison).runs:
        found = reloaded(run, "test")
        assert found["same"], run.name
        assert found["num_rows"] == 36


def test_rows_that_change_are_counted_both_ways(finished) -> None:
    page, name = finished
    runs = {run.name: run for run in read_evidence(page.project(name).comparison).runs}
    there = changed_rows(runs["probe"], runs["majority"], "test")
    back = changed_rows(runs["majority"], runs["probe"], "test")
    assert (there["num_gained"], there["num_lost"]) == (back["num_lost"], back["num_gained"])
    assert [row["text"] for row in there["gained"]] == [row["text"] for row in back["lost"]]
    right = {run: runs[run].predictions("test").correct.sum() for run in ("probe", "majority")}
    assert there["num_gained"] - there["num_lost"] == right["probe"] - right["majority"]
    assert there["num_gained"] > 0


def test_a_run_answers_in_the_page_as_in_python_and_out_of_its_zip(
    finished, tmp_path: Path
) -> None:
    page, name = finished
    folder = run_of(page.project(name), "probe")
    text = "The garden was gentle at home."
    address = f"/api/projects/{name}"
    answer = page.browser.post(f"{address}/try", json={"run": folder.name, "texts": [text]})
    found = {one["label"]: one["probability"] for one in answer.json()}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    packed = page.browser.get(f"{address}/runs/{folder.name}/zip")
    assert f'filename="{folder.name}.zip"' in packed.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(packed.content)) as file:
        assert not [one for one in file.namelist() if "checkpoints" in one]
        file.extractall(tmp_path)
    for place in (folder, tmp_path / folder.name):
        classifier = load_classifier(place)
        (row,) = classifier.probabilities([Example("x", {"text": text})])
        expected = dict(zip(classifier.task.label_names, row, strict=True))
        assert found == pytest.approx(expected, abs=1e-6)


def test_a_run_that_is_not_there_or_a_text_that_cannot_be_asked_is_told(finished) -> None:
    page, name = finished
    address = f"/api/projects/{name}"
    run = run_of(page.project(name), "tfidf").name
    for body, said in (
        ({"run": "../../elsewhere", "texts": ["x"]}, "no finished run"),
        ({"run": run, "texts": [" "]}, "Type a text"),
        ({"run": run, "texts": ["x", "y"]}, "Type a text"),
        ({"run": run, "texts": ["x" * 20_001]}, "20,001 characters"),
    ):
        answer = page.browser.post(f"{address}/try", json=body)
        assert answer.status_code == (404 if "no finished" in said else 422)
        assert said in answer.json()["error"]
    assert page.browser.get(f"{address}/runs/..%2f..%2f.key/zip").status_code == 404
    assert "No comparison is at work" in page.browser.post(f"{address}/stop").json()["error"]
    answer = page.browser.post(f"{address}/start", json={"budget": "endless"})
    assert "endless" in answer.json()["error"]


def test_columns_and_test_rows_stay_once_a_comparison_was_started(copied) -> None:
    page, name = copied
    write_json_atomic(page.project(name).folder / "status.json", {"phase": "failed"})
    address = f"/api/projects/{name}"
    for answer in (
        page.browser.post(f"{address}/columns", json={"text": ["text"], "label": "label"}),
        page.browser.post(f"{address}/test?file=new.csv", content=b"text,label\na,b\n"),
    ):
        assert answer.status_code == 422
        assert "was started" in answer.json()["error"]


def test_the_time_left_is_that_of_the_plan_at_the_pace_of_what_is_finished(
    copied, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, name = copied
    project = page.project(name)
    monkeypatch.setattr("taskfit.ui.progress.at_work", lambda _: os.getpid())
    write_json_atomic(project.folder / "status.json", {"phase": "comparing", "started": 0})
    probe = run_of(project, "probe")
    (probe / "result.json").unlink()
    file = project.comparison / "grid.json"
    grid = json.loads(file.read_text()) | {"left": [probe.name], "num_finished": 3}
    write_json_atomic(file, grid)
    took = {row["method"]: row["seconds"] for row in state_of(project)["methods"]}
    assert state_of(project)["seconds_left"] is None  # nothing was planned
    for pace in (0.5, 3.0):
        planned = {method: 1000 * seconds / pace for method, seconds in took.items()}
        for seconds_in, left in ((100, 500), (10_000, 0)):
            begun = time.time() - seconds_in
            os.utime(probe / "settings.yaml", (begun, begun))
            project.choose(planned=planned | {"probe": 600 * 1000 / pace})
            state = state_of(project)
            assert state["running"]["method"] == "probe"
            assert state["seconds_left"] == pytest.approx(left, abs=2)


def test_a_comparison_whose_process_is_gone_can_go_on(copied) -> None:
    page, name = copied
    project = page.project(name)
    for phase in ("comparing", "judging"):
        write_json_atomic(project.folder / "status.json", {"phase": phase, "started": 0})
        assert state_of(project)["phase"] == "interrupted"
    write_json_atomic(project.folder / "status.json", {"phase": "failed", "error": "no disk"})
    assert state_of(project)["phase"] == "failed"
    assert state_of(project)["error"] == "no disk"


STUB = """#!{python}
import http.server, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
assert sys.argv[1:4] == ["-m", "taskfit", "serve"] and "127.0.0.1" in sys.argv
if sys.argv[4].endswith("broken"):
    sys.exit("taskfit: this run cannot be served")
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


@pytest.fixture
def stub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program that takes the command line of `taskfit serve` in its place."""
    stub = tmp_path / "stub"
    stub.write_text(STUB.replace("{python}", sys.executable))
    stub.chmod(0o755)
    monkeypatch.setattr("taskfit.ui.trying.sys", SimpleNamespace(executable=str(stub)))


def test_one_server_of_a_run_is_started_kept_replaced_and_ended(
    stub_server: None, tmp_path: Path
) -> None:
    tried, log = Tried(), tmp_path / "serve.txt"
    address = tried.serve(tmp_path / "one", log)
    first = tried.server
    assert first is not None
    assert tried.serve(tmp_path / "one", log) == address
    assert tried.server is first
    other = tried.serve(tmp_path / "two", log)
    assert other != address
    assert first.poll() is not None
    second = tried.server
    with pytest.raises(ModelError, match=r"did not start: taskfit: this run cannot be served$"):
        tried.serve(tmp_path / "broken", log)
    assert second is not None
    assert second.poll() is not None
    tried.serve(tmp_path / "one", log)
    last = tried.server
    tried.close()
    assert last is not None
    assert last.poll() is not None
