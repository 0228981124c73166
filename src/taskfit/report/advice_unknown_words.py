"""What the evidence cannot know, in words; only what applies."""

from taskfit.report.advice_phrases import Facts, count, joined, num

FEW_DRAWS = 5
FEW_EXAMPLES = 2000


def unknown_paragraphs(facts: Facts) -> list[str]:
    """Return a paragraph of limitations; none where nothing applies."""
    found = facts["unknown"]
    sentences = [
        _draws(found),
        _examples(found),
        _missing(found),
        _models(found),
        _times(found),
        _wrong_labels(found),
        _domain(found),
    ]
    kept = [sentence for sentence in sentences if sentence]
    return [" ".join(["What this cannot know.", *kept])] if kept else []


def _draws(found: Facts) -> str:
    draws, most = found["num_draws"], found["most_draws"]
    more = (
        f" (the most a method has is {most}, but the comparison needs draws that all have)"
        if most > draws
        else ""
    )
    if draws == 1:
        return (
            f"There is one draw of training texts to compare{more}: what another draw would "
            "change is unknown and in none of the intervals."
        )
    if draws < FEW_DRAWS:
        return f"There are only {draws} draws{more}, which say little about their own spread."
    return ""


def _examples(found: Facts) -> str:
    sentences = []
    if found["resolution"] is not None and found["num_examples"] < FEW_EXAMPLES:
        sentences.append(
            f"With {count(found['num_examples'], 'text')} to evaluate on and "
            f"{count(found['num_draws'], 'draw')}, differences below about "
            f"{num(found['resolution'])} cannot be seen."
        )
    if found["chosen_scored_highest"] and found["num_compared"] > 2:
        sentences.append(
            f"The recommended score is the highest of {found['num_compared']} on the same texts, "
            "so it is a little too high."
        )
    if found["num_unanswered"]:
        sentences.append(
            f"Of {found['num_evaluated']:,} texts {found['num_unanswered']:,} got no answer and "
            "count as wrong."
        )
    return " ".join(sentences)


def _missing(found: Facts) -> str:
    sentences = []
    if found["failures"]:
        number = len(found["failures"])
        was = "is" if number == 1 else "are"
        sentences.append(f"{count(number, 'run')} failed and {was} missing.")
    smaller = found["not_at_largest"]
    if smaller:
        listed = joined(f"{name} ({size:,})" for name, size in smaller.items())
        sentences.append(
            f"Not run at {count(found['largest_size'], 'label')} and judged at fewer: {listed}."
        )
    if found["without_shared_draw"]:
        sentences.append(
            f"Not compared, as a draw is missing: {joined(found['without_shared_draw'])}."
        )
    return " ".join(sentences)


def _models(found: Facts) -> str:
    models = found["language_models"]
    if len(models) != 1:
        return ""
    return f"Only one language model was tried, {models[0]}; another may change the order."


def _times(found: Facts) -> str:
    waiting = found["waiting"]
    if not waiting["num_waiting"]:
        return ""
    return (
        f"{waiting['num_waiting']} of {count(waiting['num_runs'], 'run')} whose processor time is "
        f"known took more than that, up to {waiting['most']:.1f} times: the machine was shared, "
        "and times are rough."
    )


def _wrong_labels(found: Facts) -> str:
    wrong = found["always_wrong"]
    if not wrong or not wrong["num_examples"]:
        return ""
    number = wrong["num_examples"]
    verb, end = ("is", "its label") if number == 1 else ("are", "some of their labels")
    such = "such as " if number > len(wrong["ids"]) else ""
    return (
        f"{count(number, 'text')} {verb} answered wrongly by all {wrong['num_methods']} methods "
        f"that read texts ({such}{joined(wrong['ids'])}); {end} may be wrong."
    )


def _domain(found: Facts) -> str:
    if not found["one_domain"]:
        return ""
    return (
        "All texts to evaluate on are of one kind; texts of another source or a later time may do "
        "worse."
    )
