"""Filters that look at one row at a time."""

import re
from collections.abc import Callable
from functools import lru_cache

from taskfit.curate.context import need_package
from taskfit.curate.items import PARTS, Item, Removal, part_of
from taskfit.curate.settings import (
    EmptyStep,
    EncodingStep,
    LanguageStep,
    RefusalsStep,
    TokensStep,
    TruncatedStep,
)
from taskfit.data.instructions import Preference, Raw
from taskfit.errors import SettingsError

# What UTF-8 looks like when it was read as Windows-1252 or Latin-1: "Ã©", "â€™", "Â ".
MOJIBAKE = re.compile(r"[ÃÂ][\u0080-\u00bf]|â€[\u0080-\u00bf™œ\u009d˜”“¦“]|ï¿½")
SPOILT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff]")
OPENING = 200
REFUSAL = re.compile(
    r"(?:^|[.!,]\s+)(?:(?:i'?m|i am|we are)\s+(?:very |so |really |terribly )?sorry,?\s+"
    r"(?:but|i (?:can(?:'t|not)|am|'m)|as an)"
    r"|i (?:can(?:'t|not)|am (?:not able|unable)|'m (?:not able|unable)|won't|will not) (?:to )?"
    r"(?:assist|help|comply|fulfil|fulfill|provide|answer|generate|create|write|complete|do|engage|"
    r"access|browse)"
    r"|(?:sorry|i apologi[sz]e),? (?:but )?(?:i|this) (?:can(?:'t|not)|am|do not|don't|is not)"
    r"|unfortunately,? i (?:can(?:'t|not)|am (?:not able|unable)))",
    re.IGNORECASE,
)
AS_A_MODEL = re.compile(
    r"\bas an? (?:ai(?: language)? (?:model|assistant)|ai\b|(?:large )?language model)|"
    r"\bi(?:'m| am) (?:just |only )?an? (?:ai(?: language)? (?:model|assistant)|language model)",
    re.IGNORECASE,
)
# Ends of sentences in several scripts, brackets, quotes, and what code and formulas end with.
ENDS = tuple(".!?…:;)]}>\"'`*_|~$%。！？」』）”’»।؟=/\\")
SHORT_LINE = 8
# Entries of lists, and lines of tags, end as they like.
LIST_ENTRY = re.compile(r"\s*(?:[-*•+–]|\d+[.)]|[a-zA-Z][.)])\s?|.*#\w+$")


def judge_empty(_: EmptyStep, item: Item) -> Removal | None:
    """Remove rows without a prompt or an answer."""
    row = item.row
    if isinstance(row, Raw):
        return None if row.text.strip() else Removal("empty text")
    if not any(m.role == "user" and m.content.strip() for m in row.prompt):
        return Removal("empty prompt")
    if not part_of(row, "answer").strip():
        return Removal("empty answer")
    if isinstance(row, Preference):
        if not row.rejected.strip():
            return Removal("empty rejected answer")
        if row.chosen == row.rejected:
            return Removal("chosen and rejected are the same")
    return None


def count_spoilt(text: str) -> int:
    """Return how many characters of a text are none, or come of a wrong encoding."""
    return len(SPOILT.findall(text)) + sum(len(m) for m in MOJIBAKE.findall(text))


def judge_encoding(step: EncodingStep, item: Item) -> Removal | None:
    """Remove rows with spoilt characters."""
    text = part_of(item.row, "row")
    spoilt = count_spoilt(text)
    if spoilt > step.max_share * max(1, len(text)):
        return Removal("spoilt characters", detail=f"{spoilt} of {len(text)} characters")
    return None


def judge_truncated(step: TruncatedStep, item: Item) -> Removal | None:
    """Remove rows whose answer breaks off.

    An answer of enough words breaks off if a code block in it is left open, or if its last line is
    longer than a heading, is no list entry, and ends in a letter, a digit, a comma or a dash.
    """
    answer = part_of(item.row, "answer").rstrip()
    if len(answer.split()) < step.min_words:
        return None
    if answer.count("```") % 2:
        return Removal("code block left open")
    last = answer.rsplit("\n", 1)[-1]
    if len(last.split()) < SHORT_LINE or answer.endswith(ENDS) or LIST_ENTRY.match(last):
        return None
    if answer[-1].isalnum() or answer[-1] in ",-–—(":
        return Removal("answer breaks off", detail=f"... {answer[-60:]}")
    return None


def judge_refusals(step: RefusalsStep, item: Item) -> Removal | None:
    """Remove rows whose answer declines or speaks as a language model."""
    own = _compiled(tuple(step.patterns))
    answer = part_of(item.row, "answer")
    opening = answer[:OPENING].replace("’", "'").strip()
    for reason, pattern in (("refusal", REFUSAL), ("speaks as a language model", AS_A_MODEL)):
        if found := pattern.search(opening):
            return Removal(reason, detail=found[0].strip())
    for pattern in own:
        if found := pattern.search(answer):
            return Removal("refusal by a pattern of yours", detail=found[0])
    return None


@lru_cache
def _compiled(patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
    except re.error as error:
        raise SettingsError(
            f"refusals: {error.pattern!r} is not a regular expression: {error}."
        ) from error


def judge_language(step: LanguageStep, item: Item) -> Removal | None:
    """Remove rows in other languages."""
    identify = _identifier()
    text = part_of(item.row, "row")
    if len(text) < step.min_characters:
        return None
    language, probability = identify(text)
    if language in step.keep or probability < step.min_probability:
        return None
    return Removal(f"language {language}", detail=f"probability {probability:.2f}")


@lru_cache(maxsize=1)
def _identifier() -> Callable[[str], tuple[str, float]]:
    """Return what tells the most probable language of a text (ISO 639-1) and its probability."""
    need_package("py3langid", "the step `language`")
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def identify(text: str) -> tuple[str, float]:
        language, probability = identifier.classify(text)
        return str(language), float(probability)

    return identify


def judge_tokens(step: TokensStep, item: Item) -> Removal | None:
    """Remove rows outside limits on tokens."""
    if step.max is not None and step.max < step.min:
        raise SettingsError(f"tokens: max is {step.max}, below min, {step.min}.")
    found = dict(zip(PARTS, item.counts, strict=True))[step.of]
    if found < step.min:
        return Removal(f"{step.of} under {step.min:,} tokens", detail=f"{found:,} tokens")
    if step.max is not None and found > step.max:
        return Removal(f"{step.of} over {step.max:,} tokens", detail=f"{found:,} tokens")
    return None
