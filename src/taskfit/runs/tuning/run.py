"""A run that tunes a model on rows of text: answers to learn (sft), or pairs of them (dpo)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskfit.data.instructions import InstructionRow
from taskfit.files import read_jsonl, write_text_atomic
from taskfit.methods.dpo import Dpo
from taskfit.methods.sft import Reference, Sft, share_of_tokens_saved
from taskfit.methods.table import METHODS
from taskfit.models.load import LoadedModel
from taskfit.runs.kind import Measured, RunKind, Size
from taskfit.runs.run import base_model, no_validation_note
from taskfit.runs.seen import Seen, seen_in
from taskfit.runs.train_method import train_items
from taskfit.runs.tuning.data import TuningData, prepare_tuning
from taskfit.runs.tuning.measure import (
    Metrics,
    PreferenceMetrics,
    measure,
    pair_log_probs,
    to_plain,
)
from taskfit.runs.tuning.model import Decoding, TunedModel
from taskfit.runs.tuning.rows import prompt_of, prompt_text, reference_of
from taskfit.screen import Screen, SilentScreen
from taskfit.tasks.chat import EncodedPreference, EncodedText
from taskfit.tasks.control_tokens import control_note
from taskfit.tasks.shortening import shortened_note
from taskfit.training.checkpoint import TrainingState
from taskfit.training.distributed import gather, on_main
from taskfit.training.loop import Validation
from taskfit.training.trackers import Trackers

SAMPLES = "samples.jsonl"
BEFORE = "before"


class TuningRun(RunKind[TunedModel]):
    """A run of sft or dpo.

    Attributes:
        data: Its rows.
        items: The same encoded, by set.
        reference: What the model before training says of each pair of dpo.
        samples: Held-out rows whose prompts are answered as training goes on.
    """

    data: TuningData
    items: dict[str, Sequence[Any]]
    reference: Reference
    samples: list[InstructionRow]
    _before: dict[str, Metrics]
    _adapted: Sft | Dpo

    def read(self) -> Mapping[str, str]:
        """Read the rows; return the hash of each set."""
        seen = None if self.origin is None else self.origin.seen or Seen()
        self.data = prepare_tuning(self.settings, seen=seen)
        return self.data.fingerprint

    def seen(self) -> Seen:
        """Return which row stands in which set."""
        before = None if self.origin is None else self.origin.seen
        return seen_in(self.data.examples, (), before)

    def tell(self) -> None:
        """Say what there is no validation set for; rows are counted once they are encoded."""
        if not self.data.validation:
            self.screen.note(no_validation_note(self.settings))

    @property
    def trains(self) -> bool:
        """Return that weights are trained."""
        return True

    def size(self) -> Size:
        """Return how many rows there are."""
        return Size(len(self.data.train), num_labels=0, mean_words=0.0)

    def load(self, model: LoadedModel | None) -> None:
        """Load the model."""
        origin, start = self.origin, None
        loaded = base_model(self.settings, model, self.memory, self.screen, origin=origin)
        if origin is not None:
            start = origin.weights
            if self.settings.tuning.chat_template is None:
                loaded.tokenizer.chat_template = origin.chat_template
        self.fitted = TunedModel(self.settings, loaded)
        method = METHODS[self.settings.method.name]
        assert issubclass(method, (Sft, Dpo)), "a run of tuning has a method of it"
        self._adapted = method(loaded, self.settings, start=start)
        if start is not None:
            self._adapted.put_adapter()  # the model before this training is that of the other run

    def start(self, *, resume: bool) -> None:
        """Encode all rows, measure the model as it is, and answer the sample prompts."""
        self.items, self.reference = {}, {}
        self._encode()
        self.samples = self._choose_samples()
        if not resume:
            (self.folder / SAMPLES).unlink(missing_ok=True)
        self._before = self._measure_all(BEFORE)
        self.memory.stage("forward")

    def train(self, trackers: Trackers) -> tuple[TrainingState, int]:
        """Train on the rows."""
        loss = self._adapted.objective(reference=self.reference, gather=gather)
        return train_items(
            self,
            self._adapted,
            self.items["train"],
            objective=lambda: loss,
            rendered=self._rendered,
            validate=(lambda: self._validate(loss.step)) if "validation" in self.items else None,
            validates_start=False,  # the model before training has been measured already
            trackers=trackers,
        )

    def save(self) -> None:
        """Write what loading needs."""
        self.fitted.save(self.folder, weights=self.weights, name=self.name)

    def measure(self, *, baselines: bool) -> Measured:
        """Measure every held-out set once more; the record keeps both times."""
        after = to_plain(self._measure_all("after"))
        details = {"before": to_plain(self._before), "after": after}
        metrics = {
            f"{name}/{metric}": float(value)
            for name, found in after.items()
            for metric, value in found.items()
        }
        return Measured({}, metrics, details=details)

    @property
    def method(self) -> Sft | Dpo:
        """Return what is trained."""
        return self._adapted

    @property
    def model(self) -> LoadedModel:
        """Return the language model."""
        return self.fitted.model

    @property
    def model_name(self) -> str:
        """Return the model as the user named it."""
        return self.model.name

    @property
    def task_name(self) -> str:
        """Return what the rows were read as, and the file's name."""
        return f"{self.data.format} from {Path(str(self.settings.data.train)).name}"

    @property
    def num_train(self) -> int:
        """Return the rows that were learned from."""
        return len(self.items["train"])

    def _encode(self) -> None:
        """Encode all sets, tell about them, and score what preferences are compared with."""
        screen, data = self.screen, self.data
        sets: dict[str, Sequence[InstructionRow]] = {"train": data.train, **data.sets}
        num_empty = 0
        with screen.progress("encoding", sum(map(len, sets.values()))) as advance:
            for name, rows in sets.items():
                self.items[name], empty = self.fitted.encode(rows)
                num_empty += empty
                advance(len(rows))
        counts = ", ".join(f"{name} {len(items):,}" for name, items in self.items.items())
        screen.note(f"rows read as {data.format}; {counts}")
        if data.num_dropped:
            screen.note(f"removed {data.num_dropped:,} training rows that stand in another set")
        for name, items in self.items.items():
            cut = sum(item.num_tokens_cut > 0 for item in items)
            if cut and name != "train":  # the loop says it of those
                screen.note(shortened_note(name, cut, len(items)))
        if num_empty:
            screen.note(
                f"left out {num_empty:,} rows whose answers lie behind "
                f"{self.fitted.encoder.max_length} tokens (model.max_length)"
            )
        found = [
            (row.id, self.fitted.encoder.control_tokens_in(row))
            for rows in sets.values()
            for row in rows
        ]
        allowed = self.settings.task.allow_control_tokens
        control = control_note(found, allowed=allowed, what="rows")
        for note in (*data.notes, *([] if control is None else [control])):
            screen.note(note)
        texts = [text for item in self.items["train"] for text in _texts_of(item)]
        learned = sum(text.num_learned for text in texts)
        total = sum(text.num_tokens for text in texts)
        screen.note(
            f"{total:,} training tokens, {learned:,} of them learned; "
            f"{share_of_tokens_saved(texts):.1%} stand at a shared start and run once where they "
            "meet"
        )
        if self.settings.method.name == "dpo":
            # The reference is the model as it is now; with it nothing needs to be kept in memory.
            pairs = list(
                {pair.id: pair for found in self.items.values() for pair in found}.values()
            )
            self.reference = pair_log_probs(
                self.fitted, pairs, label="scoring the reference", screen=screen
            )

    def _rendered(self) -> list[str]:
        """Return the first row as the model sees it, what is learned between guillemets."""
        decode = self.fitted.model.tokenizer.decode
        (text, *_) = _texts_of(self.items["train"][0])
        parts, start = [], 0
        changes = [
            i for i in range(1, text.num_tokens) if text.is_learned[i] != text.is_learned[i - 1]
        ]
        for end in [*changes, text.num_tokens]:
            piece = decode(text.ids[start:end].tolist())
            parts.append(f"«{piece}»" if text.is_learned[start] else piece)
            start = end
        return [f"{text.id}: {''.join(parts)}"]

    def _measure_all(self, when: str) -> dict[str, Metrics]:
        """Measure every held-out set, and answer the sample prompts."""
        found = {
            name: measure(
                self.fitted,
                items,
                reference=self.reference,
                # Before training the model is its own reference.
                policy=self.reference if when == BEFORE else None,
                label=f"{name} {when}",
                screen=self.screen,
            )
            for name, items in self.items.items()
            if name != "train"
        }
        self._sample(when, self.screen)
        return found

    def _validate(self, step: int) -> Validation:
        """Measure the validation set after a step, and answer the sample prompts."""
        metrics = measure(
            self.fitted,
            self.items["validation"],
            reference=self.reference,
            label="validation",
            screen=SilentScreen(),
        )
        if isinstance(metrics, PreferenceMetrics):
            shown = {name: getattr(metrics, name) for name in ("reward_accuracy", "reward_margin")}
        else:
            shown = {"perplexity": metrics.perplexity}
        # Its bar would stand in the training's.
        self._sample(f"step {step}", SilentScreen())
        return Validation(metrics.loss, shown)

    def _sample(self, when: str, screen: Screen) -> None:
        """Answer some held-out prompts, once at each time, and keep the answers for the report."""
        if self.samples:
            # The main process answers, the others wait; where it fails, all end with its message.
            on_main(lambda: self._answer_samples(when, screen))

    def _answer_samples(self, when: str, screen: Screen) -> None:
        records = read_jsonl(self.folder / SAMPLES)
        # A run that resumes comes by the same steps again.
        if any(record["when"] == when for record in records):
            return
        prompts = [prompt_of(row) for row in self.samples]
        decoding = Decoding(max_new_tokens=self.settings.tuning.max_new_tokens)
        with screen.progress(f"answering samples {when}", len(prompts)) as advance:
            answers = self.fitted.answer(prompts, decoding, advance=advance)
        records += [
            {
                "when": when,
                "id": row.id,
                "prompt": prompt_text(row),
                "reference": reference_of(row),
                "answer": answer,
            }
            for row, answer in zip(self.samples, answers, strict=True)
        ]
        # All answers of one time or none.
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_text_atomic(self.folder / SAMPLES, "".join(lines))

    def _choose_samples(self) -> list[InstructionRow]:
        """Return the first held-out rows whose prompts leave room for an answer."""
        tuning, chosen = self.settings.tuning, list[InstructionRow]()
        for row in self.data.validation or self.data.train:
            if len(chosen) == tuning.num_samples:
                break
            if self.fitted.room_after(prompt_of(row)) >= tuning.max_new_tokens:
                chosen.append(row)
        if len(chosen) < min(tuning.num_samples, len(self.data.validation or self.data.train)):
            self.screen.note(
                f"only {len(chosen)} prompts leave room for a sample answer of "
                f"{tuning.max_new_tokens} tokens (tuning.max_new_tokens)"
            )
        return chosen


def _texts_of(item: EncodedText | EncodedPreference) -> list[EncodedText]:
    return [item] if isinstance(item, EncodedText) else [item.chosen, item.rejected]
