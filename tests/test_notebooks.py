"""The notebooks run on any table and model; what is stored of them is whole and current."""

import re
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbformat import NotebookNode

import tiny

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))

import execute  # noqa: E402 - the folder of the notebooks is no package

PARAMETERS = {
    "1-from-labels-to-a-model": """
TASK, MODEL = None, "tiny"
DATA = {"train": "train.csv", "tests": {"new": "test.csv"}}
NUM_TRAIN, NUM_TEST, NUM_TRIAL, SHOTS, DRAWS = 32, 12, 8, [2, 4], 2
EPOCHS, BATCH_SIZE, LEARNING_RATE, SEED = 2, 8, 1e-2, 0
MORE = ["model.dtype=float32", "model.device=cpu"]
MINE = {"The dog was happy at home.": "good", "The song was cold.": "bad"}
FOLDER = "runs/one"
""",
    "2-which-method": """
BASE = {
    "data": {"train": "train.csv"},
    "model": {"name": "tiny", "dtype": "float32", "device": "cpu"},
    "training": {"epochs": 1, "batch_size": 8, "tensorboard": False},
}
METHODS = {
    "tf-idf": {"method": {"name": "tfidf"}},
    "zero-shot": {"method": {"name": "in_context", "num_demonstrations": 0}},
    "head": {"method": {"name": "head"}},
}
SIZES, SEEDS, FOLDER = [8, 16], 2, "runs/two"
""",
}
# Names that have digits in them.
NAMES = re.compile(r"`[^`]*`|\]\([^)]*\)|^    .*$", re.MULTILINE)


@pytest.fixture(params=execute.NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def test_it_runs_on_any_table_and_model(
    path: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the parameter cell is another. Cells run here: a kernel takes seconds to import."""
    monkeypatch.chdir(tmp_path)
    tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(60))
    tiny.write_csv(tmp_path / "test.csv", tiny.toy_examples(12, offset=100))
    (tmp_path / "tiny").symlink_to(model_folder)
    num_figures, namespace = 0, {"__name__": "__main__"}
    with mpl.rc_context({"backend": "agg"}), pd.option_context("display.precision", 6):
        for cell in execute.code_cells(execute.read(path)):
            replaced = "parameters" in cell.metadata.get("tags", ())
            source = PARAMETERS[path.stem] if replaced else cell.source
            exec(compile(source, f"{path.stem}, cell {cell.id}", "exec"), namespace)
            figures = [plt.figure(number) for number in plt.get_fignums()]
            for figure in figures:
                figure.canvas.draw()  # what cannot be drawn fails here
            # A cell that draws has words for those who do not see it, and no other has.
            assert bool(figures) == bool(cell.metadata.get("alt"))
            num_figures += len(figures)
            plt.close("all")
    assert num_figures > 2
    assert any((tmp_path / "runs").rglob("result.json"))


def test_every_cell_is_stored_with_what_it_showed(path: Path) -> None:
    """Run `python notebooks/execute.py` after a change of code."""
    cells = execute.code_cells(execute.read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not any(output.output_type == "error" for output in cell.outputs)
        assert bool(cell.metadata.get("alt")) == any(
            "image/png" in output.get("data", {}) for output in cell.outputs
        )
        if "texts" in cell.metadata.get("tags", ()):
            assert [output.text for output in cell.outputs] == [execute.NOT_STORED]
    shown = [cell for cell in cells if cell.outputs]
    assert len(shown) > len(cells) / 2


def test_a_page_is_its_notebook(path: Path) -> None:
    """Run `python notebooks/execute.py --pages` after a change of prose."""
    text, pictures = execute.page(execute.read(path), path.stem)
    assert (execute.PAGES / f"{path.stem}.md").read_text(encoding="utf-8") == text
    stored = (execute.PAGES / path.stem).glob("*.png")
    assert {f"{path.stem}/{p.name}": p.read_bytes() for p in stored} == pictures
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("http") or (execute.PAGES / target).exists(), target


def test_prose_says_no_number_that_no_cell_computes(path: Path) -> None:
    for cell in execute.read(path).cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"\d", NAMES.sub("", cell.source)), cell.id


def test_what_belongs_to_a_machine_or_to_others_is_not_stored() -> None:
    new, secret = nbformat.v4.new_output, "somebody else wrote this sentence"
    cell = nbformat.v4.new_code_cell("print()", metadata={"execution": {"started": "now"}})
    table = "<style scoped>td {}</style>\n<table></table>"
    cell.outputs = [
        new("stream", name="stderr", text="100%|####| /home/me"),
        new("display_data", data={"text/html": table}),
    ]
    texts = nbformat.v4.new_code_cell("print()", metadata={"tags": ["texts"]})
    texts.outputs = [new("stream", name="stdout", text=secret)]
    stored = execute.cleaned(nbformat.v4.new_notebook(cells=[cell, texts]))
    assert [output.get("data") for output in stored.cells[0].outputs] == [
        {"text/html": "<table></table>"}
    ]
    assert stored.cells[0].metadata == {}
    assert stored.cells[1].outputs[0].text == execute.NOT_STORED
    execute.check(stored, paths=["/home/me"], texts=[secret])


@pytest.mark.parametrize("text", ["in /home/me/runs", "somebody else wrote this sentence"])
def test_an_output_with_a_path_or_a_text_of_others_is_refused(text: str) -> None:
    cell = nbformat.v4.new_code_cell("print()")
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=f"see: {text}\n")]
    notebook: NotebookNode = nbformat.v4.new_notebook(cells=[cell])
    with pytest.raises(ValueError, match=r"path|texts"):
        execute.check(notebook, paths=["/home/me"], texts=["somebody else wrote this sentence"])


def test_tables_of_a_page_are_markdown() -> None:
    table = pd.DataFrame(
        {"size": [8, 16], "name": ["a|b", "c"]}, index=pd.Index(["p", "q"], name="m")
    )
    words = execute.markdown_table(table.to_html()).split("\n")
    assert [re.sub(r"\s+", "", line) for line in words if line] == [
        "|m|size|name|",
        "|:--|--:|:--|",
        "|p|8|a\\|b|",
        "|q|16|c|",
    ]
