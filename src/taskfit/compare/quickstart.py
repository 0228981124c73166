"""The first look: zero-shot, few-shot and fine-tuned on real text, in minutes on two cores."""

from pathlib import Path

from taskfit.models.load import load_model
from taskfit.report.pages import comparison_picture, write_page, write_report
from taskfit.runs.fit import fit
from taskfit.runs.records import RESULT_FILE, SETTINGS_FILE, RunResult, write_results_csv
from taskfit.screen import Screen
from taskfit.settings import RunSettings
from taskfit.settings_file import settings_from_dict

NUM_TRAIN = 1000
NUM_TEST = 400
FEW_SHOTS = 8


def quickstart(
    folder: Path, *, model: str, num_train: int = NUM_TRAIN, screen: Screen
) -> list[RunResult]:
    """Run three methods on the offline sentiment set; write tables, plots and a report.

    Runs that are finished are kept, an interrupted one is resumed.

    Args:
        folder: Where to put `results.csv`, `report.html` and a run folder for each method.
        model: See `model.name`.
        num_train: Labelled examples for fine-tuning.
        screen: Where progress is shown.

    Returns:
        The three results: zero-shot, few-shot, fine-tuned.
    """
    common: dict[str, dict[str, object]] = {
        "task": {"name": "sentiment"},
        "data": {"max_test": NUM_TEST, "num_train": num_train, "max_validation": 200},
        "model": {"name": model},
    }
    runs: dict[str, tuple[str, RunSettings]] = {
        "zero-shot": ("zero_shot", _settings(common, name="in_context", num_demonstrations=0)),
        "few-shot": (
            "few_shot",
            _settings(common, name="in_context", num_demonstrations=FEW_SHOTS, calibration="batch"),
        ),
        "fine-tuned": ("label_words", _settings(common, name="label_words")),
    }
    results = []
    loaded = None
    for name, (subfolder, settings) in runs.items():
        run_folder = folder / subfolder
        screen.note(f"[{name}]")
        if (run_folder / RESULT_FILE).is_file():
            screen.note("finished before; kept")
            results.append(RunResult.load(run_folder))
            continue
        # One model serves all three: in-context learning leaves it as it is, and comes first.
        loaded = loaded or load_model(settings.model, quantization=settings.adapter)
        resume = (run_folder / SETTINGS_FILE).is_file()
        run = fit(
            settings,
            run_folder,
            resume=resume,
            screen=screen,
            model=loaded,
            name=name,
            report=write_page,
        )
        results.append(run.result)
    write_results_csv(folder / "results.csv", results)
    write_report(
        folder,
        results,
        title=f"Quickstart: {model} on short texts",
        notes=[
            f"Is a snippet positive or negative? Zero-shot sees an instruction only, few-shot "
            f"{FEW_SHOTS} labelled examples in its prompt (batch calibration), fine-tuned "
            f"trains a LoRA adapter on {results[-1].num_train:,} labelled movie snippets. Tweets, "
            "products and editorials were never trained on."
        ],
        pictures=[comparison_picture(folder, results)],
    )
    return results


def _settings(common: dict[str, dict[str, object]], **method: object) -> RunSettings:
    return settings_from_dict({**common, "method": method})
