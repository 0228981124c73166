"""What a curation does: sources, steps, seed; one class a step, with its documentation under it."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from taskfit.errors import SettingsError
from taskfit.settings_base import MAX_SEED, Section
from taskfit.yaml_text import read_yaml

Part = Literal["row", "prompt", "answer"]


class SourceSettings(Section):
    """A file to curate, or an evaluation set to keep clear of."""

    file: str
    """File (.json, .jsonl, .csv, .tsv, .parquet, also with .gz) or hub id."""
    kind: str | None = None
    """instruction, chat, completion, preference or text; null: recognised."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of a field where it is named otherwise, such as {output: reply}."""
    license: str | None = None
    """Licence of the texts, for the data card: its name, or a file that holds it."""


class EmptyStep(Section):
    """Remove rows without a prompt or without an answer."""

    step: Literal["empty"]


class EncodingStep(Section):
    """Remove rows with spoilt characters."""

    step: Literal["encoding"]
    max_share: float = Field(0.005, ge=0, le=1)
    """Largest share of characters that are U+FFFD, control characters, or UTF-8 that was read as
    Windows-1252 or Latin-1."""


class TruncatedStep(Section):
    """Remove rows whose answer breaks off."""

    step: Literal["truncated"]
    min_words: int = Field(40, ge=1)
    """Shorter answers are not judged (words); nor are those that end in a short line or a list."""


class RefusalsStep(Section):
    """Remove rows whose answer starts by declining, or speaks as a language model."""

    step: Literal["refusals"]
    patterns: list[str] = Field(default_factory=list)
    """Further regular expressions, without regard to case, searched in the whole answer."""


class LanguageStep(Section):
    """Remove rows in other languages, told by py3langid."""

    step: Literal["language"]
    keep: list[str] = Field(default=["en"], min_length=1)
    """Languages to keep, as ISO 639-1 codes."""
    min_characters: int = Field(60, ge=0)
    """Shorter rows are kept: their language cannot be told (characters)."""
    min_probability: float = Field(0.9, ge=0, le=1)
    """Rows are removed only where another language is at least this probable."""


class TokensStep(Section):
    """Remove rows outside limits on tokens of the target model's tokenizer."""

    step: Literal["tokens"]
    of: Part = "row"
    """row: everything, in the tokenizer's chat template where it has one; prompt; answer."""
    min: int = Field(1, ge=0)
    """Fewest tokens."""
    max: int | None = Field(2048, ge=1)
    """Most tokens; null: no limit."""


class ExactStep(Section):
    """Remove rows that are the same as an earlier one but for case, width and white space."""

    step: Literal["exact"]
    of: Part = "row"
    """What must be the same."""


class NearStep(Section):
    """Remove near duplicates; of two, the better one stays.

    Better is the longer answer, up to `prefer_up_to` tokens; then the text with the smaller
    SHA-256, so that the order of files does not matter. Rows are taken best first; one is removed
    if it is near to a row that was kept.
    """

    step: Literal["near"]
    of: Part = "row"
    """What is compared."""
    method: Literal["auto", "embedding", "minhash"] = "auto"
    """embedding: cosine of sentence embeddings; minhash: estimated share of common 5-grams of
    characters; auto: embedding up to `max_embedded` rows."""
    threshold: float = Field(0.95, gt=0, le=1)
    """Cosine from which rows are near duplicates (embedding)."""
    jaccard: float = Field(0.8, gt=0, lt=1)
    """Jaccard similarity from which rows are near duplicates (minhash)."""
    max_embedded: int = Field(100_000, ge=0)
    """Most rows for which auto embeds."""
    encoder: str = "minilm"
    """Sentence encoder: packaged, folder or hub id. It reads the first 256 tokens of a text."""
    prefer_up_to: int = Field(1024, ge=0)
    """Answers longer than this are no better for it (tokens)."""


class OverlapStep(Section):
    """Remove rows that stand in evaluation sets: prompts alike, or 13 words in a row in common."""

    step: Literal["overlap"]
    sets: dict[str, SourceSettings] = Field(default_factory=dict)
    """Evaluation sets by name; those of --against are added."""
    threshold: float | None = Field(0.95, gt=0, le=1)
    """Cosine of sentence embeddings of the prompts; null: only exact and by words."""
    words: int | None = Field(13, ge=3)
    """Words in a row, in common with an evaluation text, that tell an overlap; null: off."""
    encoder: str = "minilm"
    """Sentence encoder."""


class TopStep(Section):
    """Keep the rows with the most of something."""

    step: Literal["top"]
    k: int = Field(ge=1)
    """Rows to keep."""
    by: Literal["answer_tokens", "tokens", "score"] = "answer_tokens"
    """answer_tokens, tokens: length; score: the rows' own (columns: {score: NAME})."""
    lowest: bool = False
    """Keep the least instead."""


class DiverseStep(Section):
    """Keep rows that differ from each other as much as possible, by sentence embeddings."""

    step: Literal["diverse"]
    k: int = Field(ge=1)
    """Rows to keep."""
    of: Part = "prompt"
    """What is compared."""
    method: Literal["k-center", "k-means"] = "k-center"
    """k-center: farthest first (Gonzalez 1985), which likes odd rows; k-means: the row nearest to
    the centre of each of k clusters, which likes typical ones."""
    encoder: str = "minilm"
    """Sentence encoder."""


class ChatStep(Section):
    """Write conversations as texts in a chat template."""

    step: Literal["chat"]
    template: str | None = None
    """A name (alpaca, chatml, headings, plain) or a Jinja file; null: the tokenizer's own."""
    system: str | None = None
    """System message for conversations without one."""


Step = Annotated[
    EmptyStep
    | EncodingStep
    | TruncatedStep
    | RefusalsStep
    | LanguageStep
    | TokensStep
    | ExactStep
    | NearStep
    | OverlapStep
    | TopStep
    | DiverseStep
    | ChatStep,
    Field(discriminator="step"),
]
STEP_NAMES = (
    *("empty", "encoding", "truncated", "refusals", "language", "tokens"),
    *("exact", "near", "overlap", "top", "diverse", "chat"),
)
DEFAULT_STEPS: tuple[str | dict[str, Any], ...] = (
    *("empty", "encoding", "truncated", "refusals", "tokens", "exact"),
    # Edits are found in seconds; then there is less to embed, which finds what is worded otherwise.
    {"step": "near", "method": "minhash"},
    {"step": "near"},
)


class CurateSettings(Section):
    """A whole curation."""

    sources: list[SourceSettings] = Field(default_factory=list)
    """What to curate; files on the command line come behind these."""
    steps: list[Step] = Field(default_factory=list)
    """In the order in which they run."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Of clustering and of the hash functions of minhash."""


def load_curate_settings(path: Path | None) -> CurateSettings:
    """Read a steps file; without one, the default steps.

    Raises:
        SettingsError: Listing everything that is wrong.
    """
    if path is None:
        return curate_settings({})
    data = read_yaml(path, "steps file", SettingsError, CurateSettings)
    if not isinstance(data, dict):
        raise SettingsError(
            f"{path} holds no settings; it must have `steps:`, a list such as `- step: exact`."
        )
    return curate_settings(data, where=f"{path}: ")


def curate_settings(data: dict[str, Any], *, where: str = "") -> CurateSettings:
    """Check a nested dictionary; no `steps` at all means the default steps.

    Raises:
        SettingsError: Listing everything that is wrong.
    """
    full = {"steps": list(DEFAULT_STEPS), **data}
    if isinstance(full["steps"], list):
        # `- exact` is short for `- step: exact`.
        full["steps"] = [{"step": s} if isinstance(s, str) else s for s in full["steps"]]
    try:
        return CurateSettings.model_validate(full)
    except ValidationError as error:
        lines = [_told(problem, full) for problem in error.errors()]
        raise SettingsError(where + "\n".join(lines)) from error


def _told(problem: Any, data: dict[str, Any]) -> str:  # noqa: ANN401 - pydantic's own
    place = list(problem["loc"])
    if place[:1] == ["steps"] and len(place) > 1:
        step = data["steps"][place[1]]
        name = step.get("step") if isinstance(step, dict) else step
        # The third part is the kind of step, which the name tells already.
        rest = ".".join(str(part) for part in place[3:])
        spot = f"step {place[1] + 1} ({name})" + (f", {rest}" if rest else "")
    else:
        spot = ".".join(str(part) for part in place)
    if problem["type"].startswith("union_tag"):
        return f"{spot}: there is no such step. Allowed: {', '.join(STEP_NAMES)}."
    if problem["type"] == "extra_forbidden":
        return f"{spot}: there is no such setting; see docs/curate.md."
    message = problem["msg"].removeprefix("Value error, ")
    return f"{spot}: {message[0].lower()}{message[1:]} (found {problem['input']!r})."
