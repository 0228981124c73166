"""The winner of a comparison, if there is one: better than baselines, and whole after reloading.

A model is kept only if it beats the majority class and a bag of words on rows that nothing was
trained on, by more than chance does, and if it answers the same after it was read back from disk.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskfit.errors import TaskfitError
from taskfit.files import write_json_atomic
from taskfit.report.advice import Limits, advise
from taskfit.report.comparison_page import report_comparison
from taskfit.report.evidence import Evidence, read_evidence
from taskfit.report.finished_run import FinishedRun
from taskfit.report.words import metric_name
from taskfit.runs.load import load_classifier
from taskfit.runs.prepare import prepare_data
from taskfit.screen import SilentScreen
from taskfit.stats.comparison import Difference
from taskfit.ui.budgets import BASELINES
from taskfit.ui.project import NotThereError, Project

FILE = "verdict.json"
# Held-out rows that are asked again after reloading, and how far a probability may move: rows stand
# in other batches, and numbers of 16 bits are rounded otherwise there.
RELOADED_ROWS = 200
TOLERANCE = 0.02
SHOWN_ROWS = 50
SHOWN_CHARACTERS = 400


def read_verdict(project: Project) -> dict[str, Any] | None:
    """Return what `write_verdict` wrote; None before."""
    path = project.folder / FILE
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_verdict(project: Project) -> None:
    """Find the winner of a comparison; write it, its report and advice.

    The file has `advice` (heading and text each), `metric`, `set`, `num_examples`, `best` (the
    method that the advice recommends, its run's folder and score), `baseline` (the better of the
    two, or None), `difference` and `interval` to it, `kept` and in `reason` why or why not,
    `reload` (what was checked), `gained` and `lost` (rows that it newly has right and wrong).

    Raises:
        CheckpointError: If a finished run cannot be read.
    """
    report_comparison(project.comparison, limits=Limits(), screen=SilentScreen())
    evidence = read_evidence(project.comparison)
    advice = advise(evidence, limits=Limits())
    chosen = advice.facts["choice"]["recommended"]
    scores = {c["method"]: c["score"] for c in advice.facts["choice"]["candidates"]}
    there = [name for name in BASELINES if name in scores]
    baseline = max(there, key=lambda name: scores[name], default=None)
    found: dict[str, Any] = {
        "advice": [{"heading": p.heading, "text": p.text} for p in advice.paragraphs],
        "details": [{"heading": p.heading, "text": p.text} for p in advice.details],
        "metric": metric_name(evidence.metric, multi_label=evidence.multi_label),
        "set": evidence.in_domain,
        "num_examples": advice.facts["choice"]["num_examples"],
        "best": {"method": chosen["method"], "score": chosen["score"]},
        "baseline": baseline and {"method": baseline, "score": scores[baseline]},
        "kept": False,
    }
    run = _first_run(evidence, chosen["method"])
    found["best"]["run"] = run.folder.name
    if baseline is None:
        found["reason"] = "No baseline was finished, so nothing says whether a model is needed."
    elif chosen["kind"] in BASELINES:
        found["reason"] = _nothing_better(chosen["method"], found["num_examples"])
    else:
        compared = advice.facts["choice"]["against_recommended"].differences
        gaps = [-one for one in compared if one.method in there]
        _judge(found, run, min(gaps, key=lambda gap: gap.difference))
        found |= changed_rows(run, _first_run(evidence, baseline), evidence.in_domain)
    write_json_atomic(project.folder / FILE, found)


def _nothing_better(baseline: str, num_examples: int) -> str:
    what = {"majority": "saying the most common label to everything"}
    return (
        f"No model was clearly better than {what.get(baseline, 'a bag of words (tfidf)')} on the "
        f"{num_examples:,} held-out rows, so none is kept. More labelled rows or a larger budget "
        "may turn it."
    )


def _judge(found: dict[str, Any], run: FinishedRun, gap: Difference) -> None:
    """Record whether a run beats the baseline, and is the same when it is read back."""
    low, high = gap.interval
    found |= {"difference": gap.difference, "interval": [low, high]}
    name, other = found["best"]["method"], found["baseline"]["method"]
    by = f"{found['metric']} {gap.difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}"
    rows = f"the {found['num_examples']:,} held-out rows"
    if not (gap.difference > 0 and gap.significant):
        found["reason"] = (
            f"{name} is not proven better than {other} on {rows} ({by}; chance does as much), so "
            "it is not kept as the winner. More labelled rows would tell."
        )
        return
    found["reload"] = reloaded(run, found["set"])
    found["kept"] = bool(found["reload"]["same"])
    found["reason"] = (
        f"{name} beats {other} on {rows} ({by}), and answers the same after it was read back."
        if found["kept"]
        else f"{name} beats {other} on {rows}, but is not kept: {found['reload']['problem']}"
    )


def _first_run(evidence: Evidence, method: str) -> FinishedRun:
    """Return a method's run with the most labels, of its lowest draw."""
    (variant,) = (one for one in evidence.variants if one.name == method)
    contender = variant.at(variant.sizes[-1], evidence.in_domain)
    assert contender is not None, "what was recommended was measured"
    return contender.first


def reloaded(run: FinishedRun, evaluation: str) -> dict[str, Any]:
    """Read a run back from disk and ask it held-out rows again.

    Returns:
        `num_rows`, `largest` difference of a probability, whether all is the `same` (labels, but
        where two are as probable within the tolerance), and the `problem` if not.
    """
    try:
        then = run.predictions(evaluation)
        examples = {e.id: e for e in prepare_data(run.settings).evaluations[evaluation]}
        places = [i for i, name in enumerate(then.ids) if name in examples][:RELOADED_ROWS]
        classifier = load_classifier(run.folder)
        now = classifier.probabilities([examples[then.ids[i]] for i in places])
    except TaskfitError as error:
        return {"num_rows": 0, "largest": None, "same": False, "problem": str(error)}
    before = then.probabilities[places]
    largest = float(np.nanmax(np.abs(now - before), initial=0.0))
    changed = now.argmax(axis=1) != before.argmax(axis=1)
    differ = int((changed & (_margin(before) > TOLERANCE)).sum())
    same = bool(places) and largest <= TOLERANCE and not differ
    problem = (
        f"read back from disk, it answers {differ} of {len(places)} rows otherwise (probabilities "
        f"differ by up to {largest:.3f})."
    )
    return {
        "num_rows": len(places),
        "largest": largest,
        "same": same,
        "problem": "" if same else problem,
    }


def _margin(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far the first label is above the second, (N,) of (N, L)."""
    ordered: NDArray[np.float64] = np.sort(probabilities, axis=1)
    return ordered[:, -1] - ordered[:, -2]


def changed_rows(run: FinishedRun, baseline: FinishedRun, evaluation: str) -> dict[str, Any]:
    """Return the held-out rows that a run has right and the baseline wrong, and the reverse.

    Raises:
        CheckpointError: If predictions cannot be read.
    """
    new, old = run.predictions(evaluation), baseline.predictions(evaluation)
    place = {name: i for i, name in enumerate(old.ids)}
    rows: dict[str, list[dict[str, Any]]] = {"gained": [], "lost": []}
    for i, name in enumerate(new.ids):
        j = place.get(name)
        if j is None or bool(new.correct[i]) == bool(old.correct[j]):
            continue
        rows["gained" if new.correct[i] else "lost"].append(
            {
                "text": new.texts[i][:SHOWN_CHARACTERS],
                "label": new.classes[new.gold[i]],
                "now": _answer(new.classes, new.predicted[i]),
                "before": _answer(old.classes, old.predicted[j]),
                "probability": float(np.nan_to_num(new.probabilities[i]).max()),
            }
        )
    counts = {f"num_{name}": len(found) for name, found in rows.items()}
    return {**counts, **{name: found[:SHOWN_ROWS] for name, found in rows.items()}}


def _answer(classes: Any, index: Any) -> str:  # noqa: ANN401 - a list and a number of NumPy
    return "no answer" if index < 0 else str(classes[index])


def find_run(project: Project, name: str) -> FinishedRun:
    """Return a finished run of a comparison by the name of its folder, which is looked up.

    Raises:
        NotThereError: If there is none.
    """
    for run in read_evidence(project.comparison).runs:
        if run.folder.name == name:
            return run
    raise NotThereError(f"There is no finished run {name!r} in this comparison.")
