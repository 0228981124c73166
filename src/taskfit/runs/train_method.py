"""Train a run's method in steps: from the method's parts to a job for the loop."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskfit.files import folder_atomic
from taskfit.methods.method import Trainable, TrainedMethod
from taskfit.methods.objective import Item, Objective
from taskfit.methods.targets import target_matrix
from taskfit.models.causal_model import CausalModel
from taskfit.models.compile_cache import note_compiled
from taskfit.models.evaluation_mode import evaluation_mode
from taskfit.models.load import resolve_device
from taskfit.models.out_of_memory import is_out_of_memory
from taskfit.runs.kind import RunKind
from taskfit.runs.run import Run
from taskfit.runs.saved import ADAPTER, MODEL
from taskfit.stats import METRICS, Evaluation
from taskfit.tasks.questions import Questionnaire
from taskfit.training.checkpoint import Checkpoints, TrainingState
from taskfit.training.compiling import compile_key, compile_pays
from taskfit.training.distributed import divided, is_main, num_processes, on_main
from taskfit.training.length import sees_texts_again
from taskfit.training.log import TrainingLog
from taskfit.training.loop import TOKEN_BUDGET, TrainingJob, Validation, train
from taskfit.training.sharding import ShardedModel
from taskfit.training.trackers import Trackers, open_trackers

AnyRun = Run | RunKind[Any]


class NoCheckpoints(Checkpoints):
    """Saves nothing, for a training of which only the record is of use."""

    def save(self, state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
        """Save nothing."""

    def save_best(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Save nothing."""


def train_method(
    run: Run, method: TrainedMethod, *, trackers: Trackers | None = None, save: bool = True
) -> tuple[TrainingState, int]:
    """Train a method on the run's examples and save its weights; it then scores as a loaded run.

    Args:
        run: The run.
        method: Its method.
        trackers: As for `train_items`.
        save: As for `train_items`.

    Returns:
        Where training ended, and the number of weights trained.
    """
    unlabeled = [] if method.needs_labels else run.data.unlabeled
    examples = unlabeled or run.data.train
    found = train_items(
        run,
        method,
        method.encode(examples),
        objective=method.objective,
        rendered=lambda: method.rendered(examples[:1]),
        validate=(lambda: _validate(run, method)) if run.data.validation else None,
        sampling=_sampling(run) if method.settings.sampling == "balanced" else None,
        trackers=trackers,
        save=save,
    )
    if method.tree is not None:
        method.tree.prepare_scoring()
    return found


def train_items(
    run: AnyRun,
    method: Trainable,
    items: Sequence[Item],
    *,
    objective: Callable[[], Objective[Any]],
    rendered: Callable[[], Sequence[str]],
    validate: Callable[[], Validation] | None,
    sampling: NDArray[np.float64] | None = None,
    trackers: Trackers | None = None,
    save: bool = True,
    validates_start: bool = True,
) -> tuple[TrainingState, int]:
    """Train on encoded items and save the weights; see `TrainingJob`.

    Args:
        run: Settings, folder, memory account and screen.
        method: Whose weights are trained.
        items: Encoded training examples.
        objective: Returns the loss, once the weights are trainable.
        rendered: Returns examples to show before the first step.
        validate: Scores the validation set; None without one.
        sampling: Probability of each item at each draw, (N,); None: each once an epoch.
        trackers: Get every record; None: those of the settings, opened for this training alone.
        save: Whether checkpoints and weights are written; without them the settings must have
            `training.keep=last`.
        validates_start: Whether the weights before the first step are validated, too.

    Returns:
        Where training ended, and the number of weights trained.
    """
    settings = run.settings
    shards = settings.training.sharding == "full" and num_processes() > 1
    parameters = method.make_trainable()
    _tell_stock_training(run, method.tree)
    layers = compile_key(settings, method.tree)
    use_compile = not shards and _compiles(run, method, len(items), layers)
    if use_compile:
        run.screen.note("compiling the layers; the first steps take longer")
        method.compile()
    run.memory.stage("adapter")
    for text in rendered():
        run.screen.note(text)
    loss = objective()
    # After the objective, which may have copied the model for a frozen teacher.
    sharded = ShardedModel(method.module) if shards else None
    tree = method.tree
    if sharded is not None and tree is not None:
        # Its layers are gathered one by one as the whole model runs, so it is not cut.
        tree.freeze_below(0)
        tree.end_training()
        tree.lean.forget()
    if tree is not None and (tree.first_trained == 0 or settings.adapter.cache_gigabytes is None):
        tree = None
    if sharded is not None:
        parameters = sharded.parameters_like(parameters)
    checkpoints = (Checkpoints if save else NoCheckpoints)(run.folder / "checkpoints")
    with ExitStack() as stack:
        if trackers is None:
            trackers = stack.enter_context(
                open_trackers(settings, run.folder, name=settings.method.name, note=run.screen.note)
            )
        state = train(
            TrainingJob(
                model=method.module,
                parameters=parameters,
                objective=loss,
                items=items,
                validate=validate if tree is None else _keeping_states(tree, validate),
                settings=settings.training,
                seed=settings.seed,
                checkpoints=checkpoints,
                log=TrainingLog(run.folder, show=run.screen.record, trackers=trackers),
                memory=run.memory,
                count_tokens=method.tokens_run,
                sampling=sampling,
                sharded=sharded,
                validates_start=validates_start,
                warm_up=None if tree is None else partial(_run_frozen, run, tree, loss, items),
            )
        )
    _note_compiled(layers if use_compile else None)
    if tree is not None:
        tree.forget_states()
    if sharded is not None:
        sharded.restore()
    method.weights_changed()
    run.memory.stage("training")
    run.memory.take_largest()
    if save and is_main():
        target = run.folder / (MODEL if settings.adapter.weights == "full" else ADAPTER)
        with folder_atomic(target) as scratch:
            method.save_weights(scratch)
    return state, sum(p.numel() for p in parameters.values())


def _tell_stock_training(run: AnyRun, tree: CausalModel | None) -> None:
    if tree is None or run.settings.adapter.weights == "full":  # which always train so
        return
    if (note := tree.lean.stock_note("training runs in")) is not None:
        run.screen.note(note)


def _compiles(run: AnyRun, method: Trainable, num_items: int, layers: str | None) -> bool:
    """Return whether the layers are to be compiled."""
    settings, tree = run.settings, method.tree
    is_on = settings.model.compile == "on"
    if tree is not None and tree.has_training_pass:
        if is_on:
            run.screen.note("model.compile=on: training runs in a pass that needs no compiling")
        return False
    # Loops over tokens, as recurrent layers have them, would be compiled token by token.
    if tree is not None and not tree.suits_compiling and not is_on:
        return False
    device = resolve_device(settings.model.device)
    return on_main(
        lambda: compile_pays(settings, num_items, folder=run.folder, device=device, key=layers)
    )


def _note_compiled(key: str | None) -> None:
    if key is not None and is_main():
        note_compiled(key)


def _run_frozen(
    run: AnyRun, tree: CausalModel, objective: Objective[Item], items: Sequence[Item]
) -> None:
    """Run the layers that training leaves alone over all items, once for all epochs."""
    settings, gigabytes = run.settings.training, run.settings.adapter.cache_gigabytes
    assert gigabytes is not None, "nothing is kept"
    store = tree.keep_states(memory_bytes=round(gigabytes * 1e9), folder=run.folder / "states")
    if not sees_texts_again(settings, len(items)):
        return  # in a single epoch only validations meet a text again
    budget = settings.token_budget or max(TOKEN_BUDGET, objective.largest(items))
    has_run = False
    try:
        with (
            evaluation_mode(tree.model),
            run.screen.progress("running the frozen layers", len(items)) as advance,
        ):
            for fixed in objective.fixed_trees(items, budget):
                tree.keep_tree(fixed.tree, prefix=fixed.prefix)
                has_run = True
                advance(fixed.num_items)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        tree.forget_states()
        run.screen.note("memory does not suffice to keep what the frozen layers say")
        return
    if not has_run:
        return  # no tree is met again
    place = f", {store.num_file_bytes / 1e9:.1f} GB on disk" if store.num_file_bytes else ""
    more = "; the rest runs in each step, as the disk is nearly full" if store.is_full else ""
    run.screen.note(
        f"the lower {tree.first_trained} of {tree.num_layers} layers have run, once for all "
        f"epochs ({store.num_bytes / 1e6:,.0f} MB kept in memory{place}{more})"
    )


def _keeping_states(
    tree: CausalModel, validate: Callable[[], Validation] | None
) -> Callable[[], Validation] | None:
    """Let validations keep what the frozen layers say, and find it the next time."""
    if validate is None:
        return None

    def kept() -> Validation:
        with tree.keeping():
            return validate()

    return kept


def _validate(run: Run, method: TrainedMethod) -> Validation:
    method.weights_changed()
    probabilities = divided(method.probabilities, run.data.validation)
    found = run.classifier.evaluate(run.data.validation, probabilities)
    if isinstance(run.data.asked, Questionnaire):
        return _validation_of_questions(run, found)
    evaluation = found[""]
    metrics = {name: getattr(evaluation, name) for name in METRICS}
    losses = run.classifier.only.losses(run.data.validation, probabilities)
    return Validation(evaluation.log_loss, metrics, losses)


def _validation_of_questions(run: Run, found: Mapping[str, Evaluation]) -> Validation:
    """Return the mean of each metric over questions; of the questions' own metric all of them.

    Not every text has the labels of all questions, so there is no score of each text to compare.
    """
    tasks = run.data.asked.tasks
    metric = next(iter(tasks.values())).metric
    means = {
        name: float(np.mean([getattr(one, name) for one in found.values()])) for name in METRICS
    }
    own = {f"{name}/{metric}": float(getattr(one, metric)) for name, one in found.items()}
    # An example's loss is a sum over its questions, in training and here.
    losses = [tasks[name].weight * one.log_loss * one.num_examples for name, one in found.items()]
    return Validation(sum(losses) / len(run.data.validation), {**means, **own})


def _sampling(run: Run) -> NDArray[np.float64]:
    """Return the probability of each training example that makes all classes equally frequent.

    An example with several labels, or shares of them, is drawn as its rarest label asks for.
    """
    targets = target_matrix(run.data.train, run.data.task.label_names)  # (N, L)
    counts = targets.sum(axis=0)
    shares = np.divide(targets, counts, out=np.zeros_like(targets), where=counts > 0)
    per_example = shares.max(axis=1) if run.data.task.multi_label else shares.sum(axis=1)
    # Examples without any label are a class of their own.
    none = per_example == 0
    per_example[none] = 1 / max(1, none.sum())
    return np.asarray(per_example / per_example.sum())
