"""The study of the defaults: its jobs, its resumption, and the arithmetic of its report."""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import defaults
from defaults import CONTENDERS, SIZES, Job, plan, read_record, seconds_left
from defaults_data import READERS, Table, load_table, write_csv, write_peer_data
from defaults_report import cells_of, judge, mcc_resamples, mean_difference, page, resamples_of
from peer_data import read_data

NUM_TEXTS = 60
GOLD = [i % 3 for i in range(NUM_TEXTS)]


def record(data: str, size: int, seed: int, contender: str, wrong: int, **more: Any) -> Any:
    """A made-up record in which the first `wrong` answers, from the seed-th on, are wrong."""
    answers = list(GOLD)
    for i in range(seed, seed + wrong):
        answers[i] = (GOLD[i] + 1) % 3
    return {
        **{"data": data, "size": size, "num_labels": size, "seed": seed, "contender": contender},
        **{"gold": GOLD, "predicted": answers, "mcc": float(matthews_corrcoef(GOLD, answers))},
        **{"accuracy": 1 - wrong / NUM_TEXTS, "log_loss": 0.5, "macro_f1": 0.5},
        **{"method": "head", "settings": {"method": {"blend": "minilm"}}, "seconds": 10.0},
        **{"cpu_seconds": 9.0, "job_seconds": 11.0, "threads": 1, "load": 1.0, "code": "abc"},
        **{"versions": {"torch": "2"}, "command": "python benchmarks/defaults.py"},
        "machine": {"processor": "P", "cores": "2", "system": "Linux"},
        "given": CONTENDERS[contender],
        **more,
    }


def study(wrong: dict[str, int], *, sets: tuple[str, ...] = ("cola", "rte"), **more: Any) -> list:
    return [
        record(data, 64, seed, name, errors, **more)
        for data in sets
        for seed in (0, 1)
        for name, errors in wrong.items()
    ]


def reached(records: list[Any]) -> dict[str, bool | None]:
    return {goal["goal"].split(",")[0]: goal["reached"] for goal in judge(records)["goals"]}


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_resampled_mcc_equals_scikit_learns_on_the_texts_drawn(num_classes: int) -> None:
    generator = np.random.default_rng(num_classes)
    gold = generator.integers(0, num_classes, 30)
    # Some right, some without an answer.
    predicted = np.where(generator.random(30) < 0.5, gold, generator.integers(-1, num_classes, 30))
    weights = resamples_of("any", 30, num_resamples=20)
    expected = [
        matthews_corrcoef(np.repeat(gold, w), np.repeat(predicted, w)) for w in weights.astype(int)
    ]
    assert mcc_resamples(gold, predicted, weights) == pytest.approx(expected, abs=1e-12)


def test_differences_are_means_over_seeds_and_their_interval_holds_them() -> None:
    (cell,) = cells_of(study({"default": 6, "tfidf": 15}, sets=("cola",)))
    found = cell.difference("tfidf")
    assert found is not None
    by_seed = [
        a["mcc"] - b["mcc"]
        for a, b in zip(cell.records["default"], cell.records["tfidf"], strict=True)
    ]
    assert found["gain"] == pytest.approx(np.mean(by_seed))
    assert 0 < found["low"] < found["gain"] < found["high"]
    assert cell.difference("probe") is None


def test_a_text_is_drawn_with_all_its_predictions() -> None:
    # Equal contenders never differ, in no resample; nor is the interval of a mean over two sizes
    # of the same texts narrower than that of one.
    records = study({"default": 9, "tfidf": 9, "probe": 15}, sets=("cola",))
    larger = [{**r, "size": 256} for r in records]
    one, two = cells_of([*records, *larger])
    same = mean_difference([(one, "tfidf")])
    assert same == {"gain": 0.0, "low": 0.0, "high": 0.0}
    assert mean_difference([(one, "probe"), (two, "probe")]) == mean_difference([(one, "probe")])


def test_the_best_at_all_may_be_the_default_and_is_never_below_it() -> None:
    for wrong in ({"default": 3, "tfidf": 9}, {"default": 9, "tfidf": 3}):
        (cell,) = cells_of(study(wrong, sets=("cola",)))
        best = cell.difference(cell.best(cell.records))
        assert best is not None
        assert best["other"] == min(wrong, key=lambda name: wrong[name])
        assert best["gain"] <= 0


def test_goals_are_reached_where_the_figures_say_so_and_cells_below_are_marked() -> None:
    good = {"default": 3, "tfidf": 9, "probe": 6, "probe-minilm": 5}
    assert set(reached(study(good)).values()) == {True, None}
    assert not any(row["marks"] for row in judge(study(good))["cells"])
    bad = {"default": 12, "tfidf": 9, "probe": 3, "probe-minilm": 15}
    assert set(reached(study(bad)).values()) == {False, None}
    for row in judge(study(bad))["cells"]:
        assert row["against"]["probe"]["other"] == "probe"
        assert [mark.split(" (")[0] for mark in row["marks"]] == [
            "below TF-IDF",
            "over .02 below probe",
        ]


def test_one_cell_below_is_enough_to_miss_a_goal_of_every_cell() -> None:
    low = study({"default": 9, "tfidf": 8, "probe": 5}, sets=("cola",))
    high = study({"default": 1, "tfidf": 8, "probe": 6}, sets=("rte", "cr"))
    found = reached([*low, *high])
    assert found["At least TF-IDF on every set and size"] is False
    assert found["At least the best probe - .02 on every set and size"] is False
    assert found["Above the best probe on average"] is True


@pytest.mark.parametrize(
    ("wrong", "seconds", "expected"), [(9, 20.0, True), (9, 5.0, False), (2, 20.0, False)]
)
def test_setfit_is_to_be_beaten_in_quality_and_in_time(
    wrong: int, seconds: float, expected: bool
) -> None:
    theirs = study({"setfit": wrong}, seconds=seconds, cpu_seconds=seconds)
    records = study({"default": 3}) + theirs
    assert reached(records)["Above SetFit on average"] is expected


def test_what_the_cache_spared_is_a_cost_all_the_same() -> None:
    records = study({"default": 3}, spared_seconds=40.0) + study({"setfit": 9}, cpu_seconds=20.0)
    assert judge(records)["sizes"]["64"]["rows"][0]["cpu_seconds"] == 49.0
    assert reached(records)["Above SetFit on average"] is False


def test_a_contender_without_all_cells_is_in_no_mean_but_named() -> None:
    records = study({"default": 3, "tfidf": 9, "probe": 6})
    missing = next(r for r in records if r["contender"] == "probe" and r["data"] == "rte")
    size = judge([r for r in records if r is not missing])["sizes"]["64"]
    assert [row["contender"] for row in size["rows"]] == ["default", "tfidf"]
    assert size["partial"] == {"probe": 1}
    assert size["rows"][0]["accuracy"] == pytest.approx(1 - 3 / NUM_TEXTS)


def test_records_of_different_test_sets_are_refused() -> None:
    other = record("cola", 64, 0, "default", 3, gold=[1, *GOLD[1:]])
    with pytest.raises(ValueError, match="other test sets"):
        judge([record("cola", 64, 0, "tfidf", 3), other])


def test_the_page_shows_every_cell_and_what_it_was_made_by() -> None:
    written = page(judge(study({"default": 12, "tfidf": 9, "probe": 3})))
    for text in ("| cola | 64 |", "| rte | 64 |", "head + minilm", "below TF-IDF", "torch 2"):
        assert text in written
    rows = [line for line in written.split("\n") if line.startswith("| cola")]
    assert len(rows) == 2
    json.dumps(judge(study({"default": 12})))


def test_parts_divide_the_jobs_without_overlap_and_keep_cells_whole() -> None:
    selection = (list(READERS), SIZES, [0, 1, 2], list(CONTENDERS))
    whole = plan(*selection)
    for parts in (2, 3):
        shares = [plan(*selection, part=(mine, parts)) for mine in range(1, parts + 1)]
        assert sorted(map(str, whole)) == sorted(str(job) for share in shares for job in share)
        cells = [{(j.data, j.size, j.seed) for j in share} for share in shares]
        assert not set.intersection(*cells)
        assert all({data for data, _, _ in found} == set(READERS) for found in cells)


def test_jobs_go_from_small_to_large_and_finish_a_cell_before_the_next() -> None:
    jobs = plan(["cola", "banking77"], [1024, 64], [1, 0], ["default", "setfit", "tfidf"])
    cells = list(dict.fromkeys((job.seed, job.size, job.data) for job in jobs))
    assert cells[:4] == [(1, 64, "cola"), (1, 64, "banking77"), (1, 1024, "cola"),
                         (1, 1024, "banking77")]  # fmt: skip
    assert [job.contender for job in jobs[:3]] == ["tfidf", "setfit", "default"]
    assert {job.size for job in jobs if job.contender == "setfit"} == {64}
    assert {job.num_labels for job in jobs if job.data == "banking77"} == {308, 1078}


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """A small study on a made-up data set, with cheap contenders, and a machine not measured."""
    rows = [
        {"text": f'{"good" if i % 2 else "poor"}, "{i}"', "label": "yn"[i % 2]} for i in range(40)
    ]
    monkeypatch.setattr(defaults, "read_table", lambda *_: Table(["text"], rows[:30], rows[30:]))
    monkeypatch.setattr(
        defaults, "machine", lambda: {"processor": "P", "cores": "2", "system": "Linux"}
    )
    return argparse.Namespace(data=tmp_path, work=tmp_path, threads=1, peer_python=None)


def test_a_finished_job_is_skipped_until_its_settings_change(
    arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    jobs = [Job("cola", 20, 0, name) for name in ("majority", "tfidf")]
    assert defaults.run_jobs(jobs[:1], arguments) == []
    before = jobs[0].path(arguments.work).stat().st_mtime_ns
    assert defaults.run_jobs(jobs, arguments) == []
    assert "2 jobs, 1 of them done already" in capsys.readouterr().out
    assert jobs[0].path(arguments.work).stat().st_mtime_ns == before
    assert [path.name for path in arguments.work.iterdir()] == ["records"]
    found = read_record(jobs[1], arguments.work)
    assert found is not None
    assert found["mcc"] == 1.0
    assert found["gold"] == found["predicted"]
    assert found["settings"]["method"]["name"] == found["method"] == "tfidf"
    assert found["num_test"] == 10
    assert found["seconds"] > 0
    changed = {"method": {"name": "majority"}, "seed": 5}
    monkeypatch.setitem(CONTENDERS, "majority", changed)
    assert read_record(jobs[0], arguments.work) is None


def test_a_job_that_fails_stops_no_other_and_is_named(
    arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTENDERS, "head", {"method": {"name": "no such method"}})
    jobs = [Job("cola", 20, 0, name) for name in ("head", "majority")]
    assert defaults.run_jobs(jobs, arguments) == ["cola 20 seed 0 head"]
    assert read_record(jobs[1], arguments.work) is not None


def test_the_report_leaves_out_records_of_other_settings(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing to report"):
        defaults.write_report(tmp_path, tmp_path / "d.md")
    (tmp_path / "records").mkdir()
    old = study({"probe": 1}, given={"method": {"name": "head"}})
    for number, found in enumerate([*study({"default": 3, "tfidf": 9}), *old]):
        (tmp_path / "records" / f"{number}.json").write_text(json.dumps(found), encoding="utf-8")
    defaults.write_report(tmp_path, tmp_path / "d.md")
    judged = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert list(judged["cells"][0]["contenders"]) == ["default", "tfidf"]
    assert (tmp_path / "d.md").read_text(encoding="utf-8") == page(judged)


def test_time_left_is_told_by_like_jobs_where_there_are_any() -> None:
    jobs = [Job("cola", 256, 0, "tfidf"), Job("rte", 256, 0, "probe")]
    known = [{"contender": "tfidf", "size": s, "job_seconds": s / 64} for s in (64, 256)]
    assert seconds_left(jobs, known) == pytest.approx(4.0 + 2.5)
    assert seconds_left(jobs, []) == 0.0


def test_files_hold_what_was_drawn_for_us_and_for_the_peer(tmp_path: Path) -> None:
    rows = [
        {"premise": 'a "b",\nc', "hypothesis": "é", "label": "x"},
        {"premise": "d", "hypothesis": "", "label": "y"},
    ]
    with write_csv(tmp_path / "t.csv", rows).open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows
    table = Table(["premise", "hypothesis"], rows, rows[::-1])
    write_peer_data(tmp_path / "peer", table, rows)
    data = read_data(tmp_path / "peer")
    assert data.train.texts == ['a "b",\nc é', "d "]
    assert (data.train.gold, data.tests["test"].gold) == ([0, 1], [1, 0])


@pytest.mark.parametrize("name", [name for name in READERS if name != "sentiment"])
def test_draws_are_nested_and_share_no_text_with_the_test(name: str, shared_data: Path) -> None:
    if not (shared_data / name).is_dir():
        pytest.skip(f"no folder {name} there")
    table = load_table(name, shared_data)
    assert 200 < len(table.test) <= 500
    small, large = (table.draw(size, seed=3) for size in (308, 1078))
    assert (len(small), len(large)) == (308, 1078)
    assert large[:308] == small
    assert {row["label"] for row in small} == {row["label"] for row in table.test}
    assert small != table.draw(308, seed=4)
    texts = [{tuple(row[c] for c in table.columns) for row in some} for some in (large, table.test)]
    assert not set.intersection(*texts)
    assert all(set(row) == {*table.columns, "label"} for row in table.test)
