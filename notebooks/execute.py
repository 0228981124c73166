"""Run the notebooks, store them with outputs, and write them as pages of `docs/notebooks`.

    python notebooks/execute.py            # all of them, minutes on two cores
    python notebooks/execute.py 1          # those whose names start with 1
    python notebooks/execute.py --pages    # nothing runs: pages from what is stored

Each runs in a fresh folder. What is stored is what stays the same elsewhere: no progress bars, no
times of cells, no path of this machine. Cells tagged `texts` show texts of the data set, which
belong to others: their outputs are not stored, and no output may hold such a text.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
PAGES = HERE.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))
NOT_STORED = "(Texts of the data set. Running the cell shows them; they are not stored.)\n"
SECONDS_PER_CELL = 1800
# A shorter text of a data set may stand in an output by chance.
FEWEST_CHARACTERS = 20
STYLE = re.compile(r"<style.*?</style>\s*", re.DOTALL)
NUMBER = re.compile(r"[-+\d.,]+(e[-+]\d+)?%?|NaN|")
PICTURE = re.compile(r"!\[png\]\((?P<file>[^)]*?(?P<index>\d+)_\d+\.png)\)")


def read(path: Path) -> NotebookNode:
    """Return a stored notebook."""
    return nbformat.read(path, as_version=4)


def execute(notebook: NotebookNode) -> NotebookNode:
    """Run all cells in a fresh folder and return what is to be stored.

    Raises:
        CellExecutionError: If a cell fails.
        ValueError: If an output holds a path of this machine, or a text of the data set.
    """
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=SECONDS_PER_CELL,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        ).execute()
        stored = cleaned(notebook)
        check(stored, paths=[folder, tempfile.gettempdir(), str(Path.home()), str(HERE.parent)])
    return stored


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook without what belongs to this machine, or to others."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        cell.execution_count = number
        cell.metadata.pop("execution", None)
        if "texts" in cell.metadata.get("tags", ()):
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=NOT_STORED)]
            continue
        # Warnings and progress bars.
        cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
            if "text/html" in output.get("data", {}):
                output.data["text/html"] = STYLE.sub("", output.data["text/html"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the cells of code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook: NotebookNode) -> str:
    """Return the words of all outputs, pictures left out."""
    found = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            found += [output.get("text", ""), *(v for k, v in data.items() if "image" not in k)]
    return "\n".join(map(str, found))


def check(notebook: NotebookNode, *, paths: Iterable[str], texts: Iterable[str] = ()) -> None:
    """Raise if an output holds one of these.

    Raises:
        ValueError: Saying which.
    """
    words = shown(notebook)
    for path in paths:
        if path in words:
            raise ValueError(f"An output holds the path {path}; print names relative to a folder.")
    for text in texts:
        if len(text) >= FEWEST_CHARACTERS and text in words:
            raise ValueError(
                f"An output holds a text of the data set ({text[:FEWEST_CHARACTERS]}...). Tag the "
                "cell `texts`, or show none."
            )


def texts_of(name: str) -> list[str]:
    """Return all texts of a built-in data set."""
    from taskfit.data import load_builtin

    data = load_builtin(name, folder=None)
    sets = (data.train, *data.evaluations.values())
    return [text for found in sets for example in found for text in example.texts.values()]


def page(notebook: NotebookNode, name: str) -> tuple[str, dict[str, bytes]]:
    """Return a stored notebook as a page in Markdown, and its pictures by path beside the page.

    Args:
        notebook: With outputs.
        name: The notebook's name without ending; pictures lie in a folder of this name.
    """
    notebook = nbformat.from_dict(notebook)  # a copy
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            if "text/html" in data:
                data["text/markdown"] = markdown_table(data.pop("text/html"))
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, resources={"output_files_dir": name, "unique_key": "cell"}
    )
    alts = [cell.metadata.get("alt", "") for cell in notebook.cells]
    text = PICTURE.sub(lambda m: f"![{alts[int(m['index'])]}]({m['file']})", text)
    # The page lies one folder deeper than the notebook.
    text = text.replace("](../", "](../../").replace(".ipynb)", ".md)")
    note = (
        f"*[The notebook](../../notebooks/{name}.ipynb) as a page, made by "
        "`python notebooks/execute.py`.*"
    )
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    # Of empty lines between outputs one is enough; code keeps its own.
    parts = lines.split("```")
    parts[::2] = [re.sub(r"\n{3,}", "\n\n", part) for part in parts[::2]]
    return f"{'```'.join(parts)}\n\n{note}\n", resources.get("outputs", {})


def markdown_table(html: str) -> str:
    """Return a data frame's table in Markdown, numbers to the right."""
    table = BeautifulSoup(html, "html.parser")
    head, *rows = [
        [cell.get_text().replace("|", "\\|").strip() for cell in row.find_all(["th", "td"])]
        for row in table.find_all("tr")
    ]
    if rows and not any(rows[0][1:]):  # the name of the index has a row of its own
        head[0], *_ = rows.pop(0)
    columns = zip(*rows, strict=True)
    ruler = ["--:" if all(map(NUMBER.fullmatch, column)) else ":--" for column in columns]
    return "\n" + "\n".join("| " + " | ".join(row) + " |" for row in [head, ruler, *rows])


def write_page(path: Path) -> None:
    """Write the page of a stored notebook and its pictures; those of before go."""
    text, pictures = page(read(path), path.stem)
    folder = PAGES / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    (PAGES / f"{path.stem}.md").write_text(text, encoding="utf-8")
    for file, content in pictures.items():
        (PAGES / file).write_bytes(content)


def main(arguments: Sequence[str]) -> None:
    """Execute what is asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", help="how their names start; default: all")
    parser.add_argument("--pages", action="store_true", help="only write pages, run nothing")
    chosen = parser.parse_args(arguments)
    for path in NOTEBOOKS:
        if chosen.names and not path.name.startswith(tuple(chosen.names)):
            continue
        if not chosen.pages:
            stored = execute(read(path))
            check(stored, paths=(), texts=texts_of("sentiment"))
            nbformat.write(stored, path)
        write_page(path)


if __name__ == "__main__":
    main(sys.argv[1:])
