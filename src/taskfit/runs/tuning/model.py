"""A tuned model: what measures, generates and exports, before training and from its folder."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import GenerationConfig

from taskfit.data.instructions import Conversation, InstructionRow, Preference, Raw
from taskfit.errors import PromptError
from taskfit.files import write_json_atomic
from taskfit.methods.generation import generate_texts, generation_config
from taskfit.methods.sft import sequence_log_probs
from taskfit.models.load import LoadedModel
from taskfit.runs.records import TUNED_FILE, library_versions
from taskfit.runs.saved import Weights, load_fitted_model, saved_run, settings_for_prediction
from taskfit.runs.shared_bases import SharedBases
from taskfit.runs.tuning.rows import Prompt, for_people
from taskfit.settings import RunSettings
from taskfit.tasks.chat import ChatEncoder, EncodedPreference, EncodedText, find_template

FloatArray = NDArray[np.float64]
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are generated.

    Attributes:
        max_new_tokens: Longest answer (tokens).
        temperature: 0: the likeliest token each time; above: sampled.
        top_p: Share of the probability that sampling keeps.
        stop: Texts at which an answer ends; they are not part of it.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


class TunedModel:
    """A causal language model with its chat template.

    Attributes:
        settings: Of the run.
        model: The model.
        encoder: Turns rows into token ids.
    """

    def __init__(self, settings: RunSettings, model: LoadedModel) -> None:
        """Put the run's chat template on the tokenizer."""
        self.settings = settings
        self.model = model
        if settings.tuning.chat_template is not None:
            model.tokenizer.chat_template = find_template(settings.tuning.chat_template)
        limit, requested = model.tree.max_length, settings.model.max_length
        self.encoder = ChatEncoder(
            model.tokenizer,
            max_length=min(limit, requested) if requested else limit,
            turns=settings.tuning.turns,
            allow_control_tokens=settings.task.allow_control_tokens,
        )

    def encode(
        self, rows: Sequence[InstructionRow], *, check: bool = True
    ) -> tuple[list[EncodedText] | list[EncodedPreference], int]:
        """Encode rows of one kind; return them and how many had no token left to learn.

        Args:
            rows: The rows.
            check: Whether it is an error if none has anything to learn.

        Raises:
            PromptError: If a row cannot be rendered, or none has anything to learn.
        """
        if isinstance(rows[0], Preference):
            pairs = self.encoder.preferences([r for r in rows if isinstance(r, Preference)])
            kept = [p for p in pairs if p.chosen.num_learned and p.rejected.num_learned]
            if check:
                self._check_some(kept, rows)
            return kept, len(pairs) - len(kept)
        texts = self._texts(rows)
        learned = [text for text in texts if text.num_learned]
        if check:
            self._check_some(learned, rows)
        return learned, len(texts) - len(learned)

    def log_probs(
        self, texts: Sequence[EncodedText], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return the summed log-probability of each row's learned tokens, (N,)."""
        budget = self.settings.training.score_token_budget
        return sequence_log_probs(self.model.tree, texts, token_budget=budget, advance=advance)

    def answer(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        *,
        advance: Advance | None = None,
    ) -> list[str]:
        """Return an answer to each prompt.

        Args:
            prompts: Turns up to the answer, or texts to go on with.
            decoding: How to generate.
            advance: Called with the number of prompts just finished.

        Raises:
            PromptError: If a prompt cannot be rendered, or leaves no room for an answer.
        """
        ids = [self._checked(prompt, decoding.max_new_tokens) for prompt in prompts]
        stop = self._stop(decoding)
        answers = generate_texts(self.model, ids, self._config(decoding), advance=advance)
        return [cut_at(answer, stop).strip() for answer in answers]

    def stream(self, prompt: Prompt, decoding: Decoding, *, write: Callable[[str], None]) -> str:
        """Return an answer to one prompt, handed over piece by piece while it is written.

        Args:
            prompt: Turns up to the answer, or a text to go on with.
            decoding: How to generate.
            write: Called with each piece; what they hold together is the answer.

        Raises:
            PromptError: As `answer`.
        """
        ids = self._checked(prompt, decoding.max_new_tokens)
        stop = self._stop(decoding)
        valve = Valve(write, stop)
        (answer,) = generate_texts(self.model, [ids], self._config(decoding), write=valve.take)
        valve.close()
        return cut_at(answer, stop).strip()

    def room_after(self, prompt: Prompt) -> int:
        """Return how many tokens an answer to a prompt may have; negative: it does not fit.

        Raises:
            PromptError: If the prompt cannot be rendered.
        """
        return self.model.tree.max_length - len(self.prompt_ids(prompt))

    def _config(self, decoding: Decoding) -> GenerationConfig:
        return generation_config(
            self.model,
            max_new_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            stop_ids=self.end_of_turn()[0],
            stop=self._stop(decoding),
        )

    def end_of_turn(self) -> tuple[list[int], str]:
        """Return what the chat template writes right behind an answer.

        Returns:
            The special token; or, where the tokenizer has none for it, the text.
        """
        try:
            text = self.encoder.end_of_turn()
        except PromptError:
            return [], ""  # a template that wants other turns, or none; the end token serves
        special = set(self.model.tokenizer.all_special_ids)
        behind = [i for i in self.encoder.plain_ids(text) if i in special]
        return behind[:1], "" if behind else text.strip()

    def _stop(self, decoding: Decoding) -> tuple[str, ...]:
        """Return the texts at which an answer ends."""
        _, end = self.end_of_turn()
        return (*decoding.stop, end) if end else decoding.stop

    def save(self, folder: Path, *, weights: Weights, name: str) -> None:
        """Write what loading needs beside the weights."""
        write_json_atomic(
            folder / TUNED_FILE,
            {
                "method": self.settings.method.name,
                "name": name,
                "weights": weights,
                "model": self.model.name,
                "revision": self.model.revision,
                "dtype": str(self.model.tree.model.dtype).removeprefix("torch."),
                "chat_template": self.model.tokenizer.chat_template,
                "versions": library_versions(),
            },
        )

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: str = "auto",
        allow_other_base: bool = False,
        bases: SharedBases | None = None,
    ) -> "TunedModel":
        """Load the model of a finished run; see `load_run`.

        Raises:
            CheckpointError: If the folder holds no finished tuning run, or part of it is missing.
        """
        hint = "Give the folder that `taskfit fit --method sft --out` made."
        with saved_run(folder, TUNED_FILE, what="tuned model", hint=hint) as saved:
            settings, _ = settings_for_prediction(
                folder, saved, device=device, allow_other_base=allow_other_base
            )
            template, weights = saved["chat_template"], saved["weights"]
        model = load_fitted_model(settings, folder, weights, bases=bases)
        if bases is not None:  # runs have templates of their own
            model = replace(model, tokenizer=copy.deepcopy(model.tokenizer))
        model.tokenizer.chat_template = template
        tuning = settings.tuning.model_copy(update={"chat_template": None})
        return cls(settings.model_copy(update={"tuning": tuning}), model)

    def _texts(self, rows: Sequence[InstructionRow]) -> list[EncodedText]:
        if isinstance(rows[0], Raw):
            raw = [row for row in rows if isinstance(row, Raw)]
            return self.encoder.raw(raw, end_id=self.model.tokenizer.eos_token_id)
        return self.encoder.conversations([r for r in rows if isinstance(r, Conversation)])

    def _check_some(self, kept: Sequence[Any], rows: Sequence[InstructionRow]) -> None:
        if not kept:
            raise PromptError(
                f"All of the {len(rows)} rows from {rows[0].id} on lose their answers at "
                f"{self.encoder.max_length} tokens. Raise model.max_length, or drop long rows with "
                "`taskfit curate`."
            )

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return a prompt as token ids; none of its control tokens is one that a user wrote.

        Raises:
            PromptError: If the prompt cannot be rendered.
        """
        if isinstance(prompt, str):
            return self.encoder.text_ids(prompt)
        return self.encoder.prompt_ids(prompt)

    def _checked(self, prompt: Prompt, room: int) -> NDArray[np.int64]:
        ids = self.prompt_ids(prompt)
        if len(ids) + room > self.model.tree.max_length:
            raise PromptError(
                f"A prompt of {len(ids)} tokens and an answer of {room} are more than the "
                f"{self.model.tree.max_length} tokens of {self.model.name}: "
                f"{for_people(prompt)[:60]!r}. Shorten the prompt, or ask for fewer tokens."
            )
        if not ids:
            raise PromptError("A prompt is empty, and this model has no token to start from.")
        return np.array(ids, dtype=np.int64)


class Valve:
    """Lets through what is surely part of an answer: not a stop text, nor what may become one.

    Attributes:
        is_over: Whether a stop text came.
    """

    def __init__(self, write: Callable[[str], None], stop: Sequence[str]) -> None:
        self._write = write
        self._stop = [mark for mark in stop if mark]
        self._held = ""
        self.is_over = False

    def take(self, piece: str) -> None:
        """Take a piece of text."""
        if self.is_over:
            return
        text = self._held + piece
        kept = cut_at(text, self._stop)
        self.is_over = len(kept) < len(text)
        ends = (n for mark in self._stop for n in range(1, len(mark)) if text.endswith(mark[:n]))
        held = 0 if self.is_over else max(ends, default=0)
        self._held = kept[len(kept) - held :]
        if len(kept) > held:
            self._write(kept[: len(kept) - held])

    def close(self) -> None:
        """Let the rest through."""
        if self._held and not self.is_over:
            self._write(self._held)


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first of some texts in it."""
    places = [place for place in (text.find(mark) for mark in stop if mark) if place >= 0]
    return text[: min(places)] if places else text
