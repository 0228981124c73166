"""The first look: zero-shot, few-shot and what `fit` does by default, on real text, in minutes."""

from collections.abc import Callable
from pathlib import Path

from taskfit.compare.stale import set_aside
from taskfit.errors import CheckpointError
from taskfit.lock import only_one_at_a_time
from taskfit.models.load import LoadedModel, load_model
from taskfit.models.quantize import count_parameters
from taskfit.report.pages import comparison_picture, write_page, write_report
from taskfit.runs.bases import Base
from taskfit.runs.file_names import RESULT_FILE, SETTINGS_FILE
from taskfit.runs.fit import fit
from taskfit.runs.prepare import prepare_data
from taskfit.runs.records import RunResult, write_results_csv
from taskfit.runs.settle import as_settled
from taskfit.screen import Screen
from taskfit.settings import RunSettings
from taskfit.settings_file import load_run_settings, settings_differences, settings_from_dict

# A default fit takes as many steps for 64 labels; of these it makes more, in the same minutes.
NUM_TRAIN = 256
# Of each of four sets: accuracies are known to about .05, and reading them is a third of the time.
NUM_TEST = 200
FEW_SHOTS = 8
# The folder of the default fit, which `taskfit predict` may go on with.
FITTED = "fine_tuned"
# Called with the name of a stage and what came of it, in one sentence.
Tell = Callable[[str, str], None]


def quickstart(
    folder: Path, *, model: str, num_train: int = NUM_TRAIN, screen: Screen, tell: Tell
) -> list[RunResult]:
    """Run three methods on the offline sentiment set; write tables, plots and a report.

    Runs that are finished are kept, an interrupted one is resumed.

    Args:
        folder: Where to put `results.csv`, `report.html` and a run folder for each method.
        model: See `model.name`.
        num_train: Labelled examples for fine-tuning.
        screen: Where the progress of the runs is shown.
        tell: Where a sentence a stage is shown.

    Returns:
        The three results: zero-shot, few-shot, fine-tuned.

    Raises:
        CheckpointError: If the folder holds runs with other settings.
    """
    with only_one_at_a_time(folder):
        return _quickstart(folder, model, num_train, screen, tell)


def _quickstart(
    folder: Path, model: str, num_train: int, screen: Screen, tell: Tell
) -> list[RunResult]:
    runs = _runs(model, num_train)
    for subfolder, settings in runs.values():
        _check_same(folder / subfolder, settings)
    _tell_data(runs["fine-tuned"][1], tell)
    results = []
    loaded, known = None, dict[str, Base | None]()
    for name, (subfolder, settings) in runs.items():
        run_folder = folder / subfolder
        set_aside(run_folder, settings.resolved(), screen, known=known)
        if (run_folder / RESULT_FILE).is_file():
            results.append(RunResult.load(run_folder))
            tell(name, f"finished before; kept: {_how_good(results[-1])}")
            continue
        if loaded is None:
            loaded = load_model(settings.model, quantization=settings.adapter)
            _tell_model(loaded, tell)
        # One model serves all three: in-context learning leaves it as it is, and comes first.
        run = fit(
            settings,
            run_folder,
            resume=(run_folder / SETTINGS_FILE).is_file(),
            screen=screen,
            model=loaded,
            name=name,
            report=write_page,
        )
        results.append(run.result)
        tell(name, f"{_what(run.result)}: {_how_good(run.result)}")
    write_results_csv(folder / "results.csv", results)
    write_report(
        folder,
        results,
        title=f"Quickstart: {model} on short texts",
        notes=[
            f"Is a snippet positive or negative? Zero-shot sees an instruction only, few-shot "
            f"{FEW_SHOTS} labelled examples in its prompt (batch calibration), fine-tuned is what "
            f"`taskfit fit` does by default with {results[-1].num_train:,} labelled movie "
            "snippets: a LoRA adapter under a classification head, blended with probes. Tweets, "
            "products and editorials were never trained on."
        ],
        pictures=[comparison_picture(folder, results)],
    )
    return results


def _check_same(folder: Path, settings: RunSettings) -> None:
    """Refuse to keep a run, or to go on with one, that was asked for with other settings.

    Raises:
        CheckpointError: Naming what differs.
    """
    if not (folder / SETTINGS_FILE).is_file():
        return
    found = load_run_settings(folder / SETTINGS_FILE)
    changed = settings_differences(found, as_settled(settings.resolved(), found))
    if changed:
        raise CheckpointError(
            f"{folder.parent} holds a quickstart with other settings: {'; '.join(changed)}. Give "
            "another folder with --out, or delete that one."
        )


def _runs(model: str, num_train: int) -> dict[str, tuple[str, RunSettings]]:
    """Return folder and settings of each run by name, in order."""
    common: dict[str, dict[str, object]] = {
        "task": {"name": "sentiment"},
        # A table of so few labels is trained on whole, as `fit` would do with a file of them.
        "data": {"max_test": NUM_TEST, "num_train": num_train, "validation_fraction": 0.0},
        "model": {"name": model},
    }

    def settings(**method: object) -> RunSettings:
        return settings_from_dict({**common, "method": method})

    few = {"num_demonstrations": FEW_SHOTS, "calibration": "batch"}
    return {
        "zero-shot": ("zero_shot", settings(name="in_context", num_demonstrations=0)),
        "few-shot": ("few_shot", settings(name="in_context", **few)),
        "fine-tuned": (FITTED, settings(name="auto")),
    }


def _tell_data(settings: RunSettings, tell: Tell) -> None:
    data = prepare_data(settings)
    sets = ", ".join(f"{len(found):,} {name}" for name, found in data.evaluations.items())
    labels = " or ".join(data.task.label_names)
    tell("data", f"{len(data.train):,} movie snippets, {labels}; to answer: {sets}")


def _tell_model(loaded: LoadedModel, tell: Tell) -> None:
    millions = count_parameters(loaded.tree.model) / 1e6
    tell("model", f"{loaded.name}, {millions:,.0f} million parameters")


def _what(result: RunResult) -> str:
    if result.name == "zero-shot":
        return "the model is asked, without an example"
    if result.name == "few-shot":
        return f"asked with {result.num_demonstrations} labelled examples in the prompt"
    return f"trained on {result.num_train:,} labels"


def _how_good(result: RunResult) -> str:
    """Return the share of right answers on each set, beside a bag of words where it was fitted."""
    right = [f"{found.accuracy:.0%} of {name}" for name, found in result.evaluations.items()]
    said = f"{', '.join(right)} right ({result.duration_seconds:.0f} s)"
    first = next(iter(result.evaluations))
    rows = result.details.get("baselines", {}).get(first, [])
    words = [row["accuracy"] for row in rows if row["name"] == "tfidf"]
    if result.num_train and words:
        said += f"; a bag of words learns {words[0]:.0%} of {first} from the same labels"
    return said
