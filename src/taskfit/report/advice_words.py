"""The advice in words: sentences for the facts, and no sentence without one."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from taskfit.report.advice_choice import ALPHA, MAJORITY, TFIDF
from taskfit.report.advice_details import detail_paragraphs
from taskfit.report.advice_phrases import (
    COST_NAMES,
    Facts,
    against,
    count,
    format_cost,
    joined,
    metric_name,
    num,
    p_value,
    span,
    subject,
)
from taskfit.report.advice_unknown_words import unknown_paragraphs
from taskfit.stats.learning_curve import HELPS, LITTLE

COST_REASONS = {
    "train_seconds": "takes less time",
    "memory_bytes": "takes less memory",
    "latency_seconds": "answers a text faster",
}
NUM_NAMED = 3  # methods in a sentence
BASELINES = {MAJORITY: "the majority class", TFIDF: "TF-IDF"}


def write_text(facts: Facts) -> str:
    """Write the advice: what to do first, then details, paragraphs separated by blank lines."""
    first = [
        _recommendation(facts),
        _beats(facts),
        _domains(facts),
        _labels(facts),
        _confidence(facts),
    ]
    details = [*detail_paragraphs(facts), *unknown_paragraphs(facts)]
    return "\n\n".join(paragraph for paragraph in [*first, "Details.", *details] if paragraph)


def _named(candidate: Facts) -> str:
    model = candidate["language_model"]
    name = BASELINES[MAJORITY] if candidate["kind"] == MAJORITY else candidate["method"]
    with_model = f" with {model}" if model and f"({model})" not in name else ""
    if candidate["kind"] == MAJORITY:
        return str(name)
    labels = candidate["num_labels"]
    using = f" on {count(labels, 'label')}" if labels else ", which needs no labels"
    return f"{name}{with_model}{using}"


def _recommendation(facts: Facts) -> str:
    taken, choice = subject(facts), facts["choice"]
    evidence = (
        f"{metric_name(facts)} {num(taken['score'])} (95 % interval {span(taken['interval'])}) on "
        f"{count(choice['num_examples'], 'text')} of {facts['in_domain']}, "
        f"{count(len(choice['draws']), 'draw')}"
    )
    if not facts["recommended"]:
        over = _times_over({**taken, "over": facts["over"]})
        return (
            f"No method keeps the limits; the nearest miss is {_named(taken)}: {over}. It has "
            f"{evidence}."
        )
    sentences = [f"Take {_named(taken)}: {evidence}."]
    best = choice["best"]
    if best["method"] != taken["method"]:
        sentences.append(_why_not_best(facts))
    within = " within the limits" if facts["limits"] else ""
    if taken["kind"] == MAJORITY and len(choice["candidates"]) > 1:
        sentences.append(f"No method{within} beats the majority class beyond chance.")
    sentences.append(_price_of_limits(facts))
    return " ".join(sentence for sentence in sentences if sentence)


def _price_of_limits(facts: Facts) -> str:
    """Return what the limits cost: the highest score that they exclude, if it is higher."""
    found = [entry for entry in facts["excluded"] if (entry["gain_interval"] or [0])[0] > 0]
    if not found:
        return ""
    entry = found[0]
    return (
        f"Without the limits {entry['method']} would score {num(entry['gain'])} "
        f"({span(entry['gain_interval'])}) higher; {_times_over(entry)}."
    )


def _times_over(entry: Facts) -> str:
    parts = [
        f"its {COST_NAMES[cost]} was not measured"
        if ratio is None
        else f"its {COST_NAMES[cost]} of {format_cost(cost, entry[cost])} is {ratio:.1f} times the "
        "limit"
        for cost, ratio in entry["over"].items()
    ]
    return joined(parts)


def _why_not_best(facts: Facts) -> str:
    taken, best = subject(facts), facts["choice"]["best"]
    found = against(facts)[best["method"]]
    lead = (
        f"{best['method']} scores {num(best['score'])}, higher by {num(found['difference'])} "
        f"({span(found['interval'])}), which is not beyond chance (adjusted "
        f"{p_value(found['adjusted_p_value'])})"
    )
    if taken["kind"] == MAJORITY:
        return f"{lead}."
    cost = facts["choice"]["saves"]
    own, other = format_cost(cost, taken[cost]), format_cost(cost, best[cost])
    return f"{lead}; {taken['method']} {COST_REASONS[cost]}: {own} instead of {other}."


def _kind(facts: Facts, kind: str) -> str | None:
    names = [c["method"] for c in facts["choice"]["candidates"] if c["kind"] == kind]
    return names[0] if names else None


def _beats(facts: Facts) -> str:
    if not facts["recommended"]:
        return ""  # it stands alone
    taken, differences = subject(facts), against(facts)
    sentences = []
    beaten = []
    for kind, words in BASELINES.items():
        name = _kind(facts, kind)
        if name is None or name == taken["method"]:
            continue
        found = differences[name]
        ahead, interval = -found["difference"], [-x for x in found["interval"][::-1]]
        if found["adjusted_p_value"] < ALPHA and ahead > 0:
            beaten.append(
                f"{words} by {num(ahead)} ({span(interval)}, {p_value(found['adjusted_p_value'])})"
            )
        elif taken["kind"] != MAJORITY and _only_alone(found):
            pairs = len(differences) * (len(differences) + 1) // 2
            sentences.append(
                f"It is ahead of {words} by {num(ahead)} ({span(interval)}): beyond chance if this "
                f"were the only comparison, but not as one of {pairs} (adjusted "
                f"{p_value(found['adjusted_p_value'])})."
            )
        elif taken["kind"] != MAJORITY:
            sentences.append(
                f"It is not told apart from {words}: a difference of {num(ahead)} "
                f"({span(interval)})."
            )
    if beaten:
        sentences.insert(0, f"It beats {joined(beaten)}.")
    sentences += [_worth_it(facts), _rest(facts), _missing_majority(facts)]
    return " ".join(sentence for sentence in sentences if sentence)


def _only_alone(found: Mapping[str, Any]) -> bool:
    """Return whether it is worse beyond chance by itself, but not among all comparisons."""
    return bool(found["interval"][1] < 0 and found["adjusted_p_value"] >= ALPHA)


def _worth_it(facts: Facts) -> str:
    taken, tfidf = subject(facts), _kind(facts, TFIDF)
    others = [c for c in facts["choice"]["candidates"] if c["kind"] not in BASELINES]
    if taken["kind"] in BASELINES:
        if not others or taken["kind"] == MAJORITY:
            return ""
        return "So nothing here shows that a pretrained model is worth its cost."
    if tfidf is None and TFIDF in facts["kinds_run"]:
        return ""  # the limits exclude it
    if tfidf is None:
        return "TF-IDF was not run, so whether a pretrained model is needed at all is open."
    found = against(facts)[tfidf]
    if found["adjusted_p_value"] < ALPHA and found["difference"] < 0:
        return "So a pretrained model is worth it here."
    if _only_alone(found):
        return (
            "So it is likely, but not shown, that a pretrained model is worth its cost; more draws "
            "would tell."
        )
    return "So it is not shown that a pretrained model is worth its cost."


def _rest(facts: Facts) -> str:
    names = [c["method"] for c in facts["choice"]["candidates"] if c["kind"] not in BASELINES]
    taken, differences = subject(facts)["method"], against(facts)
    rest = [name for name in names if name != taken]
    if not rest or subject(facts)["kind"] == MAJORITY:
        return ""
    beaten = [
        n
        for n in rest
        if differences[n]["adjusted_p_value"] < ALPHA and differences[n]["difference"] < 0
    ]
    equal = [n for n in rest if n not in beaten]
    sentences = []
    if beaten:
        sentences.append(f"it beats {_several(beaten)}")
    if equal:
        sentences.append(f"{_several(equal)} cannot be told apart from it")
    return f"Of the {count(len(rest), 'other')}, {'; '.join(sentences)}."


def _several(names: Sequence[str]) -> str:
    """Return few names, or how many there are; the details name all."""
    return joined(names) if len(names) <= NUM_NAMED else f"{len(names)}"


def _missing_majority(facts: Facts) -> str:
    share = facts["choice"]["most_common_label_share"]
    if MAJORITY in facts["kinds_run"] or share is None or facts["metric"] != "accuracy":
        return ""
    beats = subject(facts)["interval"][0] > share
    verdict = "below its interval" if beats else "so nothing here shows that it does better"
    return (
        f"The majority class was not compared; one label alone would reach {num(share)}, {verdict}."
    )


def _domains(facts: Facts) -> str:
    found = facts["out_of_domain"]
    if not found:
        return ""
    taken, compared = subject(facts)["method"], found["comparison"]
    score = next(s for s in compared["scores"] if s["method"] == taken)
    where = f"Out of domain ({count(found['num_examples'], 'text')} of {joined(found['sets'])})"
    sentence = f"{where} it reaches {num(score['mean'])} ({span(score['interval'])})"
    loss = found["losses"].get(taken)
    if loss:
        way = "lower" if loss["loss"] >= 0 else "higher"
        low, high = loss["interval"]
        interval = [low, high] if loss["loss"] >= 0 else [-high, -low]
        sentence += f", {num(abs(loss['loss']))} ({span(interval)}) {way}"
    best = compared["best"]
    lead = next((d for d in compared["differences"] if d["method"] == best), None)
    beyond = lead is not None and lead["adjusted_p_value"] < ALPHA
    if subject(facts)["kind"] == MAJORITY and not beyond:
        return "Out of domain no method beats it beyond chance either."
    if lead is None:
        several = len(compared["scores"]) > 1
        return f"{sentence}; none scores higher there." if several else f"{sentence}."
    verdict = (
        f"beyond chance (adjusted {p_value(lead['adjusted_p_value'])}), so prefer it where the "
        "data are different"
        if beyond
        else "not beyond chance"
    )
    return (
        f"{sentence}. There {best} holds up best, {num(lead['difference'])} "
        f"({span(lead['interval'])}) higher; that is {verdict}."
    )


def _labels(facts: Facts) -> str:
    taken, labels = subject(facts), facts["labels"]
    if taken["kind"] == MAJORITY:
        return ""
    found = labels["by_method"].get(taken["method"])
    if found is None or not taken["num_labels"]:
        return f"{taken['method']} uses no labels, so more of them would not change it."
    gains = [gain for gain in found["gains"] if gain["gain"] is not None]
    if not gains:
        reason = found["gains"][0]["reason"]
        return f"Whether more labels would help cannot be known. {reason}"
    twice, fourfold = found["gains"]
    verdict = fourfold["verdict"]
    opening = {
        HELPS: "More labels would help",
        LITTLE: "More labels would bring little",
    }.get(verdict, "Whether more labels would help is open")
    forecasts = joined(
        f"{num(gain['gain'])} ({span(gain['interval'])}) at {int(gain['n_then']):,}"
        for gain in (twice, fourfold)
    )
    sentences = [f"{opening}: its learning curve gains {forecasts} labels."]
    if found["gains"][0]["reason"]:
        sentences.append(found["gains"][0]["reason"])
    if labels["num_back_tests"]:
        sentences.append(_back_tests(labels))
    return " ".join(sentences)


def _back_tests(labels: Facts) -> str:
    return (
        "On this data, forecasts from the smaller sizes were right within their intervals in "
        f"{labels['num_covered']} of {count(labels['num_back_tests'], 'case')}."
    )


def _confidence(facts: Facts) -> str:
    found, sentences = facts["abstention"], []
    if found:
        sentences.append(_threshold(facts))
    calibration = facts["calibration"]
    if calibration and subject(facts)["kind"] != MAJORITY:
        inside, outside = calibration["in_domain"], calibration["elsewhere"]
        if inside:
            where = "; out of domain it " + _trust(outside) if outside else ""
            sentences.append(f"Its confidence {_trust(inside)}{where}.")
    return " ".join(sentences)


def _trust(found: Facts) -> str:
    low, high = found["interval"]
    numbers = f"(mean {num(found['mean_confidence'])}, right {num(found['accuracy'])})"
    if low > 0:
        return f"is too high {numbers}"
    if high < 0:
        return f"is too low {numbers}"
    if found["ece"] > found["ece_by_chance"]:
        return f"fits on average {numbers} but not at every level"
    return f"fits how often it is right {numbers}"


def _threshold(facts: Facts) -> str:
    found = facts["abstention"]
    wanted, kept = found["wanted_precision"], found["promised"]
    if kept is None:
        return f"No threshold of confidence promises even {num(0.5)} right answers."
    lead = ""
    if kept["wanted_precision"] < wanted:
        lead = f"These texts cannot promise a precision of {num(wanted)}. "
    coverage = kept["coverage"]
    if coverage >= 1:
        return "No threshold of its confidence promises more than answering everything."
    # Rounded down it would let more be answered than was promised for.
    threshold = math.ceil(1000 * kept["threshold"]) / 1000
    text = (
        f"To keep at least {num(kept['wanted_precision'])} of its answers right (at 95 % "
        f"confidence), let it answer from a probability of {threshold:.3f}: "
        f"{100 * coverage:.0f} % of the texts, {num(kept['precision'])} right here"
    )
    other = found["elsewhere"]
    if other and other["precision"] is not None:
        text += (
            f". Out of domain that gives {num(other['precision'])} right ({span(other['interval'])}"
            f") on {100 * other['coverage']:.0f} % of the texts"
        )
    elif other:
        text += ". Out of domain it then answers nothing"
    return f"{lead}{text}."
