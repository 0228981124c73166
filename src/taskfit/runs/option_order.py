"""The permutation test of options: what answers are where a prompt lists them in another order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from taskfit.data import Example
from taskfit.methods.in_context import InContext
from taskfit.methods.tree_method import WordMethod
from taskfit.runs.classifier import Classifier
from taskfit.screen import Screen
from taskfit.stats.order_effect import OrderEffect, order_effect
from taskfit.tasks import option_orders

# Texts that are asked in all orders, drawn by the seed, and most orders of each question.
SAMPLE = 100
ORDERS = 6


@dataclass(frozen=True, slots=True)
class OrderTest:
    """What was found, and what it cost.

    Attributes:
        effects: Question -> what other orders change; questions without options are left out.
        num_tokens: Tokens that the model ran for it.
    """

    effects: Mapping[str, OrderEffect]
    num_tokens: int


def can_test(classifier: Classifier) -> bool:
    """Return whether there are orders to try: label words behind a prompt that lists options."""
    has_options = any(task.names_options for task in classifier.asked.tasks.values())
    return has_options and isinstance(classifier.method, WordMethod | InContext)


def try_orders(
    classifier: Classifier,
    examples: Sequence[Example],
    *,
    num_orders: int = ORDERS,
    sample: int = SAMPLE,
    screen: Screen,
) -> OrderTest:
    """Ask the same questions about the same texts behind options in several orders.

    Orders that part behind the text share it: they run in one token tree for each text.

    Args:
        classifier: Its method reads label words, see `can_test`.
        examples: Texts; where they have labels, accuracies are measured.
        num_orders: Most orders of each question.
        sample: Most texts; more are drawn by the run's seed.
        screen: Where progress is shown.
    """
    method = classifier.method
    assert isinstance(method, WordMethod | InContext)
    seed, tree = method.context.settings.seed, method.context.need_model().tree
    drawn = np.random.default_rng([seed, 10]).permutation(len(examples))[:sample]
    texts = [examples[i] for i in sorted(drawn)]
    before = tree.num_tokens_run
    with screen.progress("trying orders of the options", len(texts)) as advance:
        found = method.by_order(texts, num_orders, advance=advance)
    effects = {}
    for (name, question), raw in zip(classifier.questions.items(), found, strict=True):
        if len(raw) < 2:
            continue
        own = [example.of(name) for example in texts]
        rows = [i for i, example in enumerate(own) if example.label is not None]
        if 0 < len(rows) < len(texts):
            own, raw = [own[i] for i in rows], raw[:, rows]
        places = {label: place for place, label in enumerate(question.task.label_names)}
        orders = option_orders(question.task, num_orders, seed=seed)
        effects[name] = order_effect(
            np.stack([question.calibrated(part) for part in raw]),
            np.array([[places[label] for label in order.option_names] for order in orders]),
            gold=question.gold(own) if rows else None,
            seed=seed,
        )
    return OrderTest(effects, tree.num_tokens_run - before)
