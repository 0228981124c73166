"""Run the steps of a curation one after the other, each from and to a file."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskfit.curate import filters
from taskfit.curate.card import write_card
from taskfit.curate.chat import run_chat
from taskfit.curate.context import Context
from taskfit.curate.duplicates import run_exact, run_near
from taskfit.curate.items import Item, ItemFile, Removal, Verdict, dump_line
from taskfit.curate.overlap import run_overlap
from taskfit.curate.select import run_diverse, run_top
from taskfit.curate.settings import ChatStep, CurateSettings, OverlapStep, SourceSettings, Step
from taskfit.curate.tokens import TokenCounter, load_tokenizer
from taskfit.curate.work import StepResult, WorkFolder, chain_key, file_hash, write_step
from taskfit.data.instructions import InstructionRow, open_instructions, to_record
from taskfit.errors import DataError, SettingsError
from taskfit.files import folder_atomic, refuse_over_input
from taskfit.lock import only_one_at_a_time
from taskfit.screen import Screen, SilentScreen

CARD = "card.json"
# Steps that look at one row at a time, and steps that look at all.
FILTERS: dict[str, Callable[[Any, Item], Removal | None]] = {
    "empty": filters.judge_empty,
    "encoding": filters.judge_encoding,
    "truncated": filters.judge_truncated,
    "refusals": filters.judge_refusals,
    "language": filters.judge_language,
    "tokens": filters.judge_tokens,
}
STEPS: dict[str, Callable[[Any, ItemFile, Context], Iterator[Verdict]]] = {
    "exact": run_exact,
    "near": run_near,
    "overlap": run_overlap,
    "top": run_top,
    "diverse": run_diverse,
    "chat": run_chat,
}


@dataclass(frozen=True, slots=True)
class CurateResult:
    """What a curation did.

    Attributes:
        out: Folder with data.jsonl, removed.jsonl, card.html, card.json.
        work: Folder with what each step left.
        steps: The reading, then each step.
    """

    out: Path
    work: Path
    steps: list[StepResult]


def curate(
    sources: Sequence[SourceSettings],
    out: Path,
    *,
    settings: CurateSettings,
    model: str,
    encoding: str = "utf-8",
    screen: Screen | None = None,
    overwrite: bool = False,
) -> CurateResult:
    """Read instruction data, run the steps, and write what is left.

    Finished steps stay in `OUT.work`: the same call after a kill goes on behind the last finished
    one, and a call with other steps uses those that are the same from the start.

    Args:
        sources: What to read, in order; those of the settings come first.
        out: Folder to write; one that an earlier curation wrote is replaced.
        settings: The steps.
        model: Whose tokenizer counts: packaged, folder or hub id.
        encoding: Of text files.
        screen: Shows progress.
        overwrite: Whether files that are read may lie in the folder that is replaced.

    Raises:
        DataError: If a file cannot be read, or nothing is left: the step that emptied it is named.
        SettingsError: If the steps do not fit together or `out` holds something else.
        ModelError: If the tokenizer or an encoder cannot be had.
    """
    every = [*settings.sources, *sources]
    _check(every, out, settings.steps)
    refuse_over_input(out, _files(every, settings.steps), overwrite=overwrite)
    with only_one_at_a_time(out, beside=True):
        return _curate(every, out, settings, model, encoding, screen or SilentScreen())


def _curate(
    every: Sequence[SourceSettings],
    out: Path,
    settings: CurateSettings,
    model: str,
    encoding: str,
    screen: Screen,
) -> CurateResult:
    work = WorkFolder(out.with_name(f"{out.name}.work"))
    tokenizer = load_tokenizer(model)
    context = Context(tokenizer, settings.seed, screen)
    chain = {
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "template": str(tokenizer.chat_template),
        "encoding": encoding,
        "sources": [{**s.model_dump(), "hash": file_hash(s.file)} for s in every],
    }
    key = chain_key("", chain)
    results = [_read(every, work, key, context, encoding)]
    for number, step in enumerate(settings.steps, start=1):
        key = chain_key(key, {**_described(step), "seed": settings.seed})
        results.append(_run(step, number, results[-1], work, key, context))
    work.drop_after(len(settings.steps))
    _write(out, work, results, every, model=model)
    return CurateResult(out, work.path, results)


def _files(sources: Sequence[SourceSettings], steps: Sequence[Step]) -> list[str]:
    """Return all files that a curation reads."""
    files = [source.file for source in sources]
    for step in steps:
        if isinstance(step, OverlapStep):
            files += [one.file for one in step.sets.values()]
        if isinstance(step, ChatStep) and step.template is not None:
            files.append(step.template)
    return files


def _check(sources: Sequence[SourceSettings], out: Path, steps: Sequence[Step]) -> None:
    if not sources:
        raise SettingsError("There is nothing to curate. Give one file or more, or `sources:`.")
    if out.suffix.lower() in (".json", ".jsonl", ".csv", ".parquet"):
        raise SettingsError(
            f"{out} looks like a file; a folder is written, with data.jsonl, removed.jsonl and "
            f"card.html. Give {out.with_suffix('')}, for instance."
        )
    if out.exists() and not (out / CARD).is_file():
        raise SettingsError(
            f"{out} exists and was not written by taskfit curate; it would be replaced. Give "
            "another folder."
        )
    for number, step in enumerate(steps[:-1]):
        if isinstance(step, ChatStep):
            later = steps[number + 1].step
            raise SettingsError(
                f"chat is step {number + 1} and {later} comes behind it: conversations are texts "
                "from there on, without prompt or answer. Put chat last."
            )


def _read(
    sources: Sequence[SourceSettings],
    work: WorkFolder,
    key: str,
    context: Context,
    encoding: str,
) -> StepResult:
    found = work.finished(0, "read", key)
    if found is not None:
        return found
    counter, facts = TokenCounter(context.tokenizer), context.facts
    facts.clear()

    def verdicts() -> Iterator[Verdict]:
        rows = _rows(sources, encoding, facts, context.screen)
        for item in counter.count(rows):
            yield item, None
        if counter.num_refused:
            facts["template_refused"] = counter.num_refused
            facts["template_refusal"] = counter.first_refusal

    return write_step(
        work.folder(0, "read"), verdicts(), key=key, name="read", settings={}, facts=facts
    )


def _rows(
    sources: Sequence[SourceSettings], encoding: str, facts: dict[str, Any], screen: Screen
) -> Iterator[tuple[str, InstructionRow]]:
    """Yield source and row of all files; their formats and counts go into the facts."""
    names = [Path(source.file).name for source in sources]
    facts["sources"] = []
    for source, name in zip(sources, names, strict=True):
        # Two files of one name in two folders need ids of their own.
        label = name if names.count(name) == 1 else source.file
        found, rows = open_instructions(
            source.file, kind=source.kind, columns=source.columns, encoding=encoding, name=label
        )
        screen.note(f"{source.file}: {found.describe()}")
        told: dict[str, Any] = {"name": label, "format": found.describe()}
        told |= {"license": source.license, "rows": 0}
        facts["sources"].append(told)
        for row in rows:
            told["rows"] += 1
            yield label, row
        if notes := rows.notes():
            told["notes"] = notes
            for note in notes:
                screen.note(note)


def _run(
    step: Step,
    number: int,
    before: StepResult,
    work: WorkFolder,
    key: str,
    context: Context,
) -> StepResult:
    result = work.finished(number, step.step, key)
    if result is None:
        # Nothing of an earlier run stands behind a step that is made anew.
        work.drop_after(number - 1)
        context.facts.clear()
        items = work.kept(number - 1, before.name, before.kept)
        result = write_step(
            work.folder(number, step.step),
            verdicts_of(step, items, context),
            key=key,
            name=step.step,
            settings=step.model_dump(),
            facts=context.facts,
        )
    how = ", kept from an earlier run" if result.resumed else f" ({result.seconds:.1f} s)"
    context.screen.note(f"{step.step}: {result.before:,} -> {result.kept:,}{how}")
    if result.kept == 0:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in result.reasons.items())
        raise DataError(
            f"Step {number}, {step.step}, removed the last {result.before:,} rows ({reasons}); "
            f"nothing is left. They stand with their reasons in {work.removed(number, step.step)}. "
            "Loosen the step or leave it out."
        )
    return result


def verdicts_of(step: Step, items: ItemFile, context: Context) -> Iterator[Verdict]:
    """Return the verdicts of a step, one for each row, in order."""
    if step.step in FILTERS:
        judge = FILTERS[step.step]
        return ((item, judge(step, item)) for item in items)
    return STEPS[step.step](step, items, context)


def _described(step: Step) -> dict[str, Any]:
    """Return a step's settings with the contents of the files that it names."""
    described = step.model_dump()
    if isinstance(step, OverlapStep):
        described["hashes"] = {name: file_hash(s.file) for name, s in step.sets.items()}
    if isinstance(step, ChatStep) and step.template is not None:
        described["hashes"] = {"template": file_hash(step.template)}
    return described


def _write(
    out: Path,
    work: WorkFolder,
    results: Sequence[StepResult],
    sources: Sequence[SourceSettings],
    *,
    model: str,
) -> None:
    """Write the folder of results: data, removed rows, card; the same bytes for the same input."""
    last = len(results) - 1
    with folder_atomic(out) as scratch:
        with (scratch / "data.jsonl").open("w", encoding="utf-8", newline="\n") as data:
            for item in work.kept(last, results[-1].name, results[-1].kept):
                data.write(dump_line(to_record(item.row)))
        with (scratch / "removed.jsonl").open("wb") as removed:
            for number, result in enumerate(results):
                with work.removed(number, result.name).open("rb") as part:
                    shutil.copyfileobj(part, removed)
        write_card(scratch, results, sources, work, model=model)
