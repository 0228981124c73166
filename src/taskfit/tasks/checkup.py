"""The check-up that people do by hand: what the tokenizer makes of prompt and label words."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from taskfit.data import Example
from taskfit.tasks.control_tokens import control_note
from taskfit.tasks.encode import EncodedExample, PromptEncoder
from taskfit.tasks.text_encoder import Tokenizer

LONG_WORD = 4  # tokens
MAX_ADVICE = 3  # sentences of one kind


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token as shown to people.

    Attributes:
        id: Token id.
        text: Its text, leading space included.
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
        with_space: Number of tokens that the word adds to a colon, with a leading space.
        without_space: Number of tokens that it adds without one.
    """

    label: str
    word: str
    tokens: tuple[str, ...]
    with_space: int
    without_space: int

    @property
    def is_split(self) -> bool:
        """Whether there are more tokens than words, numbers and punctuation marks."""
        return len(self.tokens) > len(re.findall(r"\w+|[^\w\s]", self.word))


@dataclass(frozen=True, slots=True)
class Checkup:
    """Facts about a task with a tokenizer.

    Attributes:
        prompt: First example's prompt with its label, token by token.
        words: One report a label word.
        leading_space: Answer to whether label words should start with a space, in a sentence.
        shared_first_tokens: First token -> the words that start with it, where several do.
        prefixes: Pairs of words of which the first's tokens start the second's.
        class_counts: Examples of each label, in task order.
        num_encoded: Examples that the lengths tell of.
        lengths: min, median, 95 % and max of prompt with longest answer (tokens).
        max_length: Longest prompt with its answer that is allowed (tokens).
        num_shortened: Examples whose text does not fit.
        advice: What to change, in sentences.
    """

    prompt: tuple[ShownToken, ...]
    words: tuple[WordReport, ...]
    leading_space: str
    shared_first_tokens: dict[str, tuple[str, ...]]
    prefixes: tuple[tuple[str, str], ...]
    class_counts: dict[str, int]
    num_encoded: int
    lengths: dict[str, int]
    max_length: int
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
        examples: All examples; their labels are counted.
        encoded: At least one of them, encoded; the first one is shown.
    """
    first = encoded[0]
    completions = dict(zip((c.word for c in encoder.candidates), first.completions, strict=True))
    gold = next(
        completions[c.word] for c in encoder.candidates if c.label_index == (first.label_index or 0)
    )
    words = _word_reports(encoder, tokenizer, first)
    by_first: dict[str, list[str]] = defaultdict(list)
    for word, ids in completions.items():
        by_first[_token_text(tokenizer, ids[0])].append(word)
    lengths = [len(e.prompt_ids) + max(map(len, e.completions)) for e in encoded]
    low, middle, high, top = np.percentile(lengths, [0, 50, 95, 100]).astype(int).tolist()
    counts = Counter(example.label for example in examples)
    found = Checkup(
        prompt=(
            *(ShownToken(int(i), _token_text(tokenizer, i), False) for i in first.prompt_ids),
            *(ShownToken(int(i), _token_text(tokenizer, i), True) for i in gold),
        ),
        words=words,
        leading_space=_leading_space(encoder, words),
        shared_first_tokens={
            token: tuple(found) for token, found in by_first.items() if len(found) > 1
        },
        prefixes=encoder.word_starts,
        class_counts={name: counts[name] for name in encoder.task.label_names},
        num_encoded=len(encoded),
        lengths={"min": low, "median": middle, "95 %": high, "max": top},
        max_length=encoder.max_length,
        num_shortened=sum(e.num_tokens_cut > 0 for e in encoded),
        advice=(),
    )
    held = encoder.text.control.held_by(examples)
    note = control_note(held, allowed=encoder.task.allow_control_tokens)
    told = () if note is None else (f"{note}.",)
    return replace(found, advice=(*told, *_space_advice(encoder, words), *_advice(found)))


def _token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token on its own, with the space that decoding would drop."""
    piece = tokenizer.backend_tokenizer.id_to_token(int(token)) or ""
    if "▁" in piece:
        return piece.replace("▁", " ")
    text = str(tokenizer.decode([int(token)]))
    # A part of a character has no text of its own.
    return piece if "\ufffd" in text else text


def _word_reports(
    encoder: PromptEncoder, tokenizer: Tokenizer, item: EncodedExample
) -> tuple[WordReport, ...]:
    def added(text: str) -> int:
        # Alone, a word may get a space that it does not have behind other text.
        shielded = encoder.text.shield(text)
        return len(encoder.text.ids(":" + shielded)) - len(encoder.text.ids(":"))

    return tuple(
        WordReport(
            label=encoder.task.label_names[candidate.label_index],
            word=candidate.word,
            tokens=tuple(_token_text(tokenizer, i) for i in ids),
            with_space=added(" " + candidate.word.lstrip()),
            without_space=added(candidate.word.lstrip()),
        )
        for candidate, ids in zip(encoder.candidates, item.completions, strict=True)
    )


def _reads_spaces(encoder: PromptEncoder, word: str) -> bool:
    bare = encoder.text.shield(word.lstrip())
    return encoder.text.ids(":" + bare) != encoder.text.ids(": " + bare)


def _leading_space(encoder: PromptEncoder, words: Sequence[WordReport]) -> str:
    if encoder.task.chat:
        return "the answer starts a turn of the chat, so label words have none."
    if not any(_reads_spaces(encoder, report.word) for report in words):
        return "this tokenizer reads words the same with one and without."
    spaced = sum(report.word[:1].isspace() for report in words)
    share = {0: "none of them has one", len(words): "all of them have one"}.get(
        spaced, f"{spaced} of {len(words)} have one"
    )
    return (
        f"with one the label words are {sum(report.with_space for report in words)} tokens in all, "
        f"without {sum(report.without_space for report in words)}; {share}."
    )


def _space_advice(encoder: PromptEncoder, words: Sequence[WordReport]) -> list[str]:
    """Return advice for words that stand bare where running text has a space."""
    before = encoder.task.written.query(dict.fromkeys(encoder.task.text, "x"))[-1:]
    if encoder.task.chat or before.isspace() or before in "([{<\"'":
        return []
    bare = [
        report
        for report in words
        if not report.word[:1].isspace()
        and report.with_space <= report.without_space
        and _reads_spaces(encoder, report.word)
    ]
    advice = [
        f"{report.word!r} is {report.without_space} tokens, with a leading space "
        f"{report.with_space}, as in running text: start the word with the space, and end the "
        "template without one."
        for report in bare[:MAX_ADVICE]
    ]
    if len(bare) > MAX_ADVICE:
        advice.append(f"The same goes for {len(bare) - MAX_ADVICE} more words.")
    return advice


def _advice(found: Checkup) -> list[str]:
    advice = []
    absent = [name for name, count in found.class_counts.items() if count == 0]
    if absent:
        more = f" and {len(absent) - MAX_ADVICE} more" if len(absent) > MAX_ADVICE else ""
        advice.append(
            f"There is no example of {', '.join(map(repr, absent[:MAX_ADVICE]))}{more}: nothing "
            "can be learnt about it. Add examples, or take the label out of the task."
        )
    long_words = [word for word in found.words if word.is_split or len(word.tokens) > LONG_WORD]
    if long_words:
        worst = max(long_words, key=lambda report: len(report.tokens))
        advice.append(
            f"Label words split inside a word or with more than {LONG_WORD} tokens: "
            f"{len(long_words)}, most of all {worst.word!r} ({len(worst.tokens)} tokens). Their "
            "probabilities are exact, but shorter, more common words may be learnt faster."
        )
    if found.shared_first_tokens:
        advice.append(
            "Words that share their first token are told apart by the later ones; taskfit scores "
            "the whole word, tools that read one token cannot tell them apart."
        )
    for short, long in found.prefixes[:MAX_ADVICE]:
        advice.append(
            f"The tokens of {short!r} start those of {long!r}: what follows a word decides between "
            "them, which is learned from labels; without, the shorter one mostly wins. Words that "
            "do not start each other are told apart more easily."
        )
    if len(found.prefixes) > MAX_ADVICE:
        advice.append(f"The same goes for {len(found.prefixes) - MAX_ADVICE} more pairs of words.")
    if found.num_shortened:
        advice.append(
            f"Of {found.num_encoded:,} texts {found.num_shortened:,} do not fit into "
            f"{found.max_length:,} tokens and are shortened at their end; raise model.max_length "
            "if the model allows it."
        )
    return advice
