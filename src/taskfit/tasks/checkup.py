"""The check-up that people do by hand: what the tokenizer makes of prompt and label words."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taskfit.data import Example
from taskfit.tasks.encode import EncodedExample, PromptEncoder, Tokenizer

LONG_WORD = 4  # tokens


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token as shown to people.

    Attributes:
        id: Token id.
        text: What it decodes to.
        is_completion: Whether it belongs to the label word.
    """

    id: int
    text: str
    is_completion: bool


@dataclass(frozen=True, slots=True)
class WordReport:
    """What the tokenizer makes of a label word.

    Attributes:
        label: The label.
        word: Its word.
        tokens: The word's tokens after the prompt.
        with_space: Number of tokens of the word alone with a leading space.
        without_space: Number of tokens of the word alone without it.
    """

    label: str
    word: str
    tokens: tuple[str, ...]
    with_space: int
    without_space: int


@dataclass(frozen=True, slots=True)
class Checkup:
    """Facts about a task with a tokenizer.

    Attributes:
        prompt: First example's prompt with its label, token by token.
        words: One report a label word.
        shared_first_tokens: First token -> the words that start with it, where several do.
        prefixes: Pairs of words of which the first's tokens start the second's.
        class_counts: Examples of each label.
        lengths: min, median, 95 % and max of prompt with longest answer (tokens).
        num_shortened: Examples whose text does not fit.
        advice: What to change, in sentences.
    """

    prompt: tuple[ShownToken, ...]
    words: tuple[WordReport, ...]
    shared_first_tokens: dict[str, tuple[str, ...]]
    prefixes: tuple[tuple[str, str], ...]
    class_counts: dict[str, int]
    lengths: dict[str, int]
    num_shortened: int
    advice: tuple[str, ...]


def check_up(
    encoder: PromptEncoder,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    encoded: Sequence[EncodedExample],
) -> Checkup:
    """Look at a task the way its tokenizer sees it.

    Args:
        encoder: The task's encoder.
        tokenizer: Its tokenizer.
        examples: At least one example.
        encoded: The same examples, encoded.
    """
    first = encoded[0]
    shown = first.label_index or 0
    completions = dict(zip((c.word for c in encoder.candidates), first.completions, strict=True))
    gold_word = next(c.word for c in encoder.candidates if c.label_index == shown)

    def show(ids: Sequence[int], is_completion: bool) -> list[ShownToken]:
        return [ShownToken(int(i), str(tokenizer.decode([int(i)])), is_completion) for i in ids]

    prompt = show(first.prompt_ids.tolist(), False)
    prompt += show(completions[gold_word].tolist(), True)
    words = []
    for candidate, ids in zip(encoder.candidates, first.completions, strict=True):
        bare = candidate.word.lstrip()
        words.append(
            WordReport(
                label=encoder.task.label_names[candidate.label_index],
                word=candidate.word,
                tokens=tuple(token.text for token in show(ids.tolist(), True)),
                with_space=len(encoder.text.ids(" " + bare)),
                without_space=len(encoder.text.ids(bare)),
            )
        )
    by_first: dict[int, list[str]] = defaultdict(list)
    for word, ids in completions.items():
        by_first[int(ids[0])].append(word)
    shared = {
        str(tokenizer.decode([token])): tuple(found)
        for token, found in by_first.items()
        if len(found) > 1
    }
    prefixes = tuple(
        (short, long)
        for short, a in completions.items()
        for long, b in completions.items()
        if len(a) < len(b) and np.array_equal(a, b[: len(a)])
    )
    lengths = [len(e.prompt_ids) + max(map(len, e.completions)) for e in encoded]
    low, middle, high, top = np.percentile(lengths, [0, 50, 95, 100]).astype(int).tolist()
    num_shortened = sum(e.num_tokens_cut > 0 for e in encoded)
    return Checkup(
        prompt=tuple(prompt),
        words=tuple(words),
        shared_first_tokens=shared,
        prefixes=prefixes,
        class_counts=dict(Counter(str(e.label) for e in examples)),
        lengths={"min": low, "median": middle, "95 %": high, "max": top},
        num_shortened=num_shortened,
        advice=tuple(_advice(encoder, words, shared, prefixes, num_shortened)),
    )


def _advice(
    encoder: PromptEncoder,
    words: Sequence[WordReport],
    shared: dict[str, tuple[str, ...]],
    prefixes: Sequence[tuple[str, str]],
    num_shortened: int,
) -> list[str]:
    advice = []
    chat = encoder.task.chat
    for report in words:
        spaced = report.word[:1].isspace()
        if not chat and not spaced and report.with_space < report.without_space:
            advice.append(
                f"{report.word!r} is {report.without_space} tokens, with a leading space "
                f"{report.with_space}: start the word with the space, and end the template "
                "without one."
            )
    long_words = [report for report in words if len(report.tokens) > LONG_WORD]
    if long_words:
        worst = max(long_words, key=lambda report: len(report.tokens))
        advice.append(
            f"{len(long_words)} label words have more than {LONG_WORD} tokens, most of all "
            f"{worst.word!r} ({' | '.join(worst.tokens)}). Their probabilities are exact, but a "
            "shorter, more common word may be learnt faster."
        )
    if shared:
        advice.append(
            "Words that share their first token are told apart by the later ones; taskfit scores "
            "the whole word, tools that read one token cannot tell them apart."
        )
    for short, long in prefixes:
        advice.append(
            f"The tokens of {short!r} start those of {long!r}: the longer word can never be more "
            "probable than the shorter one. Choose other words."
        )
    if num_shortened:
        advice.append(
            f"{num_shortened} texts do not fit into {encoder.max_length} tokens and are shortened "
            "at their end; raise model.max_length if the model allows it."
        )
    return advice
