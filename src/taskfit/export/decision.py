"""What transformers' `pipeline("decision")` needs to answer a run's own question.

`decision.json` names the label words as the labels of a choice, `decision_template.jinja` writes
the prompt. See transformers' `DecisionConfig`.

Legend: N texts, L labels.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, pipeline
from transformers.decision import DecisionConfig

from taskfit.data import Example
from taskfit.errors import SettingsError, TaskfitError
from taskfit.export.check import FloatArray
from taskfit.export.prompt import prompt_pieces
from taskfit.export.scores import label_tokens
from taskfit.methods.head import Head
from taskfit.methods.tree_method import TreeMethod
from taskfit.models.load import DTYPES
from taskfit.runs.classifier import Classifier
from taskfit.tasks import BareEncoder
from taskfit.tasks.text_encoder import TextEncoder


@dataclass(frozen=True, slots=True)
class Decision:
    """A run's question as transformers asks it.

    Attributes:
        config: With labels, temperature and template.
        name: What answers are called by.
        columns: Text columns.
        labels: Names of the labels, in the order in which `criteria` must name them.
    """

    config: DecisionConfig
    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]

    def example(self) -> Example:
        """Return texts to show a request with."""
        return Example("example", dict.fromkeys(self.columns, "This is a text."))

    def request(self, example: Example) -> dict[str, Any]:
        """Return what the pipeline is asked about an example."""
        texts = [example.texts[column] for column in self.columns]
        state = texts[0] if len(texts) == 1 else dict(zip(self.columns, texts, strict=True))
        criteria = dict.fromkeys(self.labels)
        return {"state": state, "questions": {self.name: {"type": "choice", "criteria": criteria}}}


def find_decision(
    classifier: Classifier, examples: Sequence[Example]
) -> tuple[Decision, list[int]]:
    """Return a run's question, and the places of the examples that the template writes whole.

    Raises:
        TaskfitError: If its labels are not read from one score each, or the template gives other
            token ids than the run has seen.
    """
    method, task = classifier.method, classifier.task
    assert isinstance(method, TreeMethod)
    if isinstance(method, Head) or isinstance(method.encoder, BareEncoder):
        raise SettingsError("It reads scores of label words, and this run has a head instead.")
    if task.multi_label:
        raise SettingsError("It gives a text one label, and texts of this run may have several.")
    tokenizer: PreTrainedTokenizerBase = copy.deepcopy(method.model.tokenizer)
    tokens = label_tokens(method, instead="Fit")
    words = [str(tokenizer.decode([token])) for token in tokens]
    for word, token in zip(words, tokens, strict=True):
        if list(tokenizer(word, add_special_tokens=False)["input_ids"]) != [token]:
            raise SettingsError(
                f"The tokenizer does not read the label word {word!r} alone as one."
            )
    decision = Decision(
        DecisionConfig(
            labels={"choice": words},
            temperature={"choice": classifier.only.calibration.temperature},
            chat_template=_template(method, task.label_names),
        ),
        task.label_column,
        tuple(task.text),
        tuple(task.label_names),
    )
    control = TextEncoder(tokenizer).control
    whole = []
    for place, item in enumerate(method.encoder.encode(examples)):
        example = examples[place]
        if item.num_tokens_cut or any(map(control.found_in, example.texts.values())):
            continue
        ((inputs, _),) = decision.config.prepare_inputs(decision.request(example), tokenizer)
        if inputs["input_ids"][0].tolist() != item.prompt_ids.tolist():
            raise SettingsError("Its template gives other token ids than this run has seen.")
        whole.append(place)
    if not whole:
        raise SettingsError("None of the run's texts is short and plain enough to check it by.")
    return decision, whole


def _template(method: TreeMethod, labels: Sequence[str]) -> str:
    """Return the template that writes the run's prompt; it refuses other questions."""
    columns = method.task.text
    state = "state if state is string else state[{name}]" if len(columns) == 1 else "state[{name}]"
    start = TextEncoder(method.model.tokenizer).start_ids
    written = str(method.model.tokenizer.decode(start)) if start else ""
    pieces = prompt_pieces(method.encoder)
    if not pieces[0][1].startswith(written) or pieces[0][0] == "column":
        pieces.insert(0, ("text", written))
    shown = "".join(
        "{{ "
        + (
            json.dumps(value, ensure_ascii=False)
            if kind == "text"
            else state.format(name=json.dumps(value, ensure_ascii=False))
        )
        + " }}"
        for kind, value in pieces
        if value
    )
    names = json.dumps(list(labels), ensure_ascii=False)
    message = json.dumps(
        f"This model answers one question: a choice with the criteria {', '.join(labels)}, in this "
        "order.",
        ensure_ascii=False,
    )
    return (
        f"{{%- if question.type != 'choice' or question.options != {names} -%}}"
        f"{{{{ raise_exception({message}) }}}}{{%- endif -%}}{shown}"
    )


def decision_probabilities(
    folder: Path, decision: Decision, examples: Sequence[Example], *, dtype: str
) -> FloatArray:
    """Return what transformers' pipeline answers with a folder, (N, L)."""
    decide = pipeline("decision", model=str(folder), dtype=DTYPES[dtype], device="cpu")
    rows = []
    for example in examples:
        found = decide(decision.request(example))[decision.name]["probabilities"]
        rows.append([found[name] for name in decision.labels])
    return np.array(rows)


def try_decision(
    classifier: Classifier, examples: Sequence[Example]
) -> tuple[Decision, list[int]] | str:
    """Return `find_decision`'s answer, or the reason why there is none."""
    try:
        return find_decision(classifier, examples)
    except TaskfitError as error:
        return str(error)
