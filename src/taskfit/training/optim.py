"""AdamW on float32 masters, and the learning-rate schedule."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from taskfit.settings import TrainingSettings

FLAT = "flat"


class MasterOptimizer:
    """AdamW that keeps float32 masters of parameters that live in a shorter format.

    In bfloat16 a weight of 0.04 cannot move by less than 0.0001, so late, small updates would be
    lost; masters keep them. Gradients are added up in float32 too, so that cutting a step into
    several passes costs no precision. Float32 parameters are their own masters; all others share
    one flat master, since four hundred small adapter matrices one by one take longer than the
    arithmetic on them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> None:
        """Make masters of named parameters."""
        self.parameters = dict(parameters)
        self._short = [p for p in self.parameters.values() if p.dtype != torch.float32]
        self._masters = {n: p for n, p in self.parameters.items() if p.dtype == torch.float32}
        self._sizes = [p.numel() for p in self._short]
        if self._short:
            flat = torch.cat([p.detach().reshape(-1).float() for p in self._short])
            self._masters[FLAT] = nn.Parameter(flat)
        self._adamw = torch.optim.AdamW(
            list(self._masters.values()),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def collect_gradients(self) -> None:
        """Add the gradients of the working parameters to those of their masters."""
        if not self._short:
            return
        gradients = [
            torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1)
            for p in self._short
        ]
        flat = torch.cat(gradients).float()
        master = self._masters[FLAT]
        master.grad = flat if master.grad is None else master.grad.add_(flat)
        for p in self._short:
            p.grad = None

    def clip(self, max_norm: float) -> float:
        """Scale the whole gradient to at most `max_norm`; return its norm before that."""
        return float(nn.utils.clip_grad_norm_(self._masters.values(), max_norm))

    def step(self, learning_rate: float) -> None:
        """Update the masters, then the parameters; clear the gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.clear()
        self._copy_to_parameters()

    def clear(self) -> None:
        """Drop all gradients."""
        for p in (*self.parameters.values(), *self._masters.values()):
            p.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, as named tensors."""
        tensors = {f"master/{name}": m.detach() for name, m in self._masters.items()}
        for name, master in self._masters.items():
            for key, value in self._adamw.state.get(master, {}).items():
                tensors[f"{key}/{name}"] = value
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `state_tensors`."""
        for name, master in self._masters.items():
            master.copy_(tensors[f"master/{name}"])
            if f"step/{name}" in tensors:
                self._adamw.state[master] = {
                    key: tensors[f"{key}/{name}"].to(master.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self._copy_to_parameters()

    @torch.no_grad()
    def _copy_to_parameters(self) -> None:
        if self._short:
            parts = torch.split(self._masters[FLAT].detach(), self._sizes)
            shaped = [part.view_as(p) for part, p in zip(parts, self._short, strict=True)]
            torch._foreach_copy_(list[Tensor](self._short), shaped)


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
