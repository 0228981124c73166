"""Labels of which one starts another, scored in context with and without their ends.

    TASKFIT_DATA=../shared/data python benchmarks/word_ends.py

For three made-up sets of easy texts, and six intents of Banking77 under names that start each
other, it prints accuracy and the share of texts that get one of the longer labels: by the joint
probability of each word alone, and as `in_context` scores them.
"""

import os
from pathlib import Path

import numpy as np

from taskfit.data import Columns, Example, read_table, to_examples
from taskfit.data.examples import label_names
from taskfit.methods.calibration import text_prior
from taskfit.methods.scoring import LabelScorer
from taskfit.models.load import load_model
from taskfit.settings import ModelSettings
from taskfit.tasks import PromptEncoder, choose_demonstrations, task_from_columns

THINGS = ("lamp", "kettle", "jacket", "phone", "chair", "novel", "blender", "tent")
KINDS = ("current", "savings", "joint", "student", "business", "travel", "holiday", "pension")
MADE = {
    "card": (
        KINDS,
        {
            "card": ("I lost my {} card.", "My {} card was stolen.", "Send me a new {} card."),
            "card payment": (
                "My payment with the {} card was declined.",
                "The shop could not take my {} card.",
                "I do not know this purchase with my {} card.",
            ),
            "card payment fee": (
                "Why was I charged for paying with the {} card?",
                "What does it cost to pay with my {} card?",
                "You took extra money when I paid with the {} card.",
            ),
        },
    ),
    "refund": (
        THINGS,
        {
            "refund": (
                "Please give me my money back for the {}.",
                "I returned the {} and want to be paid back.",
                "I would like my money back, the {} does not work.",
            ),
            "refund status": (
                "When will the money for the returned {} arrive?",
                "You promised to pay me back for the {} a week ago. Where is it?",
                "Has the repayment for the {} been sent yet?",
            ),
            "refund status unknown": (
                "Your site shows nothing about the repayment for the {}.",
                "I cannot find out whether the {} was paid back.",
                "Nobody can tell me what happened to the repayment for the {}.",
            ),
        },
    ),
    "account": (
        KINDS,
        {
            "account": (
                "How do I open a {} one with you?",
                "What interest does the {} one pay?",
                "Please tell me the number of my {} one.",
            ),
            "account closed": (
                "I want to shut down my {} one for good.",
                "Please end my {} one and send me the rest.",
                "I no longer need the {} one, take it away.",
            ),
            "account closed by bank": (
                "You shut down my {} one without asking me!",
                "Why did you end my {} one? I never asked for that.",
                "You terminated my {} one against my will.",
            ),
        },
    ),
}
BANKING = {
    "lost_or_stolen_card": "card",
    "card_payment_not_recognised": "card payment",
    "card_payment_fee_charged": "card payment fee",
    "topping_up_by_card": "top up",
    "top_up_failed": "top up failed",
    "top_up_limits": "top up limits",
}


def sets() -> dict[str, list[Example]]:
    """Return texts with labels by the name of their set, shuffled."""
    found = {
        name: [
            Example(text.format(word), {"text": text.format(word)}, label)
            for label, texts in by_label.items()
            for text in texts
            for word in words
        ]
        for name, (words, by_label) in MADE.items()
    }
    folder = os.environ.get("TASKFIT_DATA")
    if folder:
        table = read_table(str(Path(folder) / "banking77" / "test.csv"))
        rows = to_examples(table, Columns(("text",), "category", BANKING), source="test.csv")
        found["banking77"] = [one for one in rows if one.label in BANKING.values()]
    generator = np.random.default_rng(0)
    return {n: [rows[i] for i in generator.permutation(len(rows))] for n, rows in found.items()}


def main() -> None:
    """Score every set with and without demonstrations, print a table."""
    model = load_model(ModelSettings(name="smollm2-135m"))
    print("| set | demonstrations | scored by | accuracy | longer labels | right share |")
    print("|---|---|---|---|---|---|")
    for name, rows in sets().items():
        labels = label_names(rows)
        longer = [any(one != other and one.startswith(other) for other in labels) for one in labels]
        for num in (0, 2 * len(labels)):
            task = task_from_columns(name=name, text=["text"], label_column="label", labels=labels)
            shown = choose_demonstrations(rows, how="balanced", num=num, labels=labels, seed=0)
            test = [one for one in rows if one not in shown]
            gold = np.array([labels.index(str(one.label)) for one in test])
            scores = {}
            for how, marks in (("joint", False), ("with ends", True)):
                encoder = PromptEncoder(
                    model.tokenizer, task, shown, max_length=2048, marks_ends=marks
                )
                per_token = marks and num == 0
                scores[how] = LabelScorer(
                    model.tree, encoder, length_normalization=per_token
                ).log_probs(test)
                if marks:
                    plain = LabelScorer(model.tree, encoder).log_probs(test)
                    prior = text_prior(lambda _, plain=plain: plain, test)
                    scores["with ends, calibration=batch"] = plain - prior
            for how, found in scores.items():
                predicted = found.argmax(axis=1)
                accuracy = np.mean(predicted == gold)
                share, right = (np.mean(np.array(longer)[which]) for which in (predicted, gold))
                print(f"| {name} | {num} | {how} | {accuracy:.2f} | {share:.0%} | {right:.0%} |")


if __name__ == "__main__":
    main()
