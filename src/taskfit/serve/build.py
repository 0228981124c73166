"""Finished runs and bare bases made ready to be served."""

import time
from pathlib import Path

from taskfit.methods.in_context import InContext
from taskfit.methods.tree_method import WordMethod
from taskfit.runs.classifier import FILE, Classifier
from taskfit.runs.records import QUESTIONS_FILE, TUNED_FILE
from taskfit.runs.shared_bases import SharedBases
from taskfit.runs.tuning.model import TunedModel
from taskfit.serve.free_questions import FreeQuestions
from taskfit.serve.own_questions import OwnQuestions
from taskfit.serve.served import ServedModel
from taskfit.serve.work import ModelCard
from taskfit.serve.writer import Writer
from taskfit.settings import ModelSettings, RunSettings
from taskfit.tasks.questions import Questionnaire


def served_run(
    name: str, folder: Path, found: Classifier | TunedModel, *, option_orders: int = 1
) -> ServedModel:
    """Return a finished run as it is served.

    Args:
        name: In requests.
        folder: Of the run.
        found: What `load_run` gave back.
        option_orders: Orders of options of questions that it was not fitted to, averaged over.
    """
    created = next(
        int((folder / file).stat().st_mtime)
        for file in (FILE, QUESTIONS_FILE, TUNED_FILE)
        if (folder / file).is_file()
    )
    if isinstance(found, TunedModel):
        method = found.settings.method.name
        card = ModelCard(
            name,
            f"{found.model.name} tuned by {method}: writes text.",
            base=found.model.name,
            method=method,
            created=created,
            columns=(),
            generates=True,
            max_length=found.model.tree.max_length,
        )
        return ServedModel(card, writer=Writer(found), tree=found.model.tree)
    own, free = OwnQuestions(found), _free(found, option_orders)
    by = found.method.settings.name
    asked = "; ".join(
        f"{name} ({', '.join(option.name for option in question.options)})"
        for name, question in own.cards.items()
    )
    card = ModelCard(
        name,
        f"Answers about {', '.join(own.columns)}: {asked}. Fitted by {by}.",
        base=found.model_name,
        method=by,
        created=created,
        columns=own.columns,
        questions=own.cards,
        multi_label=own.multi_label,
        thresholds=own.thresholds,
        asks_anything=free is not None,
        max_length=own.max_length,
    )
    model = found.method.context.model
    return ServedModel(card, own=own, free=free, tree=None if model is None else model.tree)


def served_base(
    name: str, bases: SharedBases, *, device: str, option_orders: int = 1
) -> ServedModel:
    """Return a bare model as it is served: it answers by prompts, and writes.

    Args:
        name: Packaged model, hub id or folder; also its name in requests.
        bases: Models in memory.
        device: See `model.device`.
        option_orders: Orders of a question's options, averaged over.

    Raises:
        TaskfitError: If there is no such model.
    """
    settings = RunSettings(model=ModelSettings(name=name, device=device))
    tuned = TunedModel(settings, bases.lend(settings))
    card = ModelCard(
        name,
        f"{name} as it is: answers questions by prompts, and writes text.",
        base=name,
        method="none",
        created=int(time.time()),
        columns=(),
        asks_anything=True,
        generates=True,
        max_length=tuned.model.tree.max_length,
    )
    return ServedModel(
        card,
        free=FreeQuestions(tuned.model, num_orders=option_orders),
        writer=Writer(tuned),
        tree=tuned.model.tree,
    )


def _free(classifier: Classifier, num_orders: int) -> FreeQuestions | None:
    """Return what asks a run other questions; None where its method cannot be asked any.

    Methods that read label words off the model answer with their own weights: measured, an adapter
    that was trained on one question does not answer others worse than the base.
    """
    method = classifier.method
    if not isinstance(method, WordMethod | InContext):
        return None
    limit = method.context.settings.model.max_length
    model, asked = method.context.need_model(), classifier.asked
    if isinstance(asked, Questionnaire) and len(asked.text) == 1:
        return FreeQuestions(
            model,
            max_length=limit,
            column=asked.text[0],
            instruction=asked.instruction,
            num_orders=num_orders,
        )
    return FreeQuestions(model, max_length=limit, num_orders=num_orders)
