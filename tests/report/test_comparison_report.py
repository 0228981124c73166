"""The report of a comparison: one file that opens anywhere, with every number also in a table."""

import base64
import html
import json
import re
import shutil
import subprocess
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from html_reader import Page
from taskfit.errors import CheckpointError
from taskfit.files import append_jsonl, write_json_atomic
from taskfit.report import tables
from taskfit.report.advice import Limits
from taskfit.report.comparison_page import report_comparison
from taskfit.report.evidence import read_evidence
from taskfit.report.hard_examples import hard_examples, suspected_label_errors
from taskfit.report.variants import summary_size
from taskfit.runs.records import RunResult
from taskfit.screen import SilentScreen
from taskfit.settings_file import dump_settings, settings_from_dict
from taskfit.stats import Evaluation, evaluate_multi_label, evaluate_probabilities
from taskfit.stats.comparison import compare_methods

LABELS = ("bad", "good")
SETS = ("new", "old")
NUM_EXAMPLES = 40
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def seed_of(*parts: object) -> int:
    return zlib.crc32(repr(parts).encode())


def write_run(
    folder: Path,
    name: str,
    *,
    size: int = 16,
    seed: int = 0,
    method: str = "tfidf",
    model: str = "tiny",
    skill: float = 1.0,
    labels: Sequence[str] = LABELS,
    sets: Sequence[str] = SETS,
    metric: str = "accuracy",
    multi_label: bool = False,
    num_unanswered: int = 0,
    num_steps: int = 0,
    text: str = "A text",
    costs: float = 1.0,
    changes: dict[str, Any] | None = None,
) -> Path:
    """A finished run as `taskfit compare` leaves it, with answers made up; returns its folder."""
    settings = {"seed": seed, "method": {"name": method}, "data": {"num_train": size or None}}
    if not size:
        settings["method"] |= {"num_demonstrations": 0}
    for key, value in (changes or {}).items():
        section, _, field = key.partition(".")
        settings.setdefault(section, {})[field] = value
    slug = re.sub(r"\W+", "-", name)
    run = folder / "runs" / f"{slug}-{size}-{seed}-{seed_of(name, size, seed, model, changes):08x}"
    (run / "predictions").mkdir(parents=True)
    dump_settings(settings_from_dict(settings), run / "settings.yaml")
    task = {"text": ["text"], "metric": metric, "multi_label": multi_label}
    (run / "classifier.json").write_text(json.dumps({"task": task}), encoding="utf-8")
    evaluations: dict[str, Evaluation] = {}
    for place, evaluation in enumerate(sets):
        gold = np.random.default_rng(place).integers(0, len(labels), NUM_EXAMPLES)
        generator = np.random.default_rng(seed_of(name, size, seed, evaluation, changes))
        scores = generator.normal(size=(NUM_EXAMPLES, len(labels)))
        scores[np.arange(NUM_EXAMPLES), gold] += skill
        if multi_label:
            present = np.eye(len(labels), dtype=bool)[gold]
            probabilities = 1 / (1 + np.exp(-scores))
            found = evaluate_multi_label(probabilities, present, labels=labels)
            several = ["|".join(np.array(labels)[row >= 0.5]) for row in probabilities]
            table = {"gold": [labels[g] for g in gold], "predicted": several}
        else:
            probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            probabilities[:num_unanswered] = np.nan
            found = evaluate_probabilities(probabilities, gold, labels=labels)
            answers = [None if np.isnan(p).any() else labels[p.argmax()] for p in probabilities]
            table = {"gold": [labels[g] for g in gold], "predicted": answers}
        evaluations[evaluation] = found
        ids = [f"{evaluation}:{i}" for i in range(NUM_EXAMPLES)]
        texts = [f"{text} {i}" for i in range(NUM_EXAMPLES)]
        columns = {f"p_{label}": probabilities[:, i] for i, label in enumerate(labels)}
        frame = pd.DataFrame({"id": ids, "text": texts, **table, **columns})
        frame.to_parquet(run / "predictions" / f"{evaluation}.parquet")
    for step in range(1, num_steps + 1):
        append_jsonl(run / "metrics.jsonl", {"kind": "step", "step": step, "loss": 1.0 / step})
    RunResult(
        name=name,
        method=method,
        weights="none",
        model=model,
        task="toy v1",
        num_train=size,
        num_demonstrations=0,
        seed=seed,
        evaluations=evaluations,
        duration_seconds=2.5 * costs,
        training_seconds=costs if num_steps else 0.0,
        peak_memory_bytes=int(5_000_000 * costs),
        memory_by_stage={"model": 1},
        tokens={"unique": 1, "padded": 1},
        num_parameters=1,
        num_trainable=1,
        best_step=0,
        cpu_seconds=4.5 * costs,
        latency_seconds=0.002,
    ).save(run)
    return run


def write_grid(folder: Path, **options: Any) -> Path:
    """Three methods, two sizes, two draws."""
    for size in (16, 64):
        for seed in (0, 1):
            write_run(folder, "weak", size=size, seed=seed, skill=0.3, **options)
            trained = {**options, "num_steps": 6, "costs": 7.0}
            write_run(folder, "strong", size=size, seed=seed, skill=2.0, method="head", **trained)
    write_run(folder, "zero-shot", size=0, skill=0.8, method="in_context", **options)
    return folder


def report(folder: Path) -> str:
    path = report_comparison(folder, limits=Limits(), screen=SilentScreen())
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Pictures of one pixel, since drawing takes most of the time; their paths."""
    seen: list[Path] = []

    def savefig(_: Figure, path: Path, **__: object) -> None:
        seen.append(path)
        path.write_bytes(PIXEL)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return seen


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it, really drawn."""
    folder = write_grid(tmp_path_factory.mktemp("grid"))
    failed = folder / "runs" / "broken-16-0-00000000"
    failed.mkdir()
    write_json_atomic(failed / "failure.json", {"error": "Out of <memory>.", "traceback": ""})
    report(folder)
    return folder


def test_the_report_is_one_file_without_script_or_address(drawn: Path) -> None:
    source = (drawn / "report.html").read_text(encoding="utf-8")
    bare = re.sub(r"base64,[\w+/=]*", "", source)
    assert not re.search(r"(?:https?:)?//\w", bare)
    page = Page(source)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "base"}
    assert {a["href"] for tag, a in page.tags if tag == "link"} == {"data:,"}
    pictures = page.pictures()
    assert len(pictures) == len({str(picture["src"]) for picture in pictures}) > 8
    for picture in pictures:
        assert str(picture["alt"]).endswith(".") or ":" in str(picture["alt"])
        png = base64.b64decode(str(picture["src"]).partition(",")[2], validate=True)
        assert png.startswith(b"\x89PNG")
        size = [int.from_bytes(png[at : at + 4], "big") for at in (16, 20)]
        assert size == [int(str(picture["width"])), int(str(picture["height"]))]
    assert len(list((drawn / "plots").glob("*.png"))) == len(pictures)
    assert len(list((drawn / "plots").glob("*.svg"))) == len(pictures)


def test_every_part_of_the_report_is_there_and_named_by_its_table(drawn: Path) -> None:
    page = Page((drawn / "report.html").read_text(encoding="utf-8"))
    for part in (
        "All methods, 64 labels",
        "All methods, 16 labels",
        "In domain and out of domain",
        "More labels",
        "What it costs",
        "Confusion matrices",
        "How far confidence can be trusted",
        "Training",
        "Spread over draws, 64 labels",
        "Hardest examples",
        "Suspected label errors",
        "Failures",
        "Out of <memory>.",
        "taskfit fit --config runs/strong-64-1-",
    ):
        assert part in page.text, part
    assert "Spread over templates" not in page.text
    named = set(re.findall(r"tables/\w+\.csv", page.text))
    assert named <= {f"tables/{path.name}" for path in (drawn / "tables").iterdir()}
    assert len(named) > 8
    for path in (drawn / "tables").iterdir():
        assert len(pd.read_csv(path)), path
    advice = (drawn / "advice.txt").read_text(encoding="utf-8")
    assert json.loads((drawn / "advice.json").read_text(encoding="utf-8"))["text"].strip() == (
        advice.strip()
    )
    assert advice.split("\n\n")[0].partition("\n")[2].strip() in page.text


def test_the_summary_shows_what_the_comparison_computes(drawn: Path) -> None:
    evidence = read_evidence(drawn)
    names = ("strong", "weak", "zero-shot")
    runs = [[run for run in evidence.runs if (run.name, run.size) == (n, 64)] for n in names]
    runs[2] = [run for run in evidence.runs if run.name == "zero-shot"] * 2
    found = [[run.predictions("new") for run in own] for own in runs]
    predicted = np.array([[one.predicted for one in own] for own in found])
    wanted = compare_methods(predicted, found[0][0].gold, methods=names, metric="accuracy")
    assert wanted.best == "strong"
    page = Page((drawn / "report.html").read_text(encoding="utf-8"))
    shown = next(row for row in page.rows if row[0].startswith("weak"))
    weak, difference = wanted.scores[1], wanted.differences[0]
    assert f"{weak.mean:.3f} {weak.interval[0]:.3f} to {weak.interval[1]:.3f}" in " ".join(
        shown[1].split()
    )
    assert f"{difference.difference:+.3f}".replace("-", "−") in shown[1]
    table = pd.read_csv(drawn / "tables" / "comparison.csv").set_index(
        ["size", "evaluation", "system"]
    )
    row = table.loc[64, "new", "weak"]
    assert row["adjusted_p_value"] == pytest.approx(difference.adjusted_p_value)
    assert row["draws"] == "0 1"
    # Seconds of the processor and of the clock, memory, latency.
    assert [" ".join(cell.split()) for cell in shown[3:8]] == [
        "4.5 s",
        "2.5 s",
        "0.0 s",
        "5 MB",
        "2.0 ms",
    ]


def test_a_method_without_labels_is_compared_with_every_draw(drawn: Path) -> None:
    table = pd.read_csv(drawn / "tables" / "comparison.csv")
    sizes = table[table["system"] == "zero-shot"].groupby("evaluation")["size"].apply(list)
    assert sizes.to_dict() == {"new": [16, 64], "old": [16, 64]}


def test_half_a_grid_is_compared_over_the_draws_that_all_have(
    tmp_path: Path, undrawn: list[Path]
) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path, "cheap", size=16, seed=seed)
        write_run(tmp_path, "cheap", size=64, seed=seed)
    write_run(tmp_path, "dear", size=16, seed=2)
    evidence = read_evidence(tmp_path)
    assert summary_size(evidence.variants) == 16
    found = evidence.align(evidence.contenders(16, "new"), "new")
    assert found.draws == [2]
    assert {d.test for d in found.comparison.differences} == {"mcnemar"}
    larger = evidence.align(evidence.contenders(64, "new"), "new")
    assert [score.method for score in larger.comparison.scores] == ["cheap"]
    assert "draw 2" in Page(report(tmp_path)).text


@pytest.mark.parametrize("size", [0, 16])
def test_one_run_alone_is_reported(tmp_path: Path, undrawn: list[Path], size: int) -> None:
    write_run(tmp_path, "only", size=size, sets=("new",), method="in_context")
    page = Page(report(tmp_path))
    assert "1 finished run of 1 method" in " ".join(page.text.split())
    assert any(path.name == "labels_new.png" for path in undrawn)
    assert not any("domains" in path.name for path in undrawn)


def test_texts_with_several_labels_are_compared_by_exactly_right_sets(
    tmp_path: Path, undrawn: list[Path]
) -> None:
    labels = ("a", "b", "c")
    for seed in (0, 1):
        write_run(tmp_path, "one", seed=seed, labels=labels, multi_label=True, metric="macro_f1")
        write_run(tmp_path, "two", seed=seed, labels=labels, multi_label=True, metric="macro_f1")
    page = Page(report(tmp_path))
    assert "exactly right sets of labels" in page.text
    assert "Confusion matrices" not in page.text
    scores = pd.read_csv(tmp_path / "tables" / "scores.csv")
    runs = pd.read_csv(tmp_path / "tables" / "runs.csv")
    means = runs.groupby(["system", "evaluation"])["accuracy"].mean()
    for row in scores.itertuples():
        assert row.score == pytest.approx(means[row.system, row.evaluation])


def test_another_metric_judges_the_same_runs_beside_the_first_report(
    tmp_path: Path, undrawn: list[Path]
) -> None:
    write_grid(tmp_path)
    first = report(tmp_path)
    kept = {path: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    path = report_comparison(tmp_path, limits=Limits(), screen=SilentScreen(), metric="macro_f1")
    assert path == tmp_path / "report-macro_f1.html"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == first
    assert all(file.read_bytes() == content for file, content in kept.items())
    scores = pd.read_csv(tmp_path / "tables-macro_f1" / "scores.csv")
    runs = pd.read_csv(tmp_path / "tables" / "runs.csv")
    means = runs.groupby(["system", "size", "evaluation"])["macro_f1"].mean()
    for row in scores.itertuples():
        assert row.metric == "macro_f1"
        assert row.score == pytest.approx(means[row.system, row.size, row.evaluation])
    assert {one.parent.name for one in undrawn} == {"plots", "plots-macro_f1"}


def test_no_answer_is_wrong_and_counted(tmp_path: Path, undrawn: list[Path]) -> None:
    write_run(tmp_path, "silent", num_unanswered=NUM_EXAMPLES)
    write_run(tmp_path, "shy", num_unanswered=5, skill=9.0)
    page = Page(report(tmp_path))
    table = pd.read_csv(tmp_path / "tables" / "confusion.csv", keep_default_na=False)
    counts = table[table["predicted"] == ""].groupby("system")["count"].sum()
    assert counts.to_dict() == {"silent": NUM_EXAMPLES, "shy": 5}
    assert any("5 without an answer" in str(picture["alt"]) for picture in page.pictures())
    scores = pd.read_csv(tmp_path / "tables" / "scores.csv").set_index(["system", "evaluation"])
    assert scores.loc[("silent", "new"), "score"] == 0
    assert scores.loc[("shy", "new"), "score"] == pytest.approx(1 - 5 / NUM_EXAMPLES)
    hard = pd.read_csv(tmp_path / "tables" / "hard_examples.csv")
    assert set(hard.loc[hard["evaluation"] == "new", "id"]) == {f"new:{i}" for i in range(5)}
    assert set(hard["answers"]) == {"no answer 2"}


def test_names_and_texts_of_users_are_shown_as_they_are_and_warn_of_nothing(
    tmp_path: Path,
) -> None:
    names = ("<b>x</b> $a_1$ 方法", "p|q $")
    labels = ("<i>坏</i> $", "好|&")
    for name in names:
        text = "<script>1</script> $x$ 文"
        write_run(tmp_path, name, labels=labels, sets=("new",), text=text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = report(tmp_path)
    assert "<script>" not in source
    assert "<b>x" not in source
    page = Page(source)
    for name in names:
        assert any(row[0].startswith(name) for row in page.rows), name
    assert "<script>1</script> $x$ 文" in page.text
    svg = next((tmp_path / "plots").glob("labels_new.svg")).read_text(encoding="utf-8")
    assert "$a_1$" in svg


def test_runs_that_repeat_another_are_counted_once_and_others_kept_apart(tmp_path: Path) -> None:
    first = write_run(tmp_path, "zero-shot", size=0, method="in_context")
    shutil.copytree(first, first.with_name("zero-shot-copy"))
    changes = {"task.instruction": "Say it."}
    write_run(tmp_path, "zero-shot", size=0, method="in_context", changes=changes)
    evidence = read_evidence(tmp_path)
    assert sorted(variant.name for variant in evidence.variants) == [
        "zero-shot [instruction=None]",
        "zero-shot [instruction=Say it.]",
    ]
    assert evidence.num_repeated == 1


def test_models_of_one_method_are_named_apart(tmp_path: Path) -> None:
    for model in ("owner/tiny", "large"):
        write_run(tmp_path, "head", method="head", model=model, changes={"model.name": model})
    names = {variant.name for variant in read_evidence(tmp_path).variants}
    assert names == {"head (tiny)", "head (large)"}


@pytest.mark.parametrize(
    ("key", "values", "keys", "title"),
    [
        ("method.num_orders", (1, 4), tables.DEMONSTRATION_KEYS, "Spread over demonstrations"),
        ("task.line", ("{text} {label}", "{text}: {label}"), tables.TEMPLATE_KEYS, "templates"),
    ],
)
def test_spread_over_what_the_grid_varies_is_shown_apart(
    tmp_path: Path,
    undrawn: list[Path],
    key: str,
    values: tuple[Any, ...],
    keys: tuple[str, ...],
    title: str,
) -> None:
    for value in values:
        write_run(tmp_path, f"few {value}", method="in_context", changes={key: value})
    # Another setting differs too, so this one is of no group.
    more = {key: values[0], "method.length_normalization": True}
    write_run(tmp_path, "other", method="in_context", changes=more)
    table = tables.setting_table(read_evidence(tmp_path), keys)
    assert set(table["system"]) == {f"few {value}" for value in values}
    assert set(table["variant"]) == {f"{key.split('.')[1]}={value}" for value in values}
    assert title in Page(report(tmp_path)).text


def test_hard_examples_are_those_that_most_runs_of_most_methods_get_wrong(drawn: Path) -> None:
    evidence = read_evidence(drawn)
    found = hard_examples(evidence, "new", num=NUM_EXAMPLES)
    wrong: dict[str, list[float]] = {}
    for variant in evidence.variants:
        runs = [~run.predictions("new").correct for run in variant.runs]
        ids = variant.runs[0].predictions("new").ids
        for name, share in zip(ids, np.mean(runs, 0), strict=True):
            wrong.setdefault(name, []).append(float(share))
    wanted = {name for name, shares in wrong.items() if np.mean(np.array(shares) > 0.5) > 0.5}
    assert set(found["id"]) == wanted
    assert list(found["wrong_methods"]) == sorted(found["wrong_methods"], reverse=True)
    for row in found.itertuples():
        assert row.num_runs == sum(int(part.rsplit(" ", 1)[1]) for part in row.answers.split(", "))


def test_each_file_of_predictions_is_read_once(
    tmp_path: Path, undrawn: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_grid(tmp_path)
    seen: list[Path] = []
    read = pd.read_parquet
    monkeypatch.setattr(pd, "read_parquet", lambda path: seen.append(path) or read(path))
    report(tmp_path)
    assert sorted(seen) == sorted(tmp_path.glob("runs/*/predictions/*.parquet"))


def test_without_texts_no_file_of_the_report_holds_a_text(
    drawn: Path, tmp_path: Path, undrawn: list[Path]
) -> None:
    shutil.copytree(drawn / "runs", tmp_path / "runs")
    texts = read_evidence(drawn).runs[0].predictions("new").texts
    for wanted in (True, False):
        report_comparison(tmp_path, limits=Limits(), screen=SilentScreen(), texts=wanted)
        files = [tmp_path / "report.html", *(tmp_path / "tables").iterdir()]
        written = " ".join(html.unescape(path.read_text(encoding="utf-8")) for path in files)
        assert any(text in written for text in texts) == wanted


def test_a_wrong_label_is_the_first_suspect(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        run = write_run(tmp_path, name, skill=9.0)
        path = run / "predictions" / "new.parquet"
        table = pd.read_parquet(path)
        table.loc[7, "gold"] = next(x for x in LABELS if x != table.loc[7, "gold"])
        table.to_parquet(path)
    evidence = read_evidence(tmp_path)
    found = suspected_label_errors(evidence, "new")
    assert found["id"].iloc[0] == "new:7"
    assert found["answer"].iloc[0] != found["gold"].iloc[0]
    assert found["answer_probability"].iloc[0] > 0.9


def test_nothing_on_the_pareto_front_is_beaten_and_everything_else_is() -> None:
    generator = np.random.default_rng(0)
    costs, scores = generator.integers(0, 6, 60) / 1.0, generator.integers(0, 6, 60) / 1.0
    front = tables.pareto_front(costs, scores)
    for i in range(60):
        beaten = any(
            costs[j] <= costs[i]
            and scores[j] >= scores[i]
            and (costs[j], scores[j]) != (costs[i], scores[i])
            for j in range(60)
        )
        assert front[i] == (not beaten)


def test_an_empty_folder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"taskfit fit --out. or .taskfit compare --out"):
        report_comparison(tmp_path, limits=Limits(), screen=SilentScreen())


def test_a_damaged_file_of_predictions_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, "one")
    (run / "predictions" / "new.parquet").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"new\.parquet cannot be read"):
        report_comparison(tmp_path, limits=Limits(), screen=SilentScreen())


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WRAPPER = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" src="report.html" style="width:390px;height:800px;border:0"></iframe>
<pre id="found">nothing</pre>
<script>
document.getElementById("page").addEventListener("load", () => {
  const inner = document.getElementById("page").contentDocument;
  for (const one of inner.querySelectorAll("details")) one.open = true;
  const images = [...inner.images];
  document.getElementById("found").textContent = JSON.stringify({
    width: inner.documentElement.scrollWidth,
    room: inner.documentElement.clientWidth,  // a scroll bar takes some of 390
    images: images.length,
    missing: images.filter((one) => !one.complete || !one.naturalWidth).length,
    requests: document.getElementById("page").contentWindow.performance
      .getEntriesByType("resource").map((one) => one.name)
      .filter((name) => !name.startsWith("data:")),
  });
});
</script>"""


def test_a_browser_shows_the_page_on_a_phone_without_overflow_errors_or_requests(
    drawn: Path, tmp_path: Path
) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser on the PATH ({', '.join(BROWSERS)})")
    shutil.copy(drawn / "report.html", tmp_path / "report.html")
    (tmp_path / "wrapper.html").write_text(WRAPPER, encoding="utf-8")
    done = subprocess.run(
        [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            (tmp_path / "wrapper.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stdout[:500]
    found = json.loads(match.group(1))
    assert found["width"] == found["room"] <= 390
    assert found["missing"] == 0
    assert found["images"] == len(list((drawn / "plots").glob("*.png")))
    assert found["requests"] == []
    assert "CONSOLE" not in done.stderr
