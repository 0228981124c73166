import importlib

import pandas as pd
import pytest

from taskfit.errors import DataError
from taskfit.models.packaged import packaged_folder
from taskfit.settings_file import dump_settings

STAGES = ["data", "model", "zero-shot", "few-shot", "fine-tuned"]
SETS = {"movies", "tweets", "products", "editorials"}


def stages(out: str) -> list[str]:
    """Return the first words of the lines before the table."""
    return [line.split()[0] for line in out.split("\n\n")[0].splitlines()]


@pytest.mark.model
@pytest.mark.pictures
def test_quickstart_tells_a_line_a_stage_and_leaves_its_results(
    shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try:
        packaged_folder("smollm2-135m")
        packaged_folder("minilm")
    except DataError as error:
        pytest.skip(f"the packaged models cannot be had: {error}")
    module = importlib.import_module("taskfit.compare.quickstart")
    monkeypatch.setattr(module, "NUM_TEST", 6)
    given = ("quickstart", "--out", "quick", "--num-train", "10")
    code, out, err = shell(*given)
    assert code == 0, err
    # Neither notes of single runs nor what libraries have to say.
    assert stages(out) == STAGES
    assert err == ""
    assert "taskfit fit yours.csv" in out
    folder = shell.folder / "quick"
    table = pd.read_csv(folder / "results.csv").set_index(["name", "evaluation"])
    assert set(table.index) == {(name, each) for name in STAGES[2:] for each in SETS}
    assert set(table.loc["fine-tuned"]["method"]) == {"head"}
    assert f"{table.loc[('few-shot', 'tweets'), 'accuracy']:.0%} of tweets" in out
    assert (folder / "report.html").stat().st_size > 5_000
    assert (folder / module.FITTED / "adapter" / "adapter_model.safetensors").is_file()
    # A second call keeps what is finished, and needs no model.
    code, out, _ = shell(*given)
    assert code == 0
    assert stages(out) == ["data", *STAGES[2:]]
    assert out.count("finished before; kept") == 3


def test_a_folder_of_another_quickstart_is_refused_before_any_work(shell) -> None:
    module = importlib.import_module("taskfit.compare.quickstart")
    subfolder, settings = module._runs("tiny", 10)["few-shot"]
    folder = shell.folder / "quick" / subfolder
    folder.mkdir(parents=True)
    dump_settings(settings.resolved(), folder / "settings.yaml")
    module._check_same(folder, settings)
    for other, difference in (
        (("--num-train", "12", "--model", "tiny"), "data.num_train: 10 -> 12"),
        (("--num-train", "10", "--model", "other"), "model.name: tiny -> other"),
    ):
        code, out, err = shell("quickstart", "--out", "quick", *other)
        assert code == 2
        assert difference in err
        assert "--out" in err
        assert out == ""
