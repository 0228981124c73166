"""Judge a tuned model beside its base: held-out answers, references, and other tasks.

Perplexity of held-out completions, exact match and ROUGE of generated answers, and classification
tasks read off the LM head without any training: does tuning hurt what the model could do before?
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskfit.compare.stale import set_aside
from taskfit.data.instructions import InstructionRow, Preference
from taskfit.errors import DataError, SettingsError
from taskfit.files import write_json_atomic
from taskfit.models.load import load_model
from taskfit.report.finished_run import FinishedRun
from taskfit.runs.bases import Base, find_bases, with_found
from taskfit.runs.file_names import RESULT_FILE, SETTINGS_FILE
from taskfit.runs.fit import fit
from taskfit.runs.known_texts import seen_note
from taskfit.runs.records import RunResult
from taskfit.runs.run_folder import run_lock
from taskfit.runs.tuning.data import as_example
from taskfit.runs.tuning.measure import TextMetrics, measure
from taskfit.runs.tuning.model import Decoding, TunedModel
from taskfit.runs.tuning.rows import prompt_of, reference_of
from taskfit.screen import Screen
from taskfit.settings_file import load_run_settings, settings_from_dict
from taskfit.stats.paired import paired_bootstrap
from taskfit.tasks.shortening import shortened_note

JUDGEMENT = "judgement.json"


def judge_answers(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compare answers with references; rows without a reference are left out.

    Returns:
        exact_match: Share that agrees but for case, punctuation and white space.
        rouge1, rouge_l: Mean F1 of shared words, and of the longest common subsequence of words
            (Lin 2004), stemmed.

    Raises:
        DataError: If no row has a reference.
        SettingsError: If the package rouge-score is missing.
    """
    pairs = [(a, r) for a, r in zip(answers, references, strict=True) if r.strip()]
    if not pairs:
        raise DataError("No row has a reference to compare answers with.")
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise SettingsError(
            "Comparing answers with references needs rouge-score: pip install 'taskfit[tuning]'."
        ) from error
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    scores = [scorer.score(reference, answer) for answer, reference in pairs]
    return {
        "exact_match": float(np.mean([normalized(a) == normalized(r) for a, r in pairs])),
        "rouge1": float(np.mean([score["rouge1"].fmeasure for score in scores])),
        "rouge_l": float(np.mean([score["rougeL"].fmeasure for score in scores])),
    }


def normalized(text: str) -> str:
    """Return a text in lower case without punctuation and repeated white space."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


def judge_rows(
    tuned: TunedModel,
    rows: Sequence[InstructionRow],
    *,
    decoding: Decoding,
    label: str,
    screen: Screen,
) -> dict[str, Any]:
    """Return perplexity of the rows' answers, and how the model's own compare with them."""
    items, _ = tuned.encode(rows)
    if cut := sum(item.num_tokens_cut > 0 for item in items):
        screen.note(shortened_note(f"{label}: reading", cut, len(items)))
    found = measure(tuned, items, reference={}, label=f"{label}: reading", screen=screen)
    assert isinstance(found, TextMetrics), "rows without pairs have text metrics"
    with screen.progress(f"{label}: answering", len(rows)) as advance:
        answers = tuned.answer([prompt_of(row) for row in rows], decoding, advance=advance)
    compared = judge_answers(answers, [reference_of(row) for row in rows])
    read = {"num_rows": found.num_rows, "perplexity": found.perplexity, "loss": found.loss}
    return {**read, **compared}


def judge(
    folder: Path,
    *,
    rows: Sequence[InstructionRow] | None,
    tasks: Sequence[str],
    tests: Mapping[str, str],
    decoding: Decoding,
    max_test: int,
    device: str,
    screen: Screen,
    allow_other_base: bool = False,
) -> dict[str, Any]:
    """Measure a tuning run and its base model side by side; write `judgement.json`.

    Args:
        folder: A finished tuning run.
        rows: Held-out rows with answers; None: none.
        tasks: Classification tasks, each read zero-shot off the LM head.
        tests: Evaluation sets of the only task, by name: files or hub ids. Built-in tasks bring
            their own.
        decoding: How answers are generated.
        max_test: Most examples of each evaluation set of a task.
        device: See `model.device`.
        screen: Where progress is shown.
        allow_other_base: Whether a base will do that is not the one of the run.

    Returns:
        What was written: `rows` and `tasks`, each with base and tuned.

    Raises:
        TaskfitError: If run, data or task does not allow it.
    """
    if tests and len(tasks) != 1:
        raise SettingsError("--test names evaluation sets of one task: give one --task with it.")
    if not rows and not tasks:
        raise SettingsError("Nothing to judge on: give FILE, --task NAME, or both.")
    with run_lock(folder, resume=True):
        return _judge(
            *(folder, rows, tasks, tests, decoding, max_test, device, screen, allow_other_base)
        )


def _judge(
    folder: Path,
    rows: Sequence[InstructionRow] | None,
    tasks: Sequence[str],
    tests: Mapping[str, str],
    decoding: Decoding,
    max_test: int,
    device: str,
    screen: Screen,
    allow_other_base: bool,
) -> dict[str, Any]:
    tuned = TunedModel.load(folder, device=device, allow_other_base=allow_other_base)
    own = load_run_settings(folder / SETTINGS_FILE)
    bases = find_bases(folder, own, own_weights=False, allow_other=allow_other_base)
    if rows:
        rows = _with_room(tuned, rows, decoding, screen)
        if note := seen_note(folder, [as_example(row) for row in rows], name="the rows"):
            screen.note(note)
    found: dict[str, Any] = {"rows": {}, "tasks": {}}
    results: dict[str, dict[str, FinishedRun]] = {"tuned": {}, "base": {}}
    template = tuned.model.tokenizer.chat_template
    for who in ("tuned", "base"):
        if who == "base":
            settings = tuned.settings
            # Of full weights the settings name those; what was tuned stands in the run's own.
            model = with_found(own, bases).model
            update = {"name": model.name, "revision": model.revision}
            base = settings.model.model_copy(update=update)
            del tuned  # one model at a time
            loaded = load_model(base, quantization=settings.adapter)
            loaded.tokenizer.chat_template = template
            tuned = TunedModel(settings.model_copy(update={"model": base}), loaded)
        if rows:
            found["rows"][who] = judge_rows(
                tuned, rows, decoding=decoding, label=who, screen=screen
            )
        for task in tasks:
            data = {"max_test": max_test, "tests": dict(tests)}
            asked = {"task": {"name": task}, "data": data}
            results[who][task] = _run_task(folder / "judge", tuned, asked, who, screen)
    for task in tasks:
        found["tasks"][task] = _compare(results["base"][task], results["tuned"][task])
    write_json_atomic(folder / JUDGEMENT, found)
    return found


def _with_room(
    tuned: TunedModel, rows: Sequence[InstructionRow], decoding: Decoding, screen: Screen
) -> list[InstructionRow]:
    """Leave out rows whose prompts leave no room for an answer, or whose answers are cut off."""
    if isinstance(rows[0], Preference):
        raise DataError("Pairs of answers are judged at the end of `taskfit fit --method dpo`.")
    kept = [
        row
        for row in rows
        if tuned.room_after(prompt_of(row)) >= decoding.max_new_tokens
        and tuned.encode([row], check=False)[0]
    ]
    if not kept:
        raise DataError(
            f"None of the {len(rows):,} rows leaves room for an answer of "
            f"{decoding.max_new_tokens} tokens. Ask for fewer with --max-new-tokens."
        )
    if len(kept) < len(rows):
        screen.note(
            f"left out {len(rows) - len(kept):,} of {len(rows):,} rows, which leave no room for "
            f"an answer of {decoding.max_new_tokens} tokens"
        )
    return kept


def _run_task(
    folder: Path, tuned: TunedModel, task: dict[str, Any], who: str, screen: Screen
) -> FinishedRun:
    """Read a task zero-shot off the LM head, once for each content of its files."""
    digest = hashlib.sha256(json.dumps(task, sort_keys=True).encode())
    for name in (task["task"]["name"], *task["data"]["tests"].values()):
        path = Path(name).expanduser()
        digest.update(path.read_bytes() if path.is_file() else name.encode())
    home = folder / f"{Path(task['task']['name']).stem}-{digest.hexdigest()[:8]}-{who}"
    settings = settings_from_dict(
        {
            **task,
            "method": {"name": "in_context", "num_demonstrations": 0},
            "model": tuned.settings.model.model_dump(),
        }
    )
    set_aside(home, settings, screen, known=dict[str, Base | None]())
    if not (home / RESULT_FILE).is_file():
        fit(
            settings,
            home,
            resume=(home / SETTINGS_FILE).is_file(),
            screen=screen,
            model=tuned.model,
            name=who,
            baselines=False,
        )
    return FinishedRun(home, RunResult.load(home))


def _compare(base: FinishedRun, tuned: FinishedRun) -> dict[str, dict[str, Any]]:
    """Return accuracy before and after, with the paired difference, by evaluation set."""
    compared: dict[str, dict[str, Any]] = {}
    for name, evaluation in base.result.evaluations.items():
        before, after = base.predictions(name), tuned.predictions(name)
        _, (low, high) = paired_bootstrap(
            before.gold, after.predicted, before.predicted, metric="accuracy"
        )
        compared[name] = {
            "num_examples": evaluation.num_examples,
            "base": evaluation.accuracy,
            "tuned": tuned.result.evaluations[name].accuracy,
            "difference_low": low,
            "difference_high": high,
        }
    return compared


def judgement_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Return lines of a table: where, measure, base, tuned, difference.

    Differences of tasks have their 95 % interval in brackets, those of answers have none.
    """
    lines = []
    rows = found["rows"]
    if rows:
        for key in ("perplexity", "exact_match", "rouge1", "rouge_l"):
            where = f"answers (n = {rows['tuned']['num_rows']:,})"
            base, tuned = rows["base"][key], rows["tuned"][key]
            lines.append((where, key.replace("_", " "), *_beside(base, tuned)))
    for task, sets in found["tasks"].items():
        for name, c in sets.items():
            base, tuned, difference = _beside(c["base"], c["tuned"])
            difference += f" ({c['difference_low']:+.3f} to {c['difference_high']:+.3f})"
            where = f"{task} {name} (n = {c['num_examples']:,})"
            lines.append((where, "accuracy, zero-shot", base, tuned, difference))
    return lines


def _beside(base: float, tuned: float) -> tuple[str, str, str]:
    return f"{base:.3f}", f"{tuned:.3f}", f"{tuned - base:+.3f}"
