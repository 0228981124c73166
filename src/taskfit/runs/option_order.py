"""The permutation test of options: what answers are where a prompt lists them in another order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from taskfit.data import Example
from taskfit.errors import SettingsError
from taskfit.method_settings import as_method
from taskfit.methods.in_context import InContext
from taskfit.methods.method import MethodContext
from taskfit.methods.table import label_method
from taskfit.methods.tree_method import WordMethod
from taskfit.runs.classifier import Classifier
from taskfit.runs.file_names import SETTINGS_FILE
from taskfit.runs.load import load_classifier
from taskfit.runs.prepare import prepare_data
from taskfit.runs.rows import read_test, task_columns, text_examples
from taskfit.runs.run import base_model
from taskfit.runs.sources import read_source
from taskfit.screen import Screen
from taskfit.settings import RunSettings
from taskfit.settings_file import load_run_settings
from taskfit.stats.order_effect import Mean, OrderEffect, order_effect
from taskfit.tasks import Task, num_orders, option_orders
from taskfit.tasks.question_files import is_questionnaire
from taskfit.tasks.questions import Asked
from taskfit.training.memory import MemoryAccount

# Texts that are asked in several orders, and most orders of each question.
SAMPLE = 100
ORDERS = 6
# From this share of changed answers on, something is worth doing about it.
WORTH_IT = 0.05


@dataclass(frozen=True, slots=True)
class OrderTest:
    """What was found, and what it cost.

    Attributes:
        effects: Question -> what other orders change; questions without options are left out.
        num_texts: Texts that were asked about.
        num_tokens: Tokens that the model ran for it.
    """

    effects: Mapping[str, OrderEffect]
    num_texts: int
    num_tokens: int


def lists_options(classifier: Classifier) -> bool:
    """Return whether there are orders to try: label words behind a prompt that lists options."""
    return any(num_orders(task) > 1 for task in _asked(classifier))


def _asked(classifier: Classifier) -> list[Task]:
    """Return each question as its prompt asks it; empty where no label words are read."""
    method = classifier.method
    if isinstance(method, WordMethod):
        return [encoder.task for encoder in method.scorer.encoders]
    if isinstance(method, InContext):
        return [encoder.task for encoder in method.scorers[0].encoders]
    return []


def try_orders(
    classifier: Classifier,
    examples: Sequence[Example],
    *,
    screen: Screen,
    count: int = ORDERS,
    sample: int = SAMPLE,
) -> OrderTest:
    """Ask the same questions about the same texts behind options in several orders.

    Orders that part behind the text share it: they run in one token tree for each text.

    Args:
        classifier: Its method reads label words behind a prompt that lists options.
        examples: Texts; where all have labels of a question, its accuracies are measured.
        screen: Where progress is shown.
        count: Most orders of each question, at least 2.
        sample: Most texts; of more some are drawn by the run's seed.

    Raises:
        SettingsError: If there are no orders to try.
    """
    method, asked = classifier.method, _asked(classifier)
    if not (lists_options(classifier) and isinstance(method, WordMethod | InContext)):
        raise SettingsError(
            "There is no order of options to try: that is for prompts that list them, of methods "
            "that read label words. Write {options} where the prompt shall list them, such as "
            'task.instruction="Which topic is it: {options:or}?".'
        )
    seed, tree = method.context.settings.seed, method.context.need_model().tree
    drawn = np.random.default_rng([seed, 10]).permutation(len(examples))[:sample]
    texts = [examples[i] for i in sorted(drawn)]
    before = tree.num_tokens_run
    with screen.progress("trying orders of the options", len(texts)) as advance:
        found = method.by_order(texts, count, advance=advance)
    effects = {}
    for question, task, raw in zip(classifier.questions.values(), asked, found, strict=True):
        if len(raw) < 2:
            continue
        own, places = [text.of(question.name) for text in texts], task.label_names
        orders = option_orders(task, count, seed=seed)
        effects[question.name] = order_effect(
            np.stack([question.calibrated(part) for part in raw]),
            np.array([[places.index(label) for label in one.option_names] for one in orders]),
            gold=question.gold(own) if all(one.label in places for one in own) else None,
            seed=seed,
        )
    return OrderTest(effects, len(texts), tree.num_tokens_run - before)


def inspect_orders(settings: RunSettings, *, count: int, screen: Screen) -> OrderTest:
    """Ask a model that nothing was trained on, by the prompt of a task; see `try_orders`.

    Args:
        settings: As of a run; it is asked in context, whatever the method.
        count: Most orders of each question.
        screen: Where progress is shown.

    Raises:
        TaskfitError: As a run with these settings would.
    """
    method = as_method(settings.method, "in_context")
    settings = settings.model_copy(update={"method": method})
    data = prepare_data(settings, several=True)
    examples = next(iter(data.evaluations.values()), data.train)
    if not examples:
        raise SettingsError("There are no texts to ask about.")
    settings = settings.resolved(questions=is_questionnaire(settings.task.name))
    model = base_model(settings, None, MemoryAccount(torch.device("cpu")), screen)
    context = MethodContext(settings, data.asked, data.demonstrations, model)
    classifier = Classifier(label_method(method.name)(context))
    model.tree.prepare_scoring()
    return try_orders(classifier, examples, screen=screen, count=count)


def inspect_run_orders(
    folder: Path, source: str | None, *, count: int, screen: Screen
) -> OrderTest:
    """Ask a finished run; see `try_orders`.

    Args:
        folder: Of the run.
        source: File or hub id with its text columns, labels where it has them; None: its first
            evaluation set.
        count: Most orders of each question.
        screen: Where progress is shown.

    Raises:
        TaskfitError: If the run or the source does not allow it.
    """
    classifier = load_classifier(folder)
    settings = load_run_settings(folder / SETTINGS_FILE)
    if source is None:
        data = prepare_data(settings, several=True)
        examples = next(iter(data.evaluations.values()), data.validation)
    else:
        examples = _read_texts(source, classifier.asked, settings)
    if not examples:
        raise SettingsError(f"{folder} has no evaluation set here; name a table to ask about.")
    return try_orders(classifier, examples, screen=screen, count=count)


def _read_texts(source: str, asked: Asked, settings: RunSettings) -> list[Example]:
    """Return the texts of a table, with their labels where it has a column of them."""
    data = settings.data
    table = read_source(source, encoding=data.encoding, split="test", quotes=data.quotes)
    if isinstance(asked, Task):
        columns = [str(task_columns(asked, data).label), asked.label_column]
    else:
        columns = [question.label_column for question in asked.questions]
    if table.columns.isin(columns).any():
        return read_test(source, asked, data, every_question=False)
    return text_examples(table, asked, source=source)


def order_sentences(effects: Mapping[str, OrderEffect], *, averaged: int = 1) -> list[str]:
    """Return what people should know of the order of options, a few sentences for each question.

    Args:
        effects: See `OrderTest`.
        averaged: Over how many orders answers are averaged.
    """
    return [
        (f"{name}: " if name else "") + _sentence(effect, averaged)
        for name, effect in effects.items()
    ]


def _sentence(effect: OrderEffect, averaged: int) -> str:
    others = effect.num_orders - 1
    text = (
        f"in {'the other order' if others == 1 else f'{others} other orders'} of the options "
        f"{_interval(effect.flips)} of the answers to {effect.num_examples} texts change, and "
        f"probabilities move by {effect.total_variation.value:.2f} (total variation)"
    )
    for place, bias in (("first", effect.first), ("last", effect.last)):
        if bias.low > 0 or bias.high < 0:
            more = "more" if bias.value > 0 else "less"
            text += (
                f"; the option listed {place} is chosen {abs(100 * bias.value):.0f} points {more} "
                "often than if answers did not hang on the order"
            )
    if effect.mean_accuracy is not None:
        low, high = min(effect.accuracies), max(effect.accuracies)
        text += (
            f"; accuracy {low:.2f} to {high:.2f} by order, {effect.mean_accuracy:.2f} averaged "
            "over all of these"
        )
    if averaged > 1:
        return f"{text}; answers here are the mean over up to {averaged} orders"
    if effect.flips.value >= WORTH_IT:
        return f"{text}; method.option_orders averages over orders"
    return text


def _interval(mean: Mean) -> str:
    return f"{mean.value:.0%} ({mean.low:.0%} to {mean.high:.0%})"
