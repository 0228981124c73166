"""Time, memory and yield of `taskfit curate` on rows with planted near-duplicates.

    python benchmarks/curate.py --rows 50000 --out results/curate.json

The instruction sets of the data folder (TASKFIT_DATA) are read, equal rows are left out, and seeded
small edits of them are added until there are as many rows as asked for. An edited row and its
original are one family. After the curation:

- found: of all rows that are one too many in their family, those that near or exact removed;
- wrong: rows removed because of a row of another family, apart from pairs that were alike before
  anything was planted (Jaccard similarity of 5-grams of characters from 0.5), which are counted on
  their own; families that were lost altogether are counted as well.

The cache of embeddings starts empty. What other steps removed stands in neither count.
"""

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe
from taskfit.curate import SourceSettings, StepResult, curate
from taskfit.curate.duplicates import shingles
from taskfit.curate.items import normalised, part_of
from taskfit.curate.settings import curate_settings
from taskfit.data import cache_folder
from taskfit.data.instructions import Conversation, InstructionRow, read_instructions
from taskfit.screen import SilentScreen

ALIKE = 0.5
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class PrintScreen(SilentScreen):
    """Prints lines; shows no bars."""

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)


def base_rows(folder: Path) -> list[InstructionRow]:
    """Return the rows of all instruction sets, without equal ones."""
    files = sorted([*folder.glob("*.json*")])
    rows, seen = [], set()
    for file in files:
        for row in read_instructions(str(file)).rows:
            key = normalised(part_of(row, "row"))
            if key not in seen and len(key) >= 20:
                seen.add(key)
                rows.append(row)
    return rows


def edit(text: str, draw: random.Random) -> str:
    """Return a text with one small edit for each forty words, at least one."""
    words = text.split(" ")
    for _ in range(1 + len(words) // 40):
        place = draw.randrange(len(words))
        word = words[place]
        kind = draw.choice(("typo", "case", "double", "drop", "mark", "letter"))
        if kind == "typo" and len(word) > 3:
            at = draw.randrange(1, len(word) - 2)
            words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        elif kind == "letter" and len(word) > 3:
            at = draw.randrange(1, len(word))
            words[place] = word[:at] + draw.choice(LETTERS) + word[at:]
        elif kind == "case":
            words[place] = word.swapcase()
        elif kind == "drop" and len(words) > 12:
            words[place] = ""
        elif kind == "mark":
            words[place] = word.rstrip(".,;:!?") + draw.choice((",", ".", ";", ""))
        else:
            words[place] = f"{word}  "
    return " ".join(words)


def planted(rows: Sequence[InstructionRow], count: int, seed: int) -> list[dict[str, Any]]:
    """Return rows in a seeded order: originals and edits, each with its family."""
    draw = random.Random(seed)
    chosen = list(rows)
    draw.shuffle(chosen)
    # A quarter of the rows stays without a copy, so that there is something to remove wrongly.
    chosen = chosen[: max(1, min(len(chosen), count // 2))]
    copied = chosen[: max(1, 3 * len(chosen) // 4)]
    result = [_record(row, family, None) for family, row in enumerate(chosen)]
    while len(result) < count:
        family = draw.randrange(len(copied))
        result.append(_record(copied[family], family, draw))
    draw.shuffle(result)
    return result


def _record(row: InstructionRow, family: int, draw: random.Random | None) -> dict[str, Any]:
    assert isinstance(row, Conversation)
    turns = [{"role": m.role, "content": m.content} for m in row.messages]
    if draw is not None:
        for turn in turns:
            turn["content"] = edit(turn["content"], draw)
    return {"messages": turns, "family": family, "copy": draw is not None}


def jaccard(a: str, b: str) -> float:
    """Return the share of 5-grams of characters that two texts have in common."""
    first, second = set(shingles(a)), set(shingles(b))
    return len(first & second) / len(first | second)


def judge(rows: Sequence[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Compare what was removed with what was planted."""

    def text(row: dict[str, Any]) -> str:
        return "\n".join(turn["content"] for turn in row["messages"])

    removed = [json.loads(line) for line in (out / "removed.jsonl").open(encoding="utf-8")]
    line_of = {f"rows.jsonl:{number}": row for number, row in enumerate(rows, start=1)}
    other = {r["id"] for r in removed if r["step"] not in ("exact", "near")}
    members = Counter(row["family"] for name, row in line_of.items() if name not in other)
    gone: Counter[int] = Counter()
    wrong, alike, examples = 0, 0, []
    for record in removed:
        if record["step"] not in ("exact", "near"):
            continue
        mine, kept = line_of[record["id"]], line_of[record["of"]]
        gone[mine["family"]] += 1
        if mine["family"] == kept["family"]:
            continue
        if jaccard(text(mine), text(kept)) >= ALIKE:
            alike += 1
            continue
        wrong += 1
        if len(examples) < 10:
            # By place, not by text: rows are drawn by the seed, and others wrote them.
            examples.append({key: record[key] for key in ("similarity", "of", "id")})
    surplus = sum(count - 1 for count in members.values())
    left = sum(max(0, members[f] - gone[f] - 1) for f in members)
    return {
        "planted": surplus,
        "found": surplus - left,
        "share_found": round((surplus - left) / max(1, surplus), 4),
        "removed_wrongly": wrong,
        "removed_as_alike_before": alike,
        "families": len(members),
        "families_lost": sum(gone[f] == members[f] for f in members),
        "examples_of_wrong": examples,
    }


def _name(step: StepResult) -> str:
    return f"{step.name} by {step.settings['method']}" if step.name == "near" else step.name


def main() -> None:
    """Run one curation and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="both", choices=("both", "embedding", "minhash"))
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--out", type=Path, default=Path("results/curate.json"))
    arguments = parser.parse_args()
    data = Path(os.environ.get("TASKFIT_DATA", "../shared/data")) / "instructions"
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch), cache_folder()
        rows = planted(base_rows(data), arguments.rows, arguments.seed)
        source = folder / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / "cache").mkdir()
        for name in ("models", "packages"):
            if (cache / name).is_dir():
                (folder / "cache" / name).symlink_to((cache / name).resolve())
        os.environ["TASKFIT_CACHE"] = str(folder / "cache")
        names = ("empty", "encoding", "truncated", "refusals", "tokens", "exact")
        methods = ("minhash", "embedding") if arguments.method == "both" else (arguments.method,)
        near = [{"step": "near", "method": m, "threshold": arguments.threshold} for m in methods]
        settings = curate_settings({"steps": [*names, *near]})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        started = time.monotonic()
        result = curate(
            [SourceSettings(file=str(source))],
            folder / "out",
            settings=settings,
            model="smollm2-135m",
            screen=PrintScreen(),
        )
        seconds = time.monotonic() - started
        record = {
            "command": f"python benchmarks/curate.py {' '.join(sys.argv[1:])}".strip(),
            "rows": len(rows),
            "seconds": round(seconds, 1),
            "seconds_by_step": {_name(step): step.seconds for step in result.steps},
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "memory_before_bytes": before,
            "steps": {
                _name(step): {"before": step.before, "removed": step.removed, **step.facts}
                for step in result.steps[1:]
            },
            **judge(rows, folder / "out"),
            "machine": describe(),
            "load_average": os.getloadavg(),
        }
    records = json.loads(arguments.out.read_text()) if arguments.out.is_file() else []
    # One record for each command; a new run of it takes the old one's place.
    records = [one for one in records if one["command"] != record["command"]] + [record]
    arguments.out.write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps({k: v for k, v in record.items() if k not in ("machine", "steps")}, indent=1))


if __name__ == "__main__":
    main()
