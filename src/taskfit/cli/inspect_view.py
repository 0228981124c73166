"""Show an inspection on a terminal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.text import Text

from taskfit.cli.screen import Terminal, plain_table

if TYPE_CHECKING:
    from taskfit.runs.inspection import Inspection
    from taskfit.runs.option_order import OrderTest
    from taskfit.tasks.checkup import Checkup, ShownToken, WordReport

MAX_WORDS = 12
MAX_ODD_WORDS = 6
# A longer prompt is shown with its middle left out (lines on the screen).
HEAD_LINES = 10
TAIL_LINES = 8


def show_inspection(inspection: "Inspection", console: Terminal) -> None:
    """Print what `taskfit inspect` found, readable on 80 columns."""
    say, checkup = console.print, inspection.checkup
    sizes = ", ".join(f"{name} {count:,}" for name, count in inspection.num_examples.items())
    say(f"Task {inspection.task.name} with {inspection.model}: {sizes}")
    say(_classes(checkup))
    for note in inspection.notes:
        say(f"{note[0].upper()}{note[1:]}.", soft_wrap=True)
    say("\nA prompt, token by token; the label's tokens are in colour:")
    for line in _prompt(checkup.prompt, console.page_width):
        say(line)
    say("\nLabel words, and how many tokens they are with a leading space and without:")
    _say_words(checkup.words, console)
    if checkup.shared_first_tokens:
        shared = checkup.shared_first_tokens.items()
        say("Shared first tokens: " + _some(f"{_visible(k)} ({len(v)})" for k, v in shared))
    say(f"Leading space: {checkup.leading_space}")
    lengths = ", ".join(f"{name} {value:,}" for name, value in checkup.lengths.items())
    say(f"\nPrompt with answer (tokens, {checkup.num_encoded:,} examples): {lengths}")
    shortened = f"{checkup.num_shortened:,} texts" if checkup.num_shortened else "no text"
    say(f"Limit: {checkup.max_length:,} tokens; {shortened} shortened to fit.")
    _say_savings(inspection, console)
    say("\nAdvice:" if checkup.advice else "\nNothing to object to.")
    for sentence in checkup.advice:
        say(f"- {sentence}")


def show_orders(found: "OrderTest", console: Terminal) -> None:
    """Print what other orders of the options change."""
    from taskfit.runs.option_order import order_sentences

    console.print(
        f"\nOrder of the options, {found.num_texts} texts ({found.num_tokens:,} tokens run, "
        f"{found.num_tokens / found.num_texts:.0f} a text):"
    )
    for sentence in order_sentences(found.effects):
        console.print(f"- {sentence}.", soft_wrap=True)


def _say_savings(inspection: "Inspection", console: Terminal) -> None:
    """Print duplicates, and what prefix sharing saves."""
    if inspection.overlap is not None:
        console.print(f"Duplicates: {inspection.overlap.sentence}")
    run, padded = inspection.run_tokens, inspection.padded_tokens
    count = f"{inspection.checkup.num_encoded:,} examples"
    if inspection.refusal is not None:
        console.print(
            f"Prefix sharing: little or none, since the token tree does not serve this model, "
            f"which has {inspection.refusal}: {count} run {run:,} tokens in batches of like "
            f"length; padded to the longest text they would be {padded:,}."
        )
        return
    console.print(
        f"Prefix sharing: {count} at batch size {inspection.batch_size} run {run:,} tokens; padded "
        f"to the longest text they would be {padded:,}, {padded / run:.1f} times as many."
    )


def _say_words(words: "tuple[WordReport, ...]", console: Terminal) -> None:
    """Print a table of the first label words and of some that are split oddly further on."""
    odd = [report for report in words[MAX_WORDS:] if report.is_split]
    shown = (*words[:MAX_WORDS], *odd[:MAX_ODD_WORDS])
    table = plain_table("label", "word, token by token", ">with", ">without")
    names = table.columns[0]
    names.max_width, names.no_wrap, names.overflow = 26, True, "ellipsis"
    for report in shown:
        tokens = " | ".join(map(_visible, report.tokens))
        word = Text(tokens, style="yellow" if report.is_split else "")
        table.add_row(report.label, word, str(report.with_space), str(report.without_space))
    console.print(table)
    left = len(words) - len(shown)
    if left > 0:
        split = len(odd) - len(odd[:MAX_ODD_WORDS])
        console.print(f"... and {left} more, {split} of them split inside a word")


def _classes(checkup: "Checkup") -> str:
    counts = checkup.class_counts
    if len(counts) <= MAX_WORDS:
        return "Labels: " + ", ".join(f"{name} {count:,}" for name, count in counts.items())
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    return (
        f"{len(counts)} labels, with {counts[fewest]:,} ({fewest}) to {counts[most]:,} ({most}) "
        "examples each"
    )


def _prompt(tokens: "tuple[ShownToken, ...]", width: int) -> list[Text]:
    """Return the prompt in lines that break between tokens, its middle left out if it is long."""
    lines = [Text()]
    for index, token in enumerate(tokens):
        shown = _visible(token.text)
        style = "bold white on dark_green" if token.is_completion else ("", "dim")[index % 2]
        piece = Text(shown, style=style)
        mark = "" if token.text.endswith("\n") else "|"
        if lines[-1].cell_len and lines[-1].cell_len + piece.cell_len + len(mark) > width:
            lines.append(Text())
        lines[-1].append_text(piece).append(mark, style="dim")
        if not mark:
            lines.append(Text())
    left = len(lines) - HEAD_LINES - TAIL_LINES
    if left <= 1:
        return lines
    middle = Text(f"... {left} lines left out; {len(tokens):,} tokens in all ...", style="italic")
    return [*lines[:HEAD_LINES], middle, *lines[-TAIL_LINES:]]


def _visible(token: str) -> str:
    """Return a token with its spaces, line breaks and control characters made visible."""
    token = token.replace(" ", "·").replace("\n", "⏎")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in token)


def _some(entries: Iterable[str]) -> str:
    """Join the first entries and say how many more there are."""
    listed = list(entries)
    more = f" and {len(listed) - MAX_WORDS} more" if len(listed) > MAX_WORDS else ""
    return ", ".join(listed[:MAX_WORDS]) + more
