"""Train a run's method in steps: from the method's parts to a job for the loop."""

import numpy as np
from numpy.typing import NDArray

from taskfit.experiments.classifier import ADAPTER, MODEL
from taskfit.experiments.run import Run
from taskfit.files import folder_atomic
from taskfit.methods.majority import target_matrix
from taskfit.methods.method import TrainedMethod
from taskfit.models import resolve_device
from taskfit.training import (
    Checkpoints,
    TrainingJob,
    TrainingLog,
    TrainingState,
    Validation,
    compile_pays,
    train,
)


def train_method(run: Run, method: TrainedMethod) -> tuple[TrainingState, int]:
    """Train a method on the run's examples and save its weights.

    Returns:
        Where training ended, and the number of weights trained.
    """
    settings = run.settings
    unlabeled = [] if method.needs_labels else run.data.unlabeled
    examples = unlabeled or run.data.train
    items = method.encode(examples)
    device = resolve_device(settings.model.device)
    use_compile = compile_pays(settings, len(items), run.folder, device)
    parameters = method.make_trainable()
    if use_compile:
        run.screen.note("compiling the layers; the first steps take longer")
        method.compile()
    run.memory.stage("adapter")
    log = TrainingLog(run.folder, tensorboard=settings.training.tensorboard, show=run.screen.record)
    for text in method.rendered(examples[:2]):
        run.screen.note(text)
    state = train(
        TrainingJob(
            model=method.module,
            parameters=parameters,
            objective=method.objective(),
            items=items,
            validate=(lambda: _validate(run, method)) if run.data.validation else None,
            settings=settings.training,
            seed=settings.seed,
            checkpoints=Checkpoints(run.folder / "checkpoints"),
            log=log,
            memory=run.memory,
            count_tokens=method.tokens_run,
            sampling=_sampling(run) if settings.method.sampling == "balanced" else None,
        )
    )
    log.close()
    method.weights_changed()
    run.memory.stage("training")
    with folder_atomic(
        run.folder / (MODEL if settings.adapter.weights == "full" else ADAPTER)
    ) as f:
        method.save_weights(f)
    return state, sum(p.numel() for p in parameters.values())


def _validate(run: Run, method: TrainedMethod) -> Validation:
    method.weights_changed()
    probabilities = method.probabilities(run.data.validation)
    evaluation = run.classifier.evaluate(run.data.validation, probabilities)
    metrics = {name: getattr(evaluation, name) for name in ("accuracy", "mcc", "macro_f1")}
    return Validation(evaluation.log_loss, metrics[run.data.task.metric], metrics)


def _sampling(run: Run) -> NDArray[np.float64]:
    """Return the probability of each training example that makes all classes equally frequent.

    An example with several labels, or shares of them, is drawn as its rarest label asks for.
    """
    targets = target_matrix(run.data.train, run.data.task.label_names)  # (N, L)
    counts = targets.sum(axis=0)
    wanted = np.divide(targets, counts, out=np.zeros_like(targets), where=counts > 0)
    per_example = wanted.max(axis=1) if run.data.task.multi_label else wanted.sum(axis=1)
    # Examples without any label are a class of their own.
    none = per_example == 0
    per_example[none] = 1 / max(1, none.sum())
    return np.asarray(per_example / per_example.sum())
