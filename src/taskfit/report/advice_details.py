"""The second part of the advice in words: the numbers behind the first."""

from collections.abc import Sequence

from taskfit.report.advice_choice import ALPHA, CLOSE
from taskfit.report.advice_phrases import (
    COST_NAMES,
    Facts,
    against,
    count,
    format_cost,
    joined,
    metric_name,
    num,
    span,
    subject,
)


def detail_paragraphs(facts: Facts) -> list[str]:
    """Return a paragraph for limits, methods, domains, labels and calibration; empty if none."""
    return [
        _limits(facts),
        _all_methods(facts),
        _domain_details(facts),
        _label_details(facts),
        _calibration_details(facts),
    ]


def _limits(facts: Facts) -> str:
    if not facts["excluded"]:
        return "The limits exclude nothing." if facts["limits"] else ""
    parts = []
    for entry in facts["excluded"]:
        reasons = joined(
            f"no {COST_NAMES[cost]} measured"
            if ratio is None
            else f"{ratio:.1f} times the {COST_NAMES[cost]}"
            for cost, ratio in entry["over"].items()
        )
        gain = ""
        if entry["gain"] is not None:
            gain = f"; {num(entry['gain'])}, {span(entry['gain_interval'])}"
        size = f" on {count(entry['num_labels'], 'label')}" if entry["num_labels"] else ""
        parts.append(f"{entry['method']}{size} ({reasons}{gain})")
    allowed = joined(
        f"{COST_NAMES[cost]} {format_cost(cost, limit)}" for cost, limit in facts["limits"].items()
    )
    word = "recommended method" if facts["recommended"] else "nearest miss"
    return (
        f"The limits ({allowed}) exclude, with the difference of the score to the {word}: "
        f"{joined(parts)}."
    )


def _all_methods(facts: Facts) -> str:
    choice = facts["choice"]
    if not facts["recommended"]:
        return ""
    if len(choice["candidates"]) < 2:
        return "Only one method could be compared."
    costs = {c["method"]: c for c in choice["candidates"]}
    scores = sorted(choice["against_best"]["scores"], key=lambda score: -score["mean"])
    listed = joined(
        f"{s['method']} {num(s['mean'])} ({span(s['interval'])}, "
        f"{format_cost('train_seconds', costs[s['method']]['train_seconds'])})"
        for s in scores
    )
    tests = {d["test"] for d in choice["against_best"]["differences"]}
    test = (
        "McNemar's exact test"
        if tests == {"mcnemar"}
        else "a bootstrap over examples"
        if len(choice["draws"]) == 1
        else "a bootstrap over draws and examples"
    )
    return (
        f"In domain, by {metric_name(facts)}, with the time of its fastest whole run: {listed}."
        f"{_told_apart(facts)} Differences are "
        f"paired, by {test}; p-values are Holm's over all pairs, intervals 95 % and unadjusted. "
        f"Of the methods that cannot be told apart from the best and score at most {CLOSE} less, "
        "the one with the least time is taken, then the least memory, then the lowest latency, "
        "unless something cheaper that the best beats is as good as it."
    )


def _told_apart(facts: Facts) -> str:
    taken, differences = subject(facts)["method"], against(facts)
    equal = [name for name, d in differences.items() if d["adjusted_p_value"] >= ALPHA]
    if not equal:
        return f" {taken} is told apart from all others."
    return f" {taken} is not told apart from {joined(equal)}."


def _domain_details(facts: Facts) -> str:
    found = facts["out_of_domain"]
    if not found:
        return ""
    taken = subject(facts)["method"]
    parts = []
    for name, scores in found["by_set"].items():
        best = max(scores, key=lambda method: scores[method])
        lead = "the highest" if best == taken else f"highest {best} {num(scores[best])}"
        parts.append(f"{name} {num(scores[taken])} ({lead})")
    text = f"Scores of {taken} out of domain: {joined(parts)}."
    order = found["rank_correlation"]
    if order is not None:
        text += (
            f" The order of methods in and out of domain agrees with a rank correlation (Kendall) "
            f"of {num(order)}."
        )
    return text


def _label_details(facts: Facts) -> str:
    groups: dict[str, list[str]] = {}
    for name, found in facts["labels"]["by_method"].items():
        groups.setdefault(found["gains"][-1]["verdict"], []).append(name)
    if not groups:
        return ""
    parts = "; ".join(f"{verdict} for {joined(names)}" for verdict, names in groups.items())
    return f"At four times the labels: {parts}. Worth while is a gain of 0.01 or more."


def _calibration_details(facts: Facts) -> str:
    if not facts["calibration"]:
        return ""
    parts: list[str] = []
    pairs: Sequence[tuple[str, str]] = (("in_domain", "in domain"), ("elsewhere", "out of domain"))
    for key, where in pairs:
        found = facts["calibration"][key]
        if found:
            parts.append(
                f"{where} {found['ece']:.3f} (chance alone gives up to "
                f"{found['ece_by_chance']:.3f}), log loss {num(found['log_loss'])} against "
                f"{num(found['log_loss_of_frequencies'])} for always giving the labels' shares"
            )
    return f"Calibration error (ECE) of {subject(facts)['method']}: {'; '.join(parts)}."
