"""What happens to a file that is dropped, before anything is fitted."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

import tiny
from taskfit.compare.grid import expand_grid, load_grid
from taskfit.runs.inspection import inspect_task
from taskfit.runs.prepare import prepare_data
from taskfit.settings_file import settings_from_dict
from taskfit.ui import app as app_module
from taskfit.ui.budgets import BASELINES, BUDGETS, Budget, base_of, write_grid


def told(answer) -> str:
    assert answer.status_code == 422, answer.text
    message = answer.json()["error"]
    assert "Traceback" not in message
    return message


def table(count: int = 60) -> pd.DataFrame:
    examples = tiny.toy_examples(count)
    return pd.DataFrame(
        {"text": [e.texts["text"] for e in examples], "label": [e.label for e in examples]}
    )


def test_every_kind_of_table_gives_the_same_columns_and_rows(page, tmp_path: Path) -> None:
    rows = table()
    rows.to_csv(tmp_path / "toy.csv", index=False)
    rows.to_csv(tmp_path / "toy.tsv", index=False, sep="\t")
    rows.to_parquet(tmp_path / "toy.parquet")
    rows.to_json(tmp_path / "toy.jsonl", orient="records", lines=True)
    rows.to_excel(tmp_path / "toy.xlsx", index=False)
    (tmp_path / "toy.csv.gz").write_bytes(gzip.compress((tmp_path / "toy.csv").read_bytes()))
    seen = []
    for file in sorted(tmp_path.glob("toy.*")):
        found = page.browser.get(f"/api/projects/{page.drop(file)}/columns").json()
        assert found.pop("name") == file.name
        seen.append(found)
    assert len(seen) == 6
    assert all(one == seen[0] for one in seen)
    assert seen[0]["text"] == ["text"]
    assert seen[0]["label"] == "label"
    assert seen[0]["rows"] == 60
    assert seen[0]["preview"] == rows.head(5).to_numpy().tolist()


@pytest.mark.parametrize(
    "name",
    ["../../outside.csv", "/etc/passwd.csv", "..\\..\\outside.csv", "a/../../b.csv", "é 漢.csv"],
)
def test_a_files_name_is_never_a_path(page, tmp_path: Path, name: str) -> None:
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    file = tiny.write_csv(tmp_path / "toy.csv", tiny.toy_examples(20))
    made = page.drop(file, name)
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before - {file}
    assert new == {page.home / made / "project.json", page.home / made / "table.csv"}
    shown = page.browser.get(f"/api/projects/{made}/columns").json()["name"]
    assert shown == name.replace("\\", "/").rpartition("/")[2]


def test_a_projects_name_is_looked_up_and_never_a_path(page, tmp_path: Path) -> None:
    made = page.drop(tiny.write_csv(tmp_path / "toy.csv", tiny.toy_examples(20)))
    for name in ("..", "%2e%2e", f"..%2Fui%2F{made}", f"{made}%2F..", "other"):
        answer = page.browser.get(f"/api/projects/{name}/columns")
        assert answer.status_code in (404, 405), name
        assert "columns" not in answer.json()


def test_two_tables_of_one_name_are_two_projects(page, tmp_path: Path) -> None:
    file = tiny.write_csv(tmp_path / "toy.csv", tiny.toy_examples(20))
    assert [page.drop(file), page.drop(file)] == ["toy", "toy-2"]
    listed = page.browser.get("/api/projects").json()
    assert {(one["id"], one["name"], one["phase"]) for one in listed} == {
        ("toy", "toy.csv", "new"),
        ("toy-2", "toy.csv", "new"),
    }


def test_what_cannot_be_taken_leaves_nothing(page, monkeypatch: pytest.MonkeyPatch) -> None:
    post = page.browser.post
    assert "mine.csv is empty" in told(post("/api/projects?name=mine.csv", content=b""))
    message = told(post("/api/projects?name=mine.exe", content=b"MZ"))
    assert ".exe" in message
    assert ".parquet" in message
    monkeypatch.setattr(app_module, "UPLOAD_BYTES", 1000)
    answer = post("/api/projects?name=big.csv", content=b"a" * 1001)
    assert answer.status_code == 413
    assert "big.csv is larger than" in answer.json()["error"]
    assert [path.name for path in page.home.iterdir()] == [".key"]


def test_what_is_no_table_is_told_under_the_name_that_people_know_and_leaves_nothing(page) -> None:
    for content, said in (
        (b"\x00\x01\x02\xff" * 200, "mine.csv"),
        (b"text,label\n", "mine.csv holds no row"),
        (b"text,label\nbroken \xff,good\n", "mine.csv:2 is not utf-8"),
    ):
        message = told(page.browser.post("/api/projects?name=mine.csv", content=content))
        assert said in message
        assert "table.csv" not in message
        assert str(page.home) not in message
        assert [path.name for path in page.home.iterdir()] == [".key"]


def test_columns_are_guessed_or_asked_for_and_can_be_chosen(page, tmp_path: Path) -> None:
    table().assign(queue=["x", "y", "z"] * 20).rename(columns={"label": "mood"}).to_csv(
        tmp_path / "odd.csv", index=False
    )
    name = page.drop(tmp_path / "odd.csv")
    found = page.browser.get(f"/api/projects/{name}/columns").json()
    assert found["text"] == []
    assert found["label"] == ""
    assert any("choose both" in note for note in found["notes"])
    assert "which column" in told(page.browser.get(f"/api/projects/{name}/task"))
    choose = f"/api/projects/{name}/columns"
    for text, label in (([], "mood"), (["text", "mood"], "mood")):
        told(page.browser.post(choose, json={"text": text, "label": label}))
    told(page.browser.post(choose, json={"text": ["text"], "label": "nowhere"}))
    assert page.browser.post(choose, json={"text": ["text"], "label": "mood"}).status_code == 204
    labels = page.browser.get(f"/api/projects/{name}/task").json()["labels"]
    assert {one["name"]: one["count"] for one in labels} == {"good": 30, "bad": 30}


def test_a_table_of_one_class_is_told_before_anything_starts(page, tmp_path: Path) -> None:
    table().assign(label="good").to_csv(tmp_path / "one.csv", index=False)
    name = page.drop(tmp_path / "one.csv")
    page.browser.get(f"/api/projects/{name}/columns")
    assert "good" in told(page.browser.get(f"/api/projects/{name}/task"))
    told(page.browser.post(f"/api/projects/{name}/start", json={"budget": "quick"}))
    assert page.browser.get(f"/api/projects/{name}/state").json()["phase"] == "new"


def test_the_page_tells_what_inspect_tells(page, tmp_path: Path) -> None:
    rows = table()
    rows.loc[len(rows)] = [rows.text[0], "bad"]  # a text twice, with another label
    rows.loc[len(rows)] = ["A new one.", "Good"]
    rows.to_csv(tmp_path / "toy.csv", index=False)
    pd.DataFrame({"text": [rows.text[3], "Unseen."], "label": ["good", "bad"]}).to_csv(
        tmp_path / "new.csv", index=False
    )
    name = page.drop(tmp_path / "toy.csv")
    page.browser.get(f"/api/projects/{name}/columns")
    content = (tmp_path / "new.csv").read_bytes()
    page.browser.post(f"/api/projects/{name}/test?file=new.csv", content=content)
    found = page.browser.get(f"/api/projects/{name}/task").json()
    inspection = inspect_task(page.project(name).settings())
    assert inspection.overlap is not None
    assert inspection.overlap.dropped_by_set == {"test": 1}
    assert inspection.overlap.num_conflicts == 1
    assert found["overlap"] == inspection.overlap.sentence
    assert not found["is_clean"]
    assert any("look the same" in note for note in found["notes"])
    assert found["sets"] == inspection.num_examples
    assert found["sets"]["test"] == 2
    assert (
        "".join(token["text"] for token in found["prompt"])
        .rstrip()
        .endswith("".join(token["text"] for token in found["prompt"] if token["answer"]).strip())
    )


def test_each_budget_is_a_grid_that_compare_takes_with_what_must_be_beaten(
    page, tmp_path: Path
) -> None:
    name = page.drop(tiny.write_csv(tmp_path / "toy.csv", tiny.toy_examples(60)))
    page.browser.get(f"/api/projects/{name}/columns")
    project = page.project(name)
    planned = page.browser.get(f"/api/projects/{name}/budgets").json()
    assert [one["name"] for one in planned] == list(BUDGETS)
    for one, budget in zip(planned, BUDGETS.values(), strict=True):
        write_grid(project, budget)
        grid = expand_grid(load_grid(project.folder / "grid.yaml"))
        assert not grid.refused
        assert {run.name for run in grid.runs} == {*one["methods"], *BASELINES}
        assert len(grid.runs) == budget.seeds * len(budget.methods)
        assert yaml.safe_load((project.folder / "grid.yaml").read_text())["base"]["model"]
    seconds = [one["seconds"] for one in planned]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    plans = json.loads((project.folder / "plan.json").read_text())["budgets"]
    for one, budget in zip(planned, BUDGETS.values(), strict=True):
        plan = plans[one["name"]]["methods"]
        sums = sum(plan[method]["seconds"] for method in budget.methods)
        assert one["seconds"] == pytest.approx(budget.seeds * sums)
        assert one["memory_bytes"] == max(plan[method]["memory_bytes"] for method in budget.methods)
        assert one["num_train"] + one["num_test"] == 60


def test_a_budget_takes_no_more_rows_than_it_says_and_a_small_table_whole(
    page, tmp_path: Path
) -> None:
    name = page.drop(tiny.write_csv(tmp_path / "toy.csv", tiny.toy_examples(60)))
    project = page.project(name)
    for num_train, max_test, expected in (
        (30, 7, (30, 7)),
        (500, 300, (42, 18)),
        (None, None, (42, 18)),
    ):
        budget = Budget("", ("tfidf",), num_train=num_train, max_test=max_test)
        data = prepare_data(settings_from_dict(base_of(project, budget)))
        num_train = len(data.train) + len(data.demonstrations)
        assert (num_train, len(data.evaluations["test"])) == expected
    project.choose(base={"data": {"num_train": 20, "max_test": 5}})  # what was asked for stays
    budget = Budget("", ("tfidf",), num_train=30, max_test=7)
    assert base_of(project, budget)["data"].items() >= {"num_train": 20, "max_test": 5}.items()
