"""Write results/methods.md from the results of the comparison that results/methods.yaml describes.

    taskfit compare --config results/methods.yaml --task sentiment --out runs/methods-sentiment
    taskfit compare --config results/methods.yaml --task cola --out runs/methods-cola
    python benchmarks/methods_table.py runs/methods-sentiment runs/methods-cola

Every number comes from the runs' `result.json`; nothing is typed. Remarks are read from
results/methods-notes.md and stand at the end.
"""

import argparse
from pathlib import Path

import pandas as pd

from taskfit.compare.grid import load_grid
from taskfit.runs.records import RunResult, result_rows
from taskfit.settings_file import load_run_settings

GRID = Path(__file__).parents[1] / "results" / "methods.yaml"
HEADER = """# Methods on real data

Made by `python benchmarks/methods_table.py`, never by hand; settings in
[methods.yaml](methods.yaml). Packaged model smollm2-135m.

Each cell: mean over draws, with the smallest and largest and the number of draws where there are
several. Labels are all that a method is given, its demonstrations among them. Seconds are whole
runs (training and all evaluation sets), of the processor; runs made before these were recorded are
left out of that table. Memory is the peak above what the process had at its start. Measured {how}.
"""


def cell(values: pd.Series, digits: int) -> str:
    """Return mean, range and number of draws."""
    if len(values) == 0:
        return ""
    mean, low, high = (f"{x:.{digits}f}" for x in (values.mean(), values.min(), values.max()))
    return mean if len(values) == 1 else f"{mean} ({low}-{high}, {len(values)})"


def read(folder: Path) -> pd.DataFrame:
    """Return a row for each run and evaluation set, with the labels that were drawn for the run."""
    rows = []
    for path in sorted((folder / "runs").glob("*/result.json")):
        settings = load_run_settings(path.parent / "settings.yaml")
        drawn = settings.data.num_train
        result = RunResult.load(path.parent)
        rows += [{**row, "labels": drawn or 0} for row in result_rows(result)]
    table = pd.DataFrame(rows).drop_duplicates(["name", "labels", "seed", "evaluation"])
    order = {name: place for place, name in enumerate(load_grid(GRID)["methods"])}
    return table.sort_values(
        by=["name", "seed"], key=lambda c: c.map(order) if c.name == "name" else c
    )


def interval_width(found: pd.DataFrame) -> float:
    """Return half the width of the mean 95 % bootstrap interval of accuracy."""
    return float((found["accuracy_high"] - found["accuracy_low"]).mean() / 2)


def metric_table(
    found: pd.DataFrame, metric: str, sizes: list[int], *, digits: int = 3
) -> list[str]:
    """Return a Markdown table: a row a method, a column a number of labels."""
    lines = [
        "| method | " + " | ".join(f"{size or 'no'} labels" for size in sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for name in dict.fromkeys(found["name"]):
        rows = found[found["name"] == name]
        cells = [cell(rows[rows["labels"] == size][metric], digits) for size in sizes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Read the comparison and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparisons", type=Path, nargs="+", help="Folders of `taskfit compare`.")
    parser.add_argument("--out", type=Path, default=Path("results/methods.md"))
    parser.add_argument("--how", default="on one core, beside other work")
    arguments = parser.parse_args()
    page = [HEADER.format(how=arguments.how)]
    for folder in arguments.comparisons:
        table = read(folder)
        sizes = sorted(table["labels"].unique())
        counts = table.groupby("evaluation", sort=False)["num_examples"].first()
        sets = ", ".join(f"{name} (n = {count})" for name, count in counts.items())
        page.append(f"## {table['task'].iloc[0]}\n\nEvaluated on {sets}.\n")
        for name in counts.index:
            found = table[table["evaluation"] == name]
            width = interval_width(found)
            page.append(f"### {name}: accuracy (95 % of one run: about ±{width:.3f})\n")
            page.append("\n".join(metric_table(found, "accuracy", sizes)) + "\n")
            page.append(f"### {name}: MCC\n")
            page.append("\n".join(metric_table(found, "mcc", sizes)) + "\n")
        once = table.drop_duplicates(["name", "labels", "seed"]).copy()
        once["peak memory (MB)"] = once["peak_memory_bytes"] / 1e6
        once["processor seconds"] = once["cpu_seconds"] + once["cached_seconds"]
        timed = once[once["cpu_seconds"] > 0]
        page.append("### processor seconds\n")
        page.append("\n".join(metric_table(timed, "processor seconds", sizes, digits=0)) + "\n")
        for column in ("peak memory (MB)",):
            page.append(f"### {column}\n")
            page.append("\n".join(metric_table(once, column, sizes, digits=0)) + "\n")
    notes = arguments.out.with_name("methods-notes.md")
    if notes.is_file():
        page.append(notes.read_text(encoding="utf-8"))
    arguments.out.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
