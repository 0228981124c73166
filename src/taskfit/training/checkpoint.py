"""Resumable training state on disk: written whole or not at all, never unpickled."""

import dataclasses
import json
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from taskfit.errors import CheckpointError
from taskfit.files import folder_atomic, write_json_atomic
from taskfit.training.distributed import TensorsOfMain, is_main, num_processes, on_main

# Float32 masters and two moments, and a guess of the disk until it has been measured.
BYTES_PER_WEIGHT, BYTES_PER_SECOND = 12, 4e8
LARGEST_SHARE = 0.05  # of the time that a checkpoint saves
LONGEST_UNSAVED = 600.0  # seconds of training
UNNOTICED = 1.0  # seconds of writing


@dataclass(slots=True)
class TrainingState:
    """Where training stands. Data order and dropout follow from the seed and the step.

    Attributes:
        step: Optimizer steps done.
        best_step: Step whose weights would be kept, 0 before any validation.
        best_losses: Losses of the validation examples at the best validation; empty before any.
        bad_validations: Validations since the step that would be kept.
        num_tokens: Unique tokens run.
        num_padded_tokens: Tokens that padding each step to its longest example would have run.
        seconds: Time spent in training, over all interruptions.
        token_budget: Most unique tokens in one forward pass; shrinks when memory runs out.
        stopped: Training ended before its last step.
    """

    step: int = 0
    best_step: int = 0
    best_losses: list[float] = field(default_factory=list)
    bad_validations: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    seconds: float = 0.0
    token_budget: int = 0
    stopped: bool = False


class SavePace:
    """When a resumable checkpoint pays.

    Every so many steps where that is set. Else at validations, and between them after
    `LONGEST_UNSAVED`, as long as writing takes a small share of the time that it saves: the state
    of a full fine-tuning has 12 bytes a weight, and a short training would mostly write.
    """

    def __init__(
        self,
        trained: Iterable[Tensor],
        save_every: int | None,
        validates_every: int,
        total_steps: int,
    ) -> None:
        """Start with a guess of how long a checkpoint takes.

        Args:
            trained: What is trained.
            save_every: Steps between checkpoints, where that is set.
            validates_every: Steps between validations.
            total_steps: Steps of the training.
        """
        self._every = save_every
        self._validates_every = validates_every
        self._total_steps = total_steps
        num_bytes = sum(tensor.numel() for tensor in trained) * BYTES_PER_WEIGHT
        self._write_seconds = num_bytes / BYTES_PER_SECOND
        self._saved_at = 0.0

    def is_end(self, state: TrainingState) -> bool:
        """Return whether training ends with this step."""
        return state.stopped or state.step == self._total_steps

    def is_due(self, state: TrainingState) -> bool:
        """Return whether to save after this step, the same in all processes."""
        if self.is_end(state):
            return True  # evaluation follows, which takes its time
        if self._every is not None:
            return state.step % self._every == 0
        return on_main(lambda: self._pays(state))

    def _pays(self, state: TrainingState) -> bool:
        unsaved = state.seconds - self._saved_at
        if unsaved * LARGEST_SHARE < self._write_seconds and self._write_seconds > UNNOTICED:
            return False
        return state.step % self._validates_every == 0 or unsaved >= LONGEST_UNSAVED

    def goes_on_from(self, state: TrainingState) -> None:
        """Count the time that is not saved from here on."""
        self._saved_at = state.seconds

    @contextmanager
    def saving(self, state: TrainingState) -> Iterator[None]:
        """Measure what a checkpoint takes."""
        started = time.perf_counter()
        yield
        self._write_seconds = time.perf_counter() - started
        self.goes_on_from(state)


class Checkpoints:
    """The folder of resumable checkpoints of one run.

    `step-N` holds state and optimizer after step N, `best-N` the weights of the best validation.
    A new one is complete before an old one is deleted. Of several processes the main one writes
    and reads, and hands the others what it read.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder, which need not exist yet."""
        self.folder = folder
        self._best_of_last = ""  # what the last `step-N` goes on from

    def save(self, state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
        """Save state and optimizer tensors; then drop what they replace."""
        if not is_main():
            return
        path = self.folder / f"step-{state.step:08d}"
        with folder_atomic(path) as scratch:
            save_file(_contiguous(tensors), scratch / "optimizer.safetensors")
            write_json_atomic(scratch / "state.json", dataclasses.asdict(state))
        self._best_of_last = _best_name(state.best_step)
        self._drop("*", but={path.name, self._best_of_last})

    def save_best(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Save the weights after a step as the best so far."""
        if not is_main():
            return
        with folder_atomic(self.folder / _best_name(step)) as scratch:
            save_file(_contiguous(weights), scratch / "weights.safetensors")
        self._drop("best-*", but={_best_name(step), self._best_of_last})

    def _drop(self, pattern: str, *, but: Collection[str]) -> None:
        for path in self.folder.glob(pattern):
            if path.name not in but:
                shutil.rmtree(path, ignore_errors=True)

    def load_best(self, step: int) -> Mapping[str, Tensor]:
        """Return the weights of the best validation.

        Raises:
            CheckpointError: If they cannot be read.
        """
        path = self.folder / _best_name(step) / "weights.safetensors"
        weights: dict[str, Tensor] = {}

        def read() -> None:
            try:
                weights.update(load_file(path))
            except (OSError, ValueError, SafetensorError) as error:
                raise CheckpointError(
                    f"The best weights in {path} cannot be read: {error}. Start the run again in "
                    "a new folder."
                ) from error

        on_main(read)
        return weights if num_processes() == 1 else TensorsOfMain(weights)

    def load(self) -> tuple[TrainingState, Mapping[str, Tensor]] | None:
        """Return the last complete checkpoint, or None if there is none.

        Raises:
            CheckpointError: If it cannot be read.
        """
        tensors: dict[str, Tensor] = {}
        state = on_main(lambda: self._read(tensors))
        if state is None:
            return None
        return state, tensors if num_processes() == 1 else TensorsOfMain(tensors)

    def _read(self, tensors: dict[str, Tensor]) -> TrainingState | None:
        """Return the last state and fill in its tensors."""
        if not self.folder.is_dir():
            return None
        steps = sorted(self.folder.glob("step-*"))
        if not steps:
            return None
        try:
            fields = json.loads((steps[-1] / "state.json").read_text(encoding="utf-8"))
            tensors.update(load_file(steps[-1] / "optimizer.safetensors"))
            state = TrainingState(**fields)
            self._best_of_last = _best_name(state.best_step)
            return state
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                f"The checkpoint {steps[-1]} cannot be read: {error}. Delete that folder to go on "
                "from the one before, or start the run again in a new folder."
            ) from error

    def remove(self) -> None:
        """Delete all checkpoints of a finished run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _best_name(step: int) -> str:
    return f"best-{step:08d}"


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
