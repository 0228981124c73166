"""Fit one run: prepare data, load the model, train where the method trains, evaluate, report.

The run folder is filled in an order in which an interruption loses nothing: resolved settings
first, then metrics and checkpoints, then the weights, then the evaluations.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from peft import PeftModel

from taskfit.data import Example
from taskfit.errors import CheckpointError, DataError, SettingsError
from taskfit.evaluation import Evaluation
from taskfit.experiments.classifier import ADAPTER, MODEL, Classifier, FloatArray, Weights
from taskfit.experiments.prepare import PreparedData, prepare_data
from taskfit.experiments.records import RESULT_FILE, RunResult
from taskfit.experiments.report import HardExample, hardest, report_run
from taskfit.experiments.screen import Screen, SilentScreen
from taskfit.files import folder_atomic, write_json_atomic
from taskfit.methods import LabelWordLoss, apply_prior, content_free_prior, text_prior
from taskfit.models import (
    LoadedModel,
    add_adapter,
    load_model,
    resolve_device,
    save_weights,
    trainable_parameters,
    weight_bytes,
)
from taskfit.settings import RunSettings
from taskfit.settings_file import dump_settings, load_settings, settings_differences
from taskfit.training import (
    Checkpoints,
    MemoryAccount,
    TrainingJob,
    TrainingLog,
    TrainingState,
    Validation,
    compile_pays,
    train,
)

SETTINGS_FILE = "settings.yaml"
DATA_FILE = "data.json"


@dataclass(slots=True)
class Run:
    """A run under way.

    Attributes:
        settings: Its settings.
        folder: Its folder.
        data: Its examples.
        classifier: What it fits.
        memory: Its memory account.
        screen: What it shows.
        name: How tables call it.
        started: When it started (time.perf_counter).
    """

    settings: RunSettings
    folder: Path
    data: PreparedData
    classifier: Classifier
    memory: MemoryAccount
    screen: Screen
    name: str
    started: float


@dataclass(frozen=True, slots=True)
class FittedRun:
    """What `fit` gives back.

    Attributes:
        result: The contents of `result.json`.
        classifier: Ready for prediction.
    """

    result: RunResult
    classifier: Classifier


def fit(
    settings: RunSettings,
    folder: Path,
    *,
    resume: bool = False,
    screen: Screen | None = None,
    model: LoadedModel | None = None,
    name: str | None = None,
) -> FittedRun:
    """Fit one run into a folder.

    Args:
        settings: All settings.
        folder: The run's folder; must not hold another run.
        resume: Continue the interrupted run in the folder.
        screen: Where progress is shown.
        model: The base model, if the caller has loaded it already; an adapter stays in it.
        name: How tables call the run; None: the method's name.

    Raises:
        TaskfitError: If settings, data, model or folder do not allow it.
    """
    screen = screen or SilentScreen()
    started = time.perf_counter()
    settings = settings.resolved()
    _open_folder(settings, folder, resume=resume)
    data = prepare_data(settings)
    _check_fingerprint(folder, data, resume=resume)
    _tell_about_data(data, screen)
    memory = MemoryAccount(resolve_device(settings.model.device))
    if model is None:
        model = load_model(settings.model)
        memory.stage("model")
    else:
        memory.charge("model", weight_bytes(model.tree.model))
    classifier = Classifier(
        data.task,
        model,
        data.demonstrations,
        max_length=settings.model.max_length,
        token_budget=settings.training.score_token_budget,
    )
    label = name or settings.method.name
    run = Run(settings, folder, data, classifier, memory, screen, label, started)
    _rehearse_scoring(run)
    state = TrainingState()
    weights: Weights = "none"
    if settings.method.name == "in_context":
        _calibrate(run)
    else:
        state = _train_label_words(run)
        weights = settings.adapter.weights
    classifier.save(folder, weights=weights, extra={"method": settings.method.name, "name": label})
    evaluations, hard = _evaluate_all(run)
    model_parameters = list(model.tree.model.parameters())
    result = RunResult(
        name=label,
        method=settings.method.name,
        weights=weights,
        model=model.name,
        task=f"{data.task.name} v{data.task.version}",
        num_train=len(data.train) if weights != "none" else 0,
        num_demonstrations=len(data.demonstrations),
        seed=settings.seed,
        evaluations=evaluations,
        duration_seconds=time.perf_counter() - started,
        training_seconds=state.seconds,
        peak_memory_bytes=sum(memory.by_stage.values()),
        memory_by_stage=memory.by_stage,
        tokens={"unique": state.num_tokens, "padded": state.num_padded_tokens},
        num_parameters=sum(p.numel() for p in model_parameters),
        num_trainable=sum(p.numel() for p in model_parameters if p.requires_grad),
        best_step=state.best_step,
    )
    result.save(folder)
    report_run(folder, result, hard)
    Checkpoints(folder / "checkpoints").remove()
    return FittedRun(result, classifier)


def _open_folder(settings: RunSettings, folder: Path, *, resume: bool) -> None:
    """Write the settings into a new folder, or check them against those of the run to resume.

    Raises:
        CheckpointError: If the folder holds another run, or the settings differ.
    """
    path = folder / SETTINGS_FILE
    if resume:
        if not path.is_file():
            raise CheckpointError(
                f"{folder} holds no run to resume: no {SETTINGS_FILE} in it. Start one with "
                f"`taskfit fit --out {folder}`."
            )
        if (folder / RESULT_FILE).is_file():
            raise CheckpointError(
                f"The run in {folder} is finished; its result is in {RESULT_FILE}."
            )
        changed = settings_differences(load_settings(path), settings)
        if changed:
            raise CheckpointError(
                f"The run in {folder} was started with other settings: {'; '.join(changed)}. "
                "Resume it without these, or start a new run in another folder."
            )
        return
    # A folder in which a run failed before its first checkpoint may be used again.
    if (folder / RESULT_FILE).is_file() or any((folder / "checkpoints").glob("step-*")):
        raise CheckpointError(
            f"{folder} holds a run already. Continue it with `taskfit fit --resume {folder}`, or "
            "give another folder with --out."
        )
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder with --out.")
    folder.mkdir(parents=True, exist_ok=True)
    dump_settings(settings, path)


def _check_fingerprint(folder: Path, data: PreparedData, *, resume: bool) -> None:
    """Record which data the run sees, or check that a resumed one sees the same.

    Raises:
        CheckpointError: Naming the sets that changed.
    """
    path = folder / DATA_FILE
    if resume and path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        names = before.keys() | data.fingerprint.keys()
        changed = sorted(n for n in names if before.get(n) != data.fingerprint.get(n))
        if changed:
            raise CheckpointError(
                f"The data changed since the run in {folder} was started: {', '.join(changed)}. "
                "Put the files back as they were, or start a new run in another folder."
            )
    write_json_atomic(path, data.fingerprint)


def _tell_about_data(data: PreparedData, screen: Screen) -> None:
    sets = ", ".join(f"{name} {len(found):,}" for name, found in data.evaluations.items())
    screen.note(
        f"task {data.task.name}: {len(data.train):,} training, {len(data.validation):,} validation "
        f"examples, {len(data.demonstrations)} demonstrations; test sets: {sets or 'none'}"
    )
    overlap = data.overlap
    if overlap is not None and overlap.num_dropped:
        where = ", ".join(f"{name} {count}" for name, count in overlap.dropped_by_set.items())
        screen.note(
            f"removed {overlap.num_dropped} training examples whose text also stands in: {where}"
        )
    if overlap is not None and overlap.num_conflicts:
        screen.note(
            f"{overlap.num_conflicts} training texts stand there with different labels "
            f"(kept; first: {', '.join(overlap.conflict_ids[:2])})"
        )


def _rehearse_scoring(run: Run) -> None:
    """Score the longest few examples, so that what will fail fails now."""
    sets = [*run.data.evaluations.values(), run.data.validation, run.data.train]
    longest = sorted(
        (example for examples in sets for example in examples),
        key=lambda e: -sum(map(len, e.texts.values())),
    )[:8]
    if not longest:
        raise SettingsError("There is nothing to train on and nothing to evaluate.")
    run.classifier.probabilities(longest)
    run.memory.stage("forward")


def _calibrate(run: Run) -> None:
    """Measure the prior that in-context scores are divided by."""
    how = run.settings.method.calibration
    scorer = run.classifier.scorer
    if how == "contextual":
        run.classifier.log_prior = content_free_prior(scorer)
    elif how == "batch":
        texts = [*run.data.train, *run.data.validation][: run.settings.data.max_validation]
        if not texts:
            raise DataError(
                "method.calibration=batch needs training texts (their labels are not used). Give "
                "--data, or use method.calibration=contextual."
            )
        run.classifier.log_prior = text_prior(scorer, texts)


def _train_label_words(run: Run) -> TrainingState:
    """Train the label words in their prompt; save the weights."""
    settings, model = run.settings, run.classifier.model
    if settings.method.calibration != "none":
        raise SettingsError(
            f"method.calibration={settings.method.calibration} is for in_context; a trained model "
            "needs none. Leave it out."
        )
    if not run.data.train:
        raise DataError("label_words needs training examples: give --data, or a built-in task.")
    items = run.classifier.encoder.encode(run.data.train)
    use_compile = compile_pays(settings, items, run.folder, model.tree.device)
    adapter = add_adapter(model.tree.model, settings.adapter, seed=settings.seed)
    if use_compile:
        run.screen.note("compiling the decoder layers; the first steps take longer")
        model.tree.compile_layers()
    run.memory.stage("adapter")
    log = TrainingLog(run.folder, tensorboard=settings.training.tensorboard, show=run.screen.record)
    for text in rendered_examples(run.classifier, run.data.train[:2]):
        run.screen.note(text)
    job = TrainingJob(
        model=model.tree.model,
        parameters=trainable_parameters(model.tree.model),
        objective=LabelWordLoss(
            model.tree, run.classifier.scorer.label_of_candidate, over=settings.method.loss
        ),
        items=items,
        validate=(lambda: _validate(run)) if run.data.validation else None,
        settings=settings.training,
        seed=settings.seed,
        checkpoints=Checkpoints(run.folder / "checkpoints"),
        log=log,
        memory=run.memory,
        count_tokens=lambda: model.tree.num_tokens_run,
    )
    state = train(job)
    log.close()
    run.classifier.scorer.forget_prefix()
    run.memory.stage("training")
    _save_weights(run, adapter)
    return state


def rendered_examples(classifier: Classifier, examples: Sequence[Example]) -> list[str]:
    """Return prompts with their supervised tokens between guillemets, to be looked at."""
    texts = []
    decode = classifier.model.tokenizer.decode
    for item in classifier.encoder.encode(examples):
        owners = classifier.scorer.label_of_candidate
        gold = next(c for c, label in enumerate(owners) if label == item.label_index)
        tokens = "".join(f"«{decode([int(i)])}»" for i in item.completions[gold])
        texts.append(f"{item.id}: {decode(item.prompt_ids.tolist())}{tokens}")
    return texts


def _validate(run: Run) -> Validation:
    scorer = run.classifier.scorer
    scorer.forget_prefix()  # the weights have changed since
    probabilities = apply_prior(scorer.log_probs(run.data.validation), None)
    evaluation = run.classifier.evaluate(run.data.validation, probabilities)
    metrics = {name: getattr(evaluation, name) for name in ("accuracy", "mcc", "macro_f1")}
    return Validation(evaluation.log_loss, metrics[run.data.task.metric], metrics)


def _save_weights(run: Run, adapter: PeftModel | None) -> None:
    model = run.classifier.model
    with folder_atomic(run.folder / (MODEL if adapter is None else ADAPTER)) as scratch:
        save_weights(model.tree.model, adapter, model.tokenizer, scratch)


def _evaluate_all(run: Run) -> tuple[dict[str, Evaluation], list[HardExample]]:
    """Evaluate every set, write its predictions; the validation set serves where there is none."""
    sets = run.data.evaluations or (
        {"validation": run.data.validation} if run.data.validation else {}
    )
    if not sets:
        run.screen.note(
            "no evaluation set: give one with --test NAME=FILE, or raise data.validation_fraction"
        )
    evaluations: dict[str, Evaluation] = {}
    hard: list[HardExample] = []
    for name, examples in sets.items():
        with run.screen.progress(f"evaluating {name}", len(examples)) as advance:
            probabilities = run.classifier.probabilities(examples, advance=advance)
        evaluations[name] = run.classifier.evaluate(examples, probabilities)
        write_predictions(run.folder, name, examples, probabilities, run.data.task.label_names)
        hard += hardest(name, examples, probabilities, run.data.task.label_names)
    return evaluations, hard


def write_predictions(
    folder: Path,
    name: str,
    examples: Sequence[Example],
    probabilities: FloatArray,
    labels: Sequence[str],
) -> None:
    """Write `predictions/NAME.parquet`: id, texts, gold, predicted, a column p_LABEL each."""
    table = prediction_table(examples, probabilities, labels)
    (folder / "predictions").mkdir(exist_ok=True)
    table.to_parquet(folder / "predictions" / f"{name}.parquet", index=False)


def prediction_table(
    examples: Sequence[Example], probabilities: FloatArray, labels: Sequence[str]
) -> pd.DataFrame:
    """Return one row an example: id, texts, gold where known, predicted, p_LABEL each."""
    columns: dict[str, Sequence[object]] = {"id": [example.id for example in examples]}
    for column in examples[0].texts:
        columns[column] = [example.texts[column] for example in examples]
    if any(example.label is not None for example in examples):
        columns["gold"] = [example.label for example in examples]
    columns["predicted"] = [labels[i] for i in np.argmax(probabilities, axis=1)]
    for index, label in enumerate(labels):
        columns[f"p_{label}"] = probabilities[:, index].tolist()
    return pd.DataFrame(columns)
