"""Tasks, templates, label words; and the one place where text becomes token ids."""

from taskfit.tasks.answers import parse_answer
from taskfit.tasks.bare import BareEncoder
from taskfit.tasks.checkup import Checkup, check_up
from taskfit.tasks.demonstrations import choose_demonstrations
from taskfit.tasks.encode import Candidate, EncodedExample, PromptEncoder
from taskfit.tasks.files import load_task, task_from_dict, task_to_dict
from taskfit.tasks.option_orders import num_orders, option_orders, shuffled_orders
from taskfit.tasks.prompt import chat_messages, chat_prompt, render_prompt
from taskfit.tasks.task import (
    Label,
    Task,
    override_task,
    readable,
    task_from_columns,
    with_labels,
)
from taskfit.tasks.template import Template
from taskfit.tasks.text_encoder import TextEncoder, Tokenizer, TokenSequence

__all__ = [
    "BareEncoder",
    "Candidate",
    "Checkup",
    "EncodedExample",
    "Label",
    "PromptEncoder",
    "Task",
    "Template",
    "TextEncoder",
    "TokenSequence",
    "Tokenizer",
    "chat_messages",
    "chat_prompt",
    "check_up",
    "choose_demonstrations",
    "load_task",
    "num_orders",
    "option_orders",
    "override_task",
    "parse_answer",
    "readable",
    "render_prompt",
    "shuffled_orders",
    "task_from_columns",
    "task_from_dict",
    "task_to_dict",
    "with_labels",
]
