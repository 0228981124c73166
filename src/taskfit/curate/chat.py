"""Write conversations as texts in a chat template."""

from collections.abc import Iterator
from dataclasses import replace

import jinja2

from taskfit.curate.context import Context
from taskfit.curate.items import ItemFile, Removal, Verdict
from taskfit.curate.settings import ChatStep
from taskfit.curate.tokens import render
from taskfit.data.instructions import Conversation, Preference, Raw
from taskfit.data.messages import Message
from taskfit.errors import DataError, SettingsError
from taskfit.tasks.chat import find_template, template_names
from taskfit.tasks.control_tokens import ControlTokens

PREVIEWS = 2


def run_chat(step: ChatStep, items: ItemFile, context: Context) -> Iterator[Verdict]:
    """Yield each conversation as a raw text; those that the template refuses are removed.

    So are those that hold a control token: in a text nobody could tell it from the template's own.
    """
    if step.template is not None:
        template = find_template(step.template)
    elif isinstance(own := context.tokenizer.chat_template, str):
        template = own
    else:
        raise SettingsError(
            "chat: the tokenizer has no chat template. Give `template:`, a Jinja file or one of: "
            f"{', '.join(template_names())}."
        )
    previews: list[str] = []
    control, num_marked = ControlTokens(context.tokenizer.backend_tokenizer), 0
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
        held = control.found_in("\n".join(message.content for message in row.messages))
        if held:
            yield item, Removal("it holds a control token", detail=" ".join(held))
            continue
        try:
            text = render(context.tokenizer, _with_system(row, step.system), template)
        except jinja2.TemplateError as error:
            yield item, Removal("the chat template refuses it", detail=str(error))
            continue
        num_marked += bool(control.found_in(text))
        if len(previews) < PREVIEWS:
            previews.append(text)
            context.facts["previews"] = previews
        yield replace(item, row=Raw(row.id, text, row.score)), None
    if num_marked:
        context.screen.note(
            f"chat: {num_marked:,} texts hold the template's control tokens; they are learned as "
            "such with --set task.allow_control_tokens=true, and as characters without"
        )


def _with_system(row: Conversation, system: str | None) -> tuple[Message, ...]:
    if system is None or row.messages[0].role == "system":
        return row.messages
    return (Message("system", system), *row.messages)
