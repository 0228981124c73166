"""Resumable training state on disk: written whole or not at all, never unpickled."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from taskfit.errors import CheckpointError
from taskfit.files import folder_atomic, write_json_atomic
from taskfit.training.distributed import TensorsOfMain, is_main, num_processes, on_main


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


class Checkpoints:
    """The folder of resumable checkpoints of one run.

    `step-N` holds state and optimizer after step N, `best-N` the weights of the best validation.
    A new one is complete before an old one is deleted. Of several processes the main one writes
    and reads, and hands the others what it read.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder, which need not exist yet."""
        self.folder = folder

    def save(self, state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
        """Save state and optimizer tensors; then drop what they replace."""
        if not is_main():
            return
        path = self.folder / f"step-{state.step:08d}"
        with folder_atomic(path) as scratch:
            save_file(_contiguous(tensors), scratch / "optimizer.safetensors")
            write_json_atomic(scratch / "state.json", dataclasses.asdict(state))
        keep = {path.name, f"best-{state.best_step:08d}"}
        for other in self.folder.iterdir():
            if other.name not in keep:
                shutil.rmtree(other, ignore_errors=True)

    def save_best(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Save the weights after a step as the best so far."""
        if not is_main():
            return
        with folder_atomic(self.folder / f"best-{step:08d}") as scratch:
            save_file(_contiguous(weights), scratch / "weights.safetensors")

    def load_best(self, step: int) -> Mapping[str, Tensor]:
        """Return the weights of the best validation.

        Raises:
            CheckpointError: If they cannot be read.
        """
        path = self.folder / f"best-{step:08d}" / "weights.safetensors"
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
            return TrainingState(**fields)
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                f"The checkpoint {steps[-1]} cannot be read: {error}. Delete that folder to go on "
                "from the one before, or start the run again in a new folder."
            ) from error

    def remove(self) -> None:
        """Delete all checkpoints of a finished run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
