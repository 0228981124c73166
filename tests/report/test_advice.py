"""The advice follows from the evidence alone: laws over planted comparisons."""

import dataclasses
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from taskfit.errors import CheckpointError
from taskfit.report.advice import Advice, Limits, advise
from taskfit.report.aligned import AlignedPredictions
from taskfit.report.choice import choose
from taskfit.report.evidence import Evidence, read_evidence
from taskfit.report.finished_run import FinishedRun
from taskfit.report.sentences import FIRST
from taskfit.report.variants import Contender, MethodVariant
from taskfit.runs.records import RunResult, describe_machine
from taskfit.settings_file import dump_settings, load_run_settings, settings_from_dict
from taskfit.stats import (
    bootstrap,
    evaluate_multi_label,
    evaluate_probabilities,
)
from taskfit.stats.comparison import difference_interval
from taskfit.stats.learning_curve import HELPS
from taskfit.stats.per_class import class_rows
from tiny_records import run_result

LABELS = ["bad", "good"]
NUM_EXAMPLES = 300


pytestmark = pytest.mark.usefixtures("fewer_resamples")


@dataclass(frozen=True)
class Planted:
    """A method with a known chance to be right; `skill` by evaluation set, or for all."""

    name: str
    kind: str
    skill: float | dict[str, float] = 0.5
    seconds: float = 10.0
    memory: int = 100_000_000
    latency: float | None = 0.05
    sizes: tuple[int, ...] = (64,)
    draws: tuple[int, ...] = (0,)
    confidence: float | None = None  # of every answer; None: as often as it is right
    unanswered: int = 0
    model: str = "tiny"
    curve: tuple[float, float, float] | None = None  # skill is 1 - a - b n^-c instead
    machine: tuple[tuple[str, str], ...] = ()  # other than this one
    says_one_label: bool = False


def plant(
    folder: Path,
    methods: Sequence[Planted],
    *,
    sets: Sequence[str] = ("here",),
    seed: int = 0,
    num_examples: int = NUM_EXAMPLES,
    multi_label: bool = False,
    cpu_share: float = 1.0,
) -> Evidence:
    """Write the run folders of a comparison and read them back."""
    for method in methods:
        for size in method.sizes:
            for draw in method.draws:
                path = folder / "runs" / f"{method.name}-{method.model}-{size}-{draw}"
                _write_run(
                    path,
                    dataclasses.replace(method, skill=_skill(method, size)),
                    size,
                    draw,
                    sets=sets,
                    seed=seed,
                    num_examples=num_examples,
                    multi_label=multi_label,
                    cpu_share=cpu_share,
                )
    return read_evidence(folder)


def _skill(method: Planted, size: int) -> float | dict[str, float]:
    if method.curve is None:
        return method.skill
    a, b, c = method.curve
    return 1 - a - b * float(size) ** -c


def _write_run(
    path: Path,
    method: Planted,
    size: int,
    draw: int,
    *,
    sets: Sequence[str],
    seed: int,
    num_examples: int,
    multi_label: bool,
    cpu_share: float,
) -> None:
    (path / "predictions").mkdir(parents=True)
    evaluations = {}
    for name in sets:
        gold = np.random.default_rng([seed, len(name)]).integers(0, 2, num_examples)
        skill = method.skill[name] if isinstance(method.skill, dict) else method.skill
        own = [seed, draw, size, int(1000 * skill), int(method.seconds), len(name)]
        generator = np.random.default_rng(own)
        right = generator.random(num_examples) < skill
        if method.kind == "majority" or method.says_one_label:
            right = gold == 1
        predicted = np.where(right, gold, 1 - gold)
        sure = method.confidence or min(max(skill, 0.5), 0.99)
        probabilities = np.full((num_examples, 2), 1 - sure)
        probabilities[np.arange(num_examples), predicted] = sure
        probabilities[: method.unanswered] = np.nan
        words = [LABELS[i] for i in predicted]
        words[: method.unanswered] = [None] * method.unanswered
        golden = [LABELS[i] for i in gold]
        if multi_label:
            present = np.eye(2, dtype=bool)[gold] | (np.arange(num_examples) % 3 == 0)[:, None]
            chosen = np.where(right[:, None], present, ~present)
            probabilities = np.where(chosen, 0.9, 0.1)
            golden = ["|".join(np.array(LABELS)[row]) for row in present]
            words = ["|".join(np.array(LABELS)[row]) for row in chosen]
            evaluations[name] = evaluate_multi_label(probabilities, present, labels=LABELS)
        else:
            evaluations[name] = evaluate_probabilities(probabilities, gold, labels=LABELS)
        table = pd.DataFrame({"id": [f"{name}:{i}" for i in range(num_examples)], "text": "A"})
        table["gold"], table["predicted"] = golden, words
        for i, label in enumerate(LABELS):
            table[f"p_{label}"] = probabilities[:, i]
        table.to_parquet(path / "predictions" / f"{name}.parquet")
    result = dataclasses.replace(
        run_result(method.name, **evaluations),
        method=method.kind,
        model=method.model if method.kind not in ("majority", "tfidf") else method.kind,
        num_train=size,
        num_demonstrations=0,
        seed=draw,
        duration_seconds=method.seconds,
        cpu_seconds=method.seconds * cpu_share,
        peak_memory_bytes=method.memory,
        latency_seconds=method.latency,
        machine=describe_machine() | dict(method.machine),
    )
    result.save(path)
    data = {"num_train": size} if size else {}
    own = {"name": method.kind} | ({"num_demonstrations": 0} if not size else {})
    settings = {"task": {"name": "sentiment"}, "method": own, "data": data, "seed": draw}
    dump_settings(settings_from_dict(settings), path / "settings.yaml")
    task = {"metric": "accuracy", "multi_label": multi_label, "text": ["text"]}
    (path / "classifier.json").write_text(json.dumps({"task": task}), encoding="utf-8")


MAJORITY = Planted("majority", "majority", seconds=1, memory=0, latency=0.001)
TFIDF = Planted("tfidf", "tfidf", skill=0.7, seconds=1.0, memory=0, latency=0.001)
PROBE = Planted("probe", "probe", skill=0.9, seconds=20)
HEAD = Planted("head", "head", skill=0.9, seconds=200, memory=900_000_000)
NONE = Limits()


def recommended(advice: Advice) -> str | None:
    found = advice.to_dict()["recommended"]
    return found and found["method"]


def assert_sound(advice: Advice) -> None:
    """JSON as it is, and a text without leftovers of writing it."""
    assert json.loads(json.dumps(advice.to_dict(), allow_nan=False)) == advice.to_dict()
    for wrong in (
        "None",
        "nan",
        "{",
        "  ",
        "..",
        "1 texts",
        "1 draws",
        "1 labels",
        " ,",
        " .",
        "-0.00",
    ):
        assert wrong not in advice.text, (wrong, advice.text)
    assert not re.search(r"\b(inf|True|False)\b", advice.text)
    parts = [*advice.paragraphs, *advice.details]
    assert all(part.text.strip() for part in parts)
    assert len({part.heading for part in parts}) == len(parts)
    assert [str(part) for part in parts] == advice.text.replace("Details.\n\n", "").split("\n\n")


def test_a_method_that_is_better_and_cheaper_is_recommended(tmp_path: Path) -> None:
    best = dataclasses.replace(PROBE, skill=0.95, seconds=5)
    advice = advise(plant(tmp_path, [MAJORITY, TFIDF, best, HEAD]), limits=NONE)
    assert_sound(advice)
    assert recommended(advice) == "probe"
    facts = advice.to_dict()
    score = facts["recommended"]["score"]
    low, high = facts["recommended"]["interval"]
    first = advice.paragraphs[0].text
    assert first.startswith(
        f"Take probe with tiny on 64 labels: accuracy {score:.2f} (95 % interval"
    )
    assert f"{low:.2f} to {high:.2f}" in first
    assert "It beats the majority class by" in advice.text
    assert "a pretrained model is worth it" in advice.text


@pytest.mark.parametrize("cost", ["seconds", "memory", "latency"])
def test_of_methods_that_are_not_significantly_different_the_cheaper_one_is_taken(
    tmp_path: Path, cost: str
) -> None:
    equal = dataclasses.replace(PROBE, name="dear", kind="head", skill=0.91)
    cheap = dataclasses.replace(PROBE, name="cheap", **{cost: getattr(PROBE, cost) * 0.5})
    if cost == "memory":
        cheap = dataclasses.replace(cheap, memory=PROBE.memory // 2)
    advice = advise(plant(tmp_path, [MAJORITY, equal, cheap]), limits=NONE)
    assert recommended(advice) == "cheap"
    choice = advice.to_dict()["choice"]
    assert set(choice["equals"]) == {"cheap", "dear"}
    if choice["best"]["method"] == "dear":
        names = {"seconds": "train_seconds", "memory": "memory_bytes", "latency": "latency_seconds"}
        assert choice["saves"] == names[cost]
        assert "not beyond chance" in advice.text


def test_a_draw_that_waited_for_other_programs_makes_no_method_dear(tmp_path: Path) -> None:
    draws = [dataclasses.replace(PROBE, draws=(0,)), dataclasses.replace(PROBE, draws=(1,))]
    draws[1] = dataclasses.replace(draws[1], seconds=5000)
    dear = dataclasses.replace(HEAD, skill=0.91, draws=(0, 1))
    majority = dataclasses.replace(MAJORITY, draws=(0, 1))
    advice = advise(plant(tmp_path, [majority, *draws, dear]), limits=NONE)
    assert recommended(advice) == "probe"
    assert advice.to_dict()["recommended"]["train_seconds"] == 20


def test_a_little_cheaper_is_not_taken_instead_of_the_best(tmp_path: Path) -> None:
    better = dataclasses.replace(PROBE, name="better", skill=0.93, seconds=21)
    evidence = plant(tmp_path, [MAJORITY, PROBE, better])
    advice = advise(evidence, limits=NONE)
    assert recommended(advice) == advice.to_dict()["choice"]["best"]["method"]


def test_the_order_of_runs_changes_no_word(tmp_path: Path) -> None:
    evidence = plant(tmp_path, [MAJORITY, TFIDF, PROBE, HEAD], sets=("here", "there"))
    texts = set()
    for seed in range(3):
        runs = list(evidence.runs)
        random.Random(seed).shuffle(runs)
        texts.add(
            advise(dataclasses.replace(evidence, runs=runs), limits=NONE).text.split("At four")[0]
        )
    assert len(texts) == 1


def test_other_names_change_the_names_only(tmp_path: Path) -> None:
    methods = [MAJORITY, TFIDF, PROBE, HEAD]
    plain = advise(plant(tmp_path / "a", methods), limits=NONE)
    names = dict(zip([m.name for m in methods], ["zz", "yy", "xx", "aa"], strict=True))
    renamed = advise(
        plant(tmp_path / "b", [dataclasses.replace(m, name=names[m.name]) for m in methods]),
        limits=NONE,
    )
    expected = plain.text.split("\n\n")[0]
    for old, new in names.items():
        expected = re.sub(rf"\b{old}\b", new, expected)
    assert renamed.text.split("\n\n")[0] == expected


@pytest.mark.parametrize("limit", [300, 150, 15, 5, 0.5])
def test_what_exceeds_a_limit_is_never_recommended(tmp_path: Path, limit: float) -> None:
    best = dataclasses.replace(HEAD, skill=0.97)
    middle = dataclasses.replace(PROBE, skill=0.85, seconds=10)
    evidence = plant(tmp_path, [MAJORITY, TFIDF, middle, best])
    advice = advise(evidence, limits=Limits(max_train_seconds=limit))
    assert_sound(advice)
    facts = advice.to_dict()
    expected = {300: "head", 150: "probe", 15: "probe", 5: "tfidf", 0.5: None}[limit]
    assert recommended(advice) == expected
    if expected:
        assert facts["recommended"]["train_seconds"] <= limit
        assert {e["method"] for e in facts["excluded"]} == {
            m for m, s in [("head", 200), ("probe", 10), ("tfidf", 1)] if s > limit
        }
    else:
        assert facts["nearest_miss"]["train_seconds"] == 1
        assert advice.paragraphs[0].text.startswith(
            "No method keeps the limits; the nearest miss is"
        )
        assert "2.0 times the limit" in advice.text
    if expected in ("probe", "tfidf"):
        assert "Without the limits head would score" in advice.text


def test_a_limit_on_what_was_not_measured_excludes(tmp_path: Path) -> None:
    untimed = dataclasses.replace(HEAD, skill=0.97, latency=None)
    advice = advise(
        plant(tmp_path, [MAJORITY, TFIDF, untimed]), limits=Limits(max_latency_seconds=1.0)
    )
    assert_sound(advice)
    assert recommended(advice) == "tfidf"
    assert "no latency measured" in advice.text


def test_a_smaller_size_that_fits_stands_in_for_a_larger_one(tmp_path: Path) -> None:
    small = dataclasses.replace(PROBE, seconds=5, sizes=(16,))
    large = dataclasses.replace(PROBE, seconds=50, sizes=(64,))
    evidence = plant(tmp_path, [MAJORITY, small, large])
    assert advise(evidence, limits=NONE).to_dict()["recommended"]["num_labels"] == 64
    limited = advise(evidence, limits=Limits(max_train_seconds=10)).to_dict()
    assert limited["recommended"]["num_labels"] == 16


@pytest.mark.parametrize("seed", range(4))
def test_where_labels_are_noise_the_simplest_method_is_taken(tmp_path: Path, seed: int) -> None:
    guessing = [dataclasses.replace(m, skill=0.5) for m in (TFIDF, PROBE, HEAD)]
    advice = advise(plant(tmp_path, [MAJORITY, *guessing], seed=seed), limits=NONE)
    assert_sound(advice)
    assert recommended(advice) == "majority"
    assert "No method beats the majority class beyond chance." in advice.text


def aligned_of(
    correct: np.ndarray, kinds: Sequence[str], seconds: Sequence[float]
) -> AlignedPredictions:
    """Predictions without files: only costs and answers are looked at."""
    candidates = []
    for place, (kind, cost) in enumerate(zip(kinds, seconds, strict=True)):
        result = dataclasses.replace(run_result(f"m{place}"), method=kind, duration_seconds=cost)
        run = FinishedRun(Path(), result)
        candidates.append(Contender(MethodVariant(f"m{place}", [run]), 64, {0: run}))
    gold = np.zeros(correct.shape[-1], np.int64)
    ids = [str(i) for i in range(correct.shape[-1])]
    return AlignedPredictions(candidates, [0], ids, np.where(correct, 0, -1), gold, "accuracy")


def test_guessing_is_rarely_recommended_over_the_majority_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 50)  # the test is exact
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(30):
        correct = generator.random((6, 1, 200)) < 0.5
        aligned = aligned_of(correct, ["majority", *["probe"] * 5], range(1, 7))
        wrong += choose(aligned).chosen.kind != "majority"
    assert wrong <= 4  # the chance of more is below 2 % if it happens in 5 %


def test_a_cheap_method_is_not_taken_where_only_the_best_beats_the_majority_class() -> None:
    """Neither neighbour differs significantly from the one in the middle, but the ends do."""
    right = [(1, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 1, 1), (0, 0, 0)]
    counts = [10, 10, 30, 30, 30, 30, 100, 60]
    correct = np.repeat(np.array(right, bool), counts, axis=0).T[:, None]  # (3, 1, 300)
    choice = choose(aligned_of(correct, ["majority", "knn", "head"], [1, 5, 100]))
    assert choice.equals == ["m1", "m2"]
    assert choice.chosen is choice.best
    assert choice.best.kind == "head"


def test_whether_a_language_model_is_worth_it_is_said_against_tfidf(tmp_path: Path) -> None:
    good = dataclasses.replace(TFIDF, skill=0.9)
    advice = advise(plant(tmp_path, [MAJORITY, good, PROBE, HEAD]), limits=NONE)
    assert recommended(advice) == "tfidf"
    assert "nothing here shows that a pretrained model is worth its cost" in advice.text


def test_out_of_domain_the_loss_and_the_one_that_holds_up_are_named(tmp_path: Path) -> None:
    fragile = dataclasses.replace(PROBE, skill={"here": 0.95, "there": 0.6})
    robust = dataclasses.replace(HEAD, skill={"here": 0.8, "there": 0.8})
    advice = advise(
        plant(tmp_path, [MAJORITY, fragile, robust], sets=("here", "there")), limits=NONE
    )
    assert_sound(advice)
    found = advice.to_dict()["out_of_domain"]
    assert found["comparison"]["best"] == "head"
    loss = found["losses"]["probe"]
    assert loss["loss"] == pytest.approx(0.35, abs=0.08)
    assert loss["interval"][0] < 0.35 < loss["interval"][1]
    assert "There head holds up best" in advice.text
    assert "beyond chance (adjusted p < 0.001), so prefer it" in advice.text
    assert "of one kind" not in advice.text  # there are two


def test_the_interval_of_a_difference_is_normal_theory_for_symmetric_ones() -> None:
    low, high = difference_interval((0.9, 0.87, 0.93), (0.8, 0.76, 0.84))
    assert (low, high) == pytest.approx((0.05, 0.15))


def test_more_labels_are_advised_where_the_planted_curve_rises(tmp_path: Path) -> None:
    sizes, draws = (16, 48, 128, 384, 1024), (0, 1)
    rising = dataclasses.replace(PROBE, curve=(0.0, 1.5, 0.35), sizes=sizes, draws=draws)
    flat = dataclasses.replace(HEAD, skill=0.6, sizes=sizes, draws=draws)
    constant = dataclasses.replace(MAJORITY, sizes=sizes, draws=draws)
    evidence = plant(tmp_path, [constant, rising, flat], num_examples=1500)
    advice = advise(evidence, limits=NONE)
    assert_sound(advice)
    labels = advice.to_dict()["labels"]
    assert recommended(advice) == "probe"
    assert [g["verdict"] for g in labels["by_method"]["probe"]["gains"]][-1] == HELPS
    assert labels["by_method"]["head"]["gains"][-1]["verdict"] != HELPS
    truth = 1.5 * (1024**-0.35 - 4096**-0.35)
    low, high = labels["by_method"]["probe"]["gains"][-1]["interval"]
    assert low <= truth <= high
    assert "More labels would help" in advice.text
    k, n = labels["num_covered"], labels["num_back_tests"]
    assert n == 6  # of both, sizes 4 and 5 from three, and 5 from four
    assert k >= 5
    assert f"in {k} of {n} cases" in advice.text


def test_with_one_size_nothing_is_said_of_more_labels(tmp_path: Path) -> None:
    advice = advise(plant(tmp_path, [MAJORITY, PROBE]), limits=NONE)
    assert "Whether more labels would help cannot be known" in advice.text


def test_the_threshold_keeps_its_precision_where_confidence_means_something(tmp_path: Path) -> None:
    evidence = plant(tmp_path, [MAJORITY, dataclasses.replace(PROBE, skill=0.99)], num_examples=800)
    found = advise(evidence, limits=NONE).to_dict()["abstention"]
    assert found["promised"]["wanted_precision"] == 0.95
    assert found["promised"]["confidence_level"] == pytest.approx(1 - 0.05 / 2)
    assert found["promised"]["precision_lower_bound"] >= 0.95


def test_confidence_above_what_is_right_is_called_too_high(tmp_path: Path) -> None:
    proud = dataclasses.replace(PROBE, skill=0.8, confidence=0.99)
    advice = advise(plant(tmp_path / "a", [MAJORITY, proud]), limits=NONE)
    assert "Its confidence is too high" in advice.text
    honest = dataclasses.replace(PROBE, skill=0.8, confidence=0.8)
    advice = advise(plant(tmp_path / "b", [MAJORITY, honest]), limits=NONE)
    assert "Its confidence fits how often it is right" in advice.text


def test_what_cannot_be_known_is_said_only_where_it_applies(tmp_path: Path) -> None:
    one = advise(plant(tmp_path / "a", [MAJORITY, PROBE, HEAD], cpu_share=0.3), limits=NONE).text
    assert "There is one draw" in one
    assert "Only one language model was tried, tiny" in one
    assert "All texts to evaluate on are of one kind" in one
    assert "machine was shared" in one
    many = [dataclasses.replace(m, draws=tuple(range(5))) for m in (MAJORITY, PROBE)]
    other = dataclasses.replace(many[1], model="other", skill=0.85)
    text = advise(plant(tmp_path / "b", [*many, other], sets=("here", "there")), limits=NONE).text
    for sentence in ("draws, which", "one draw", "Only one language", "of one kind", "shared"):
        assert sentence not in text


def test_runs_of_several_machines_and_number_formats_are_told(tmp_path: Path) -> None:
    wide, narrow = (("dtype", "float32"),), (("dtype", "bfloat16"), ("processor", "another"))
    one, two = (dataclasses.replace(PROBE, machine=wide), dataclasses.replace(HEAD, machine=narrow))
    alike = advise(plant(tmp_path / "a", [MAJORITY, one]), limits=NONE)
    assert "computed in" not in alike.text
    assert "several machines" not in alike.text
    text = advise(plant(tmp_path / "b", [MAJORITY, one, two]), limits=NONE).text
    assert "computed in bfloat16 and float32" in text
    assert re.search(r"several machines \(.*another.*\), so their times", text)


def test_runs_on_all_of_a_table_have_one_number_of_labels(tmp_path: Path) -> None:
    """Whether or not they hold out texts to validate on, which differ a little by draw."""
    plant(tmp_path, [MAJORITY, dataclasses.replace(PROBE, draws=(0, 1, 2))])
    folders = sorted(path.parent for path in tmp_path.glob("runs/*/result.json"))
    for place, folder in enumerate(folders):
        settings = load_run_settings(folder / "settings.yaml")
        data = settings.data.model_copy(update={"num_train": None})
        dump_settings(settings.model_copy(update={"data": data}), folder / "settings.yaml")
        dataclasses.replace(RunResult.load(folder), num_train=90 + place).save(folder)
    evidence = read_evidence(tmp_path)
    assert evidence.sizes == [93]
    by_name = {contender.name: contender for contender in evidence.contenders(93, "here")}
    assert {name: len(one.runs) for name, one in by_name.items()} == {"majority": 1, "probe": 3}
    # Another table is none of these.
    settings = load_run_settings(folders[3] / "settings.yaml")
    data = settings.data.model_copy(update={"train": "other.csv"})
    dump_settings(settings.model_copy(update={"data": data}), folders[3] / "settings.yaml")
    assert read_evidence(tmp_path).sizes == [92, 93]


def test_half_a_grid_says_what_is_missing(tmp_path: Path) -> None:
    late = dataclasses.replace(HEAD, sizes=(16,))
    three = [dataclasses.replace(m, draws=(0, 1, 2)) for m in (MAJORITY, TFIDF)]
    evidence = plant(tmp_path, [*three, late])
    failed = dataclasses.replace(evidence, failures={"x": "out of memory"})
    advice = advise(failed, limits=NONE)
    assert_sound(advice)
    assert "1 run failed and is missing." in advice.text
    assert "Not run at 64 labels and judged at fewer: head (16)." in advice.text
    assert "the most a method has is 3" in advice.text


def test_methods_without_a_common_draw_are_not_compared(tmp_path: Path) -> None:
    lone = dataclasses.replace(HEAD, draws=(7,))
    evidence = plant(tmp_path, [MAJORITY, PROBE, lone])
    advice = advise(evidence, limits=NONE)
    assert "Not compared, as a draw is missing: head." in advice.text
    assert recommended(advice) == "probe"


def test_one_method_alone_is_described_and_measured_against_one_label(tmp_path: Path) -> None:
    advice = advise(plant(tmp_path, [PROBE]), limits=NONE)
    assert_sound(advice)
    assert recommended(advice) == "probe"
    assert "The majority class was not compared; one label alone would reach 0." in advice.text
    assert "TF-IDF was not run" in advice.text


def test_zero_shot_is_compared_at_any_size_and_needs_no_labels(tmp_path: Path) -> None:
    zero = Planted("zero-shot", "in_context", skill=0.97, sizes=(0,))
    three = [dataclasses.replace(m, draws=(0, 1, 2)) for m in (MAJORITY, TFIDF)]
    advice = advise(plant(tmp_path, [*three, zero]), limits=NONE)
    assert_sound(advice)
    assert recommended(advice) == "zero-shot"
    assert advice.to_dict()["choice"]["draws"] == [0, 1, 2]
    assert "which needs no labels" in advice.text
    assert "uses no labels, so more of them would not change it" in advice.text


def test_texts_with_several_labels_are_judged_by_the_whole_set(tmp_path: Path) -> None:
    evidence = plant(tmp_path, [MAJORITY, PROBE, HEAD], multi_label=True)
    advice = advise(evidence, limits=NONE)
    assert_sound(advice)
    facts = advice.to_dict()
    assert facts["metric"] == "accuracy"
    assert facts["abstention"] is None
    assert "share of texts with exactly the right labels" in advice.text
    (run,) = (run for run in evidence.runs if run.name == recommended(advice))
    assert facts["recommended"]["score"] == pytest.approx(run.result.evaluations["here"].accuracy)


def test_answers_that_were_not_given_count_as_wrong_and_are_counted(tmp_path: Path) -> None:
    silent = dataclasses.replace(PROBE, skill=0.95, unanswered=30)
    advice = advise(plant(tmp_path, [MAJORITY, silent]), limits=NONE)
    assert_sound(advice)
    assert advice.to_dict()["recommended"]["score"] < 0.9
    assert "Of 300 texts 30 got no answer and count as wrong." in advice.text


def test_a_remote_model_takes_no_memory_here(tmp_path: Path) -> None:
    remote = Planted("gpt", "remote", skill=0.98, sizes=(0,), seconds=60, memory=0, model="big")
    evidence = plant(tmp_path, [MAJORITY, TFIDF, remote])
    advice = advise(evidence, limits=Limits(max_memory_bytes=1))
    assert_sound(advice)
    assert recommended(advice) == "gpt"
    assert advice.to_dict()["recommended"]["memory_bytes"] is None


def test_a_method_with_two_models_is_two_contenders(tmp_path: Path) -> None:
    other = dataclasses.replace(PROBE, model="larger", skill=0.99, seconds=40)
    advice = advise(plant(tmp_path, [MAJORITY, PROBE, other]), limits=NONE)
    assert_sound(advice)
    assert recommended(advice) == "probe (larger)"
    assert "Only one language model" not in advice.text


def test_runs_without_common_examples_are_refused(tmp_path: Path) -> None:
    evidence = plant(tmp_path, [MAJORITY, PROBE])
    path = next(tmp_path.glob("runs/probe*")) / "predictions" / "here.parquet"
    table = pd.read_parquet(path)
    table["id"] = [f"else:{i}" for i in range(len(table))]
    table.to_parquet(path)
    with pytest.raises(CheckpointError, match="0 common examples of here"):
        advise(evidence, limits=NONE)


def test_the_first_part_is_short(tmp_path: Path) -> None:
    methods = [MAJORITY, TFIDF, PROBE, HEAD]
    advice = advise(plant(tmp_path, methods, sets=("here", "there", "elsewhere")), limits=NONE)
    assert len(advice.text.split("Details.")[0].split()) <= 260
    headings = [heading for name, heading in FIRST.items() if name != "missed"]
    assert [part.heading for part in advice.paragraphs] == headings
    assert max(len(part.text.split()) for part in advice.paragraphs) <= 90


def test_labels_that_the_recommended_method_never_finds_are_named(tmp_path: Path) -> None:
    blind = dataclasses.replace(PROBE, says_one_label=True, draws=(0, 1))
    other = dataclasses.replace(HEAD, skill=0.3, confidence=0.9, draws=(0, 1))
    evidence = plant(tmp_path, [blind, other])
    advice = advise(evidence, limits=NONE)
    assert_sound(advice)
    assert recommended(advice) == "probe"
    (found,) = advice.facts["missed"]
    recalls = [
        rows["bad"].recall
        for run in evidence.runs
        if run.result.method == "head"
        for rows in [{row.name: row for row in class_rows(*run.result.evaluations.values())}]
    ]
    assert (found["label"], found["recall"], found["most"]) == ("bad", 0.0, "head")
    assert found["most_recall"] == pytest.approx(np.mean([one or 0.0 for one in recalls]))
    (said,) = [part.text for part in advice.paragraphs if part.heading == FIRST["missed"]]
    assert said.startswith("Of the texts that are bad it finds 0.00 (head most, 0.")
    assert "--metric macro_f1" in said
    judged = advise(read_evidence(tmp_path, metric="macro_f1"), limits=NONE)
    assert judged.facts["metric"] == "macro_f1"
    assert "--metric" not in judged.text


def test_a_lead_that_only_stands_alone_is_told_from_one_among_many(tmp_path: Path) -> None:
    others = [
        dataclasses.replace(PROBE, name=f"other {i}", skill=0.7, seconds=90) for i in range(6)
    ]
    said = set()
    for place, skill in enumerate((0.865, 0.88, 0.95)):
        best = dataclasses.replace(HEAD, skill=skill)
        baseline = dataclasses.replace(TFIDF, skill=0.8)
        advice = advise(plant(tmp_path / str(place), [best, baseline, *others]), limits=NONE)
        facts = advice.to_dict()
        if recommended(advice) != "head":
            continue
        differences = facts["choice"]["against_recommended"]["differences"]
        (found,) = (one for one in differences if one["method"] == "tfidf")
        alone, among = found["interval"][1] < 0, found["adjusted_p_value"] < 0.05
        assert ("as one of 28" in advice.text) == (alone and not among)
        assert ("It beats TF-IDF" in advice.text) == among
        said.add((alone, among))
    assert said >= {(True, False), (True, True)}
