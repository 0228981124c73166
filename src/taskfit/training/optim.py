"""AdamW on float32 masters, and the learning-rate schedule."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from taskfit.settings import TrainingSettings


class MasterOptimizer:
    """AdamW that keeps float32 copies of parameters that live in a shorter format.

    In bfloat16 a weight of 0.04 cannot move by less than 0.0001, so late, small updates would be
    lost; masters keep them. Gradients are added up in float32 too, so that cutting a step into
    several passes costs no precision. Float32 parameters are their own masters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> None:
        """Make masters of named parameters."""
        self.parameters = dict(parameters)
        self.masters = {
            name: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())
            for name, p in self.parameters.items()
        }
        self._adamw = torch.optim.AdamW(
            list(self.masters.values()),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            foreach=True,
        )

    def collect_gradients(self) -> None:
        """Add the gradients of the working parameters to those of their masters."""
        for name, p in self.parameters.items():
            master = self.masters[name]
            if p is master or p.grad is None:
                continue
            if master.grad is None:
                master.grad = p.grad.float()
            else:
                master.grad.add_(p.grad)
            p.grad = None

    def clip(self, max_norm: float) -> float:
        """Scale the whole gradient to at most `max_norm`; return its norm before that."""
        norm = nn.utils.clip_grad_norm_(self.masters.values(), max_norm)
        return float(norm)

    def step(self, learning_rate: float) -> None:
        """Update the masters, then the parameters; clear the gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.clear()
        working = [p for name, p in self.parameters.items() if p is not self.masters[name]]
        masters = [m for name, m in self.masters.items() if m is not self.parameters[name]]
        if working:
            with torch.no_grad():
                torch._foreach_copy_(working, masters)

    def clear(self) -> None:
        """Drop all gradients."""
        for p in (*self.parameters.values(), *self.masters.values()):
            p.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, as named tensors."""
        tensors = {f"master/{name}": m.detach() for name, m in self.masters.items()}
        for name, master in self.masters.items():
            for key, value in self._adamw.state.get(master, {}).items():
                tensors[f"{key}/{name}"] = value
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `state_tensors`."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(tensors[f"master/{name}"])
                if self.parameters[name] is not master:
                    self.parameters[name].copy_(master)
                moments = ("step", "exp_avg", "exp_avg_sq")
                if f"step/{name}" in tensors:
                    self._adamw.state[master] = {
                        key: tensors[f"{key}/{name}"].clone() for key in moments
                    }


def learning_rate_at(step: int, *, total_steps: int, settings: TrainingSettings) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up, then linear decay.

    The first step already moves (1 / warm-up of the peak), the last one still does.
    """
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = round(settings.warmup_fraction * total_steps)
    if step < warmup:
        share = (step + 1) / warmup
    else:
        share = (total_steps - step) / max(1, total_steps - warmup)
    return settings.learning_rate * share
