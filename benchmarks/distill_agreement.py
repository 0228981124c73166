"""How near a student without context came to its teacher with context.

    taskfit compare --config results/distill.yaml --task sentiment --out runs/distill
    python benchmarks/distill_agreement.py runs/distill --out results/distill.json

Reads the predictions of the three runs: share of equal answers, KL(teacher || student) of the
label distributions (nats), and accuracies, on every evaluation set.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

NAMES = {"teacher": "teacher", "before": "student before", "after": "student after"}


def runs_by_name(folder: Path) -> dict[str, Path]:
    """Return each run's folder by its name in tables."""
    found = {}
    for path in (folder / "runs").glob("*/result.json"):
        found[json.loads(path.read_text(encoding="utf-8"))["name"]] = path.parent
    return found


def main() -> None:
    """Print and store JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs = runs_by_name(arguments.comparison)
    result = json.loads((runs["student after"] / "result.json").read_text(encoding="utf-8"))
    report: dict[str, object] = {"texts": result["num_train"], "machine": result["machine"]}
    for name in result["evaluations"]:
        tables = {
            key: pd.read_parquet(runs[run] / "predictions" / f"{name}.parquet").set_index("id")
            for key, run in NAMES.items()
        }
        ids = tables["teacher"].index
        columns = [c for c in tables["teacher"].columns if c.startswith("p_")]
        p = {k: t.loc[ids, columns].to_numpy().clip(1e-9) for k, t in tables.items()}
        answers = {k: t.loc[ids, "predicted"] for k, t in tables.items()}
        entry: dict[str, object] = {"num_examples": len(ids)}
        for key in ("before", "after"):
            divergence = (p["teacher"] * np.log(p["teacher"] / p[key])).sum(axis=1).mean()
            entry[f"kl_{key}"] = round(float(divergence), 4)
            entry[f"agreement_{key}"] = round(float((answers["teacher"] == answers[key]).mean()), 4)
        gold = tables["teacher"]["gold"]
        entry |= {f"accuracy_{k}": round(float((a == gold).mean()), 4) for k, a in answers.items()}
        report[name] = entry
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
