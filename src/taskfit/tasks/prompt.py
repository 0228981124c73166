"""A task's prompt of a text, as plain text and as a chat."""

from collections.abc import Callable, Mapping, Sequence

from jinja2 import TemplateError

from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.tasks.task import Task
from taskfit.tasks.text_encoder import Tokenizer

# Stands for an answer where only what follows one is looked at.
ANSWER = "answer"


def render_prompt(task: Task, texts: Mapping[str, str], demonstrations: Sequence[Example]) -> str:
    """Return the prompt of a query: instruction, demonstrations, and the line up to its label."""
    return prompt_head(task, demonstrations) + task.written.query(texts)


def prompt_head(task: Task, demonstrations: Sequence[Example]) -> str:
    """Return what stands before the query, the same for all queries."""
    template = task.written
    words = {label.name: label.words[0] for label in task.labels}
    pieces = [template.instruction] if template.instruction else []
    pieces.extend(template.demonstration(d.texts, words[str(d.label)]) for d in demonstrations)
    return "".join(piece + template.separator for piece in pieces)


def chat_prompt(
    task: Task,
    texts: Mapping[str, str],
    demonstrations: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    shield: Callable[[str], str],
) -> str:
    """Return the same prompt as a chat: system, turns of user and assistant, and the query.

    The answer then starts a turn, so label words lose their leading space. Chat templates that
    know no system turn get the instruction at the head of the first user's turn.

    Args:
        task: The task.
        texts: Of the query, by column.
        demonstrations: What is shown.
        tokenizer: With a chat template.
        shield: What no turn may be forged by goes through it, see `TextEncoder.shield`.

    Raises:
        PromptError: If the tokenizer has no chat template, or it refuses turns like these.
    """
    if not tokenizer.chat_template:
        raise PromptError(
            "task.chat is set, but this model has no chat template. Use an instruction-tuned "
            "model, or leave out task.chat."
        )
    messages = [
        {**message, "content": shield(message["content"])}
        for message in chat_messages(task, texts, demonstrations)
    ]

    def render(turns: list[dict[str, str]]) -> str:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    try:
        if messages[0]["role"] != "system":
            return render(messages)
        try:
            return render(messages)
        except TemplateError:
            system, query, *others = messages
            content = f"{system['content']}\n\n{query['content']}"
            return render([{"role": "user", "content": content}, *others])
    except TemplateError as error:
        raise PromptError(
            f"The model's chat template refuses this task: {error}. Leave out task.chat."
        ) from error


def after_answer(task: Task, tokenizer: Tokenizer) -> str:
    """Return what follows an answer in the task's prompts: of a line, or of a turn of a chat.

    Empty where nothing static does, or the chat template refuses a turn of the assistant's.
    """
    if not task.chat:
        return task.written.after_label()
    messages = chat_messages(task, dict.fromkeys(task.text, "x"), [])[-1:]
    messages.append({"role": "assistant", "content": ANSWER})
    try:
        chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    except TemplateError:
        return ""
    return str(chat).rpartition(ANSWER)[2]


def chat_messages(
    task: Task, texts: Mapping[str, str], demonstrations: Sequence[Example]
) -> list[dict[str, str]]:
    """Return the prompt as turns: system (if there is an instruction), user and assistant, user."""
    words = {label.name: label.words[0].strip() for label in task.labels}
    messages, template = [], task.written
    if template.instruction.strip():
        messages.append({"role": "system", "content": template.instruction.strip()})
    for shown in demonstrations:
        messages.append({"role": "user", "content": template.query(shown.texts).strip()})
        messages.append({"role": "assistant", "content": words[str(shown.label)]})
    messages.append({"role": "user", "content": template.query(texts).strip()})
    return messages
