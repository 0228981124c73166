"""Write conversations as texts in a chat template."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jinja2

from taskfit.curate.context import Context
from taskfit.curate.items import ItemFile, Removal, Verdict
from taskfit.curate.settings import ChatStep
from taskfit.curate.tokens import render
from taskfit.data.instructions import Conversation, Preference, Raw
from taskfit.data.messages import Message
from taskfit.errors import DataError, SettingsError

TEMPLATES = {
    # As in the models of OpenAI's early chat interface, and Qwen, SmolLM and others since.
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # As in Stanford Alpaca's train.py; the input is part of the instruction here.
    "alpaca": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}\n\n"
        "{% elif m['role'] == 'user' %}{% if loop.first %}Below is an instruction that describes a "
        "task. Write a response that appropriately completes the request.\n\n{% endif %}"
        "### Instruction:\n{{ m['content'] }}\n\n"
        "{% else %}### Response:\n{{ m['content'] }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}"
    ),
}
PREVIEWS = 2


def chat_template(name: str | None, *, own: str | None) -> str:
    """Return the Jinja text of a template.

    Args:
        name: A name of `TEMPLATES`, a file, or None for the tokenizer's own.
        own: The tokenizer's own.

    Raises:
        SettingsError: If there is no such template, or it is no Jinja.
    """
    allowed = f"a Jinja file or one of: {', '.join(TEMPLATES)}"
    if name is None:
        if own is None:
            raise SettingsError(
                f"chat: the tokenizer has no chat template. Give `template:`, {allowed}."
            )
        return own
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not Path(name).is_file():
        raise SettingsError(f"chat: there is no template {name!r}. It is {allowed}.")
    text = Path(name).read_text(encoding="utf-8")
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise SettingsError(f"chat: {name}:{error.lineno} is no Jinja: {error.message}.") from error
    return text


def run_chat(step: ChatStep, items: ItemFile, context: Context) -> Iterator[Verdict]:
    """Yield each conversation as a raw text; those that the template refuses are removed."""
    own = context.tokenizer.chat_template
    template = chat_template(step.template, own=own if isinstance(own, str) else None)
    previews: list[str] = []
    for item in items:
        row = item.row
        if isinstance(row, Raw):
            yield item, None
            continue
        if isinstance(row, Preference):
            raise DataError(
                f"chat: {row.id} is a preference pair, which is no single text. Leave the step "
                "out: preference tuning applies the template itself."
            )
        try:
            text = render(context.tokenizer, _with_system(row, step.system), template)
        except jinja2.TemplateError as error:
            yield item, Removal("the chat template refuses it", detail=str(error))
            continue
        if len(previews) < PREVIEWS:
            previews.append(text)
            context.facts["previews"] = previews
        yield replace(item, row=Raw(row.id, text, row.score)), None


def _with_system(row: Conversation, system: str | None) -> tuple[Message, ...]:
    if system is None or row.messages[0].role == "system":
        return row.messages
    return (Message("system", system), *row.messages)
