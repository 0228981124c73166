import importlib

import pandas as pd
import pytest

from taskfit.errors import DataError
from taskfit.models.packaged import packaged_folder


@pytest.mark.model
def test_quickstart_learns_from_real_text_and_leaves_its_results(
    shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try:
        packaged_folder("smollm2-135m")
    except DataError as error:
        pytest.skip(f"the packaged model cannot be had: {error}")
    module = importlib.import_module("taskfit.compare.quickstart")
    monkeypatch.setattr(module, "NUM_TEST", 24)
    code, out, err = shell("quickstart", "--out", "quick", "--num-train", "128")
    assert code == 0, err
    assert "report.html" in out
    folder = shell.folder / "quick"
    table = pd.read_csv(folder / "results.csv")
    assert sorted(table["name"].unique()) == ["few-shot", "fine-tuned", "zero-shot"]
    assert set(table["evaluation"]) == {"movies", "tweets", "products", "editorials"}
    assert len(table) == 12
    by_name = table[table["evaluation"] == "movies"].set_index("name")["accuracy"]
    assert by_name["fine-tuned"] > 0.7
    assert (folder / "report.html").stat().st_size > 20_000
    assert (folder / "label_words" / "adapter" / "adapter_model.safetensors").is_file()
    # A second call keeps what is finished.
    code, out, _ = shell("quickstart", "--out", "quick", "--num-train", "128")
    assert code == 0
    assert out.count("finished before; kept") == 3
