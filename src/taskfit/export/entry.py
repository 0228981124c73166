"""How texts go into an exported classifier: as they are, or written into the run's prompt."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.export.prompt import Prompt, find_prompt, prompt_pieces
from taskfit.export.prompt_tokenizer import PromptTokenizer, make_prompt_tokenizer
from taskfit.files import write_json_atomic
from taskfit.tasks import BareEncoder, PromptEncoder

PROMPT_FILE = "prompt.json"
CODE = "prompt_tokenizer"
SOURCE = '''"""The tokenizer of this folder, as its files describe it."""

from transformers import PreTrainedTokenizerFast


class PromptTokenizer(PreTrainedTokenizerFast):
    """Puts texts into the prompt of this model by itself."""
'''


@dataclass(frozen=True, slots=True)
class Entry:
    """How texts go into an export.

    Attributes:
        tokenizer: To save with the model.
        columns: Text columns, in the order in which their texts are given; raw texts alone.
        prompt: What texts must be put into first; None: raw texts go in.
        places: Of the examples that are read as the run reads them.
        shortens_text: Whether `truncation=True` shortens the text alone.
        notes: Sentences for the card.
    """

    tokenizer: PreTrainedTokenizerBase
    columns: tuple[str, ...]
    prompt: Prompt | None
    places: tuple[int, ...]
    shortens_text: bool
    notes: tuple[str, ...]

    def texts(self, example: Example) -> list[str]:
        """Return what goes into the tokenizer for an example."""
        if self.prompt is not None:
            return [self.prompt.fill(example.texts)]
        return [example.texts[column] for column in self.columns]

    @property
    def use(self) -> dict[str, object]:
        """Return what the card's example must know."""
        if self.prompt is not None:
            columns = [value for kind, value in self.prompt.pieces if kind == "column"]
            shown = json.dumps(dict.fromkeys(columns, "..."))
            return {"is_filled": True, "columns": shown, "texts": shown}
        texts = ["This is a text.", "And this is another one."][: len(self.columns)]
        pair = {"text": texts[0], "text_pair": texts[-1]}
        example = json.dumps(texts[0] if len(texts) == 1 else pair)
        return {"example": example, "texts": json.dumps(texts)}

    def save(self, folder: Path) -> None:
        """Write the tokenizer beside a model, and the prompt where texts must be put into it."""
        self.tokenizer.save_pretrained(folder)
        if self.prompt is not None:
            self.prompt.save(folder / PROMPT_FILE)
        elif not self._is_read_again(folder):
            # For some architectures transformers builds the tokenizer of its own class, whatever
            # the files say, unless they name code for it; then it takes the class that they name.
            (folder / f"{CODE}.py").write_text(SOURCE, encoding="utf-8")
            path = folder / "tokenizer_config.json"
            settings = json.loads(path.read_text(encoding="utf-8"))
            named = {"auto_map": {"AutoTokenizer": [None, f"{CODE}.PromptTokenizer"]}}
            write_json_atomic(path, {**settings, **named})
            assert self._is_read_again(folder), "the tokenizer that was written is another one"

    def _is_read_again(self, folder: Path) -> bool:
        texts = ["a b!"] * len(self.columns)
        again = AutoTokenizer.from_pretrained(folder)
        return bool(again(*texts)["input_ids"] == self.tokenizer(*texts)["input_ids"])


def find_entry(
    encoder: PromptEncoder | BareEncoder,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
) -> Entry:
    """Return how texts go into an export, raw wherever the tokenizer can hold the prompt.

    Args:
        encoder: Of the run.
        tokenizer: Of its model.
        examples: Texts that must be read as the run reads them.

    Raises:
        PromptError: If texts cannot be given in the prompt either, or it ends with the token that
            stands for padding.
    """
    (end,) = {int(item.prompt_ids[-1]) for item in encoder.content_free(["a"])}
    if not isinstance(encoder, BareEncoder) and end == tokenizer.pad_token_id:
        raise PromptError(
            "This run's prompt ends with the token that stands for padding, and a sequence "
            "classification model reads the last token that is not. Use --merge."
        )
    try:
        found = make_prompt_tokenizer(encoder, tokenizer, examples)
    except PromptError as error:
        prompt, whole = find_prompt(encoder, tokenizer, examples)
        return Entry(tokenizer, (), prompt, tuple(whole), False, (_note(prompt, str(error)),))
    whole = [i for i, item in enumerate(encoder.encode(examples)) if not item.num_tokens_cut]
    return Entry(
        found.tokenizer,
        found.columns,
        None,
        tuple(whole),
        found.shortens_text,
        _notes(found, prompt_pieces(encoder)),
    )


def _notes(found: PromptTokenizer, pieces: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    given = "Texts go in as they are"
    if len(found.columns) == 2:
        given = "{} goes in as the text and {} as its pair".format(*found.columns)
    limit = f"Prompt and text may have {found.tokenizer.model_max_length:,} tokens"
    side = (
        "`truncation=True` takes the end of a text that is longer, never the question"
        if found.shortens_text
        else "`truncation=True` shortens the longer of a pair first, one token at a time"
        if len(found.columns) == 2
        else "`truncation=True` takes the beginning of a text that is longer, where the run takes "
        "its end: this tokenizer reads the end together with the question behind it"
    )
    notes = [
        f"{given}: the tokenizer writes the run's prompt around them, and reads control tokens in "
        f"them as characters. {limit}; {side}. The prompt:\n\n{_shown(pieces)}"
    ]
    if found.misread:
        names = " ".join(f"`{name}`" for name in found.misread)
        notes.append(f"Texts with these control tokens are read otherwise than by the run: {names}")
    return tuple(notes)


def _note(prompt: Prompt, reason: str) -> str:
    return (
        f"Texts must be put into the prompt of `{PROMPT_FILE}` first, as below; without it the "
        f"probabilities mean nothing. {reason} A text that is too long must be shortened itself: "
        "cutting the prompt at its end (`truncation=True`) would lose the question. Longest "
        f"prompt: {prompt.max_length:,} tokens.\n\n{_shown(prompt.pieces)}"
    )


def _shown(pieces: Sequence[tuple[str, str]]) -> str:
    text = "".join(value if kind == "text" else "{" + value + "}" for kind, value in pieces)
    return f"```\n{text}\n```"
