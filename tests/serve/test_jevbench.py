"""JevBench against a live server: every answer is read, and questions of a request are alone."""

import json
import shutil
from pathlib import Path

import jevbench
import pytest

from conftest import serving
from taskfit.serve.engine import load_engine


@pytest.fixture
def long_model(model_folder: Path, tmp_path: Path) -> str:
    """The tiny model with room for a customer's letter."""
    folder = tmp_path / "long"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return str(folder)


@pytest.mark.filterwarnings("default::DeprecationWarning")  # jevbench's own are no matter of ours
def test_questions_are_answered_alike_alone_and_in_any_company(long_model: str) -> None:
    with serving(lambda: load_engine({}, base=long_model, device="cpu")) as client:
        url = f"{client.base_url}/v1/systemone"
        model = jevbench.systemone(url, model=long_model)
        try:
            assert set(jevbench.check(model)["questions"]) == {"choice", "noul", "score"}
            report = jevbench.evaluate(
                model, suite="examples", dimensions=["BAT"], cache=None, bootstrap=0
            )
        finally:
            model.client.close()
    assert not report.errors
    isolation = report.result["outcomes"]
    assert {outcome["relation"] for outcome in isolation} == {
        relation["name"] for relation in jevbench.list_relations(dimension="BAT")
    }
    assert max(outcome["deviation"] for outcome in isolation) < 1e-5
    assert report.dimensions["BAT"] == 1.0
