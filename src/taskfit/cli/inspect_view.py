"""Show an inspection on a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskfit.experiments.inspection import Inspection
from taskfit.tasks.checkup import Checkup

MAX_WORDS = 12


def show_inspection(inspection: Inspection, console: Console) -> None:
    """Print what `taskfit inspect` found, readable on 80 columns."""
    checkup = inspection.checkup
    sizes = ", ".join(f"{name} {count:,}" for name, count in inspection.num_examples.items())
    console.print(f"Task {inspection.task.name} with {inspection.model}: {sizes}", highlight=False)
    console.print(_classes(checkup), highlight=False)
    console.print("\nThe prompt, token by token; the label's tokens are in colour:")
    console.print(_prompt(checkup))
    console.print("\nLabel words:")
    console.print(_words(checkup))
    if len(checkup.words) > MAX_WORDS:
        console.print(f"... and {len(checkup.words) - MAX_WORDS} more", highlight=False)
    lengths = ", ".join(f"{name} {value:,}" for name, value in checkup.lengths.items())
    console.print(f"\nLength with answer (tokens): {lengths}", highlight=False)
    overlap = inspection.overlap
    if overlap is not None:
        where = ", ".join(f"{name} {count}" for name, count in overlap.dropped_by_set.items())
        console.print(
            f"Duplicates: {overlap.num_dropped} training texts stand in evaluation sets"
            f"{f' ({where}) and will be left out' if where else ''}; {overlap.num_repeated} stand "
            f"twice in training, {overlap.num_conflicts} of them with different labels.",
            highlight=False,
        )
    ratio = inspection.padded_tokens / inspection.unique_tokens
    console.print(
        f"Prefix sharing: one epoch at batch size {inspection.batch_size} runs "
        f"{inspection.unique_tokens:,} tokens; padded to the longest text it would be "
        f"{inspection.padded_tokens:,}, {ratio:.1f} times as many.",
        highlight=False,
    )
    console.print("\nAdvice:" if checkup.advice else "\nNothing to object to.")
    for sentence in checkup.advice:
        console.print(f"- {sentence}", highlight=False, markup=False)


def _classes(checkup: Checkup) -> str:
    counts = list(checkup.class_counts.items())
    more = f", and {len(counts) - MAX_WORDS} more" if len(counts) > MAX_WORDS else ""
    return "Labels: " + ", ".join(f"{k} {v:,}" for k, v in counts[:MAX_WORDS]) + more


def _prompt(checkup: Checkup) -> Text:
    text = Text()
    for index, token in enumerate(checkup.prompt):
        shown = token.text.replace("\n", "⏎\n").replace(" ", "·")
        style = "bold white on dark_green" if token.is_completion else ("", "dim")[index % 2]
        text.append(shown, style=style)
        text.append("" if shown.endswith("\n") else "|", style="dim")
    return text


def _words(checkup: Checkup) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("label", "word", "tokens after the prompt", "alone: ' x'", "'x'"):
        table.add_column(name)
    for word in checkup.words[:MAX_WORDS]:
        tokens = " | ".join(token.replace(" ", "·") for token in word.tokens)
        table.add_row(
            word.label, repr(word.word), tokens, str(word.with_space), str(word.without_space)
        )
    return table
