"""AdamW on float32 masters, loss scaling, and the learning-rate schedule."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from taskfit.errors import TrainingError
from taskfit.models.quantize import require_bitsandbytes
from taskfit.settings import TrainingSettings, known
from taskfit.training.distributed import num_processes, sum_over_processes, sum_tensors
from taskfit.training.sharding import is_sharded, local_part, part_of_whole, whole_on_main

FLAT = "flat"
# What bitsandbytes keeps for a master in 8 bits, and for one of under 4096 elements in float32.
MOMENTS_8BIT = ("state1", "state2", "absmax1", "absmax2")
# Its code tables are the same for all masters and stored once.
CODE_TABLES = {"qmap1": "dynamic", "qmap2": "udynamic"}
# The numbers of torch.amp.GradScaler.
INITIAL_SCALE = 2.0**16
SCALE_GROWTH = 2.0
SCALE_BACKOFF = 0.5
GROWTH_INTERVAL = 2000
# Below this, gradients are not finite for another reason than the scale (the bound of fairseq).
MIN_SCALE = 1e-4


class LossScale:
    """A factor on the loss that keeps small float16 gradients from becoming zero.

    Micikevicius et al. 2018 (arXiv:1710.03740), section 3.2, with the rule of
    torch.amp.GradScaler: half the scale after a gradient that is not finite, twice after 2000
    steps in a row without one. GradScaler itself searches every gradient again for what is not
    finite; here the norm tells, which is computed anyway. The scale is a power of two, so scaling
    rounds nothing.

    Attributes:
        value: The factor now.
        num_good_steps: Steps since it last changed.
    """

    def __init__(self) -> None:
        self.value = INITIAL_SCALE
        self.num_good_steps = 0

    def update(self, *, finite: bool) -> None:
        """Take note of a step.

        Raises:
            TrainingError: If not even the smallest scale gives finite gradients.
        """
        if finite:
            self.num_good_steps += 1
            if self.num_good_steps == GROWTH_INTERVAL:
                self.value *= SCALE_GROWTH
                self.num_good_steps = 0
            return
        self.value *= SCALE_BACKOFF
        self.num_good_steps = 0
        if self.value < MIN_SCALE:
            raise TrainingError(
                f"Gradients in float16 are not finite, although the loss scale was halved down to "
                f"{self.value:.1g}. Compute in model.dtype=float32, or in bfloat16 where the "
                "device has it."
            )


class MasterOptimizer:
    """AdamW that keeps float32 masters of parameters that live in a shorter format.

    In bfloat16 a weight of 0.04 cannot move by less than 0.0001, so late, small updates would be
    lost; masters keep them. Gradients are added up in float32 too, so that cutting a step into
    several passes costs no precision. Float32 parameters are their own masters; all others share
    one flat master, since four hundred small adapter matrices one by one take longer than the
    arithmetic on them.

    A step is: `scale_loss(loss).backward()` and `collect_gradients()` for each forward pass, then
    `sum_gradients`, `clip` and `step`. Of a parameter that is sharded over processes (FSDP2), this
    process has the master of its own shard; checkpoints hold whole tensors, so that any number of
    processes can go on from them.

    Attributes:
        parameters: The working parameters by name.
        note: What the screen should say of the optimizer, or None.
        loss_scale: The loss scale if a parameter is in float16, else None.
        num_skipped: Steps skipped so far because a gradient was not finite (float16 only).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> None:
        """Make masters of named parameters.

        Raises:
            ModelError: If the optimizer needs bitsandbytes and it is not installed.
        """
        self.parameters = dict(parameters)
        self._short = [p for p in self.parameters.values() if p.dtype != torch.float32]
        long = {n: p for n, p in self.parameters.items() if p.dtype == torch.float32}
        # A shard and its master are the same memory: AdamW updates the parameter through it.
        self._masters = {
            n: nn.Parameter(local_part(p)) if is_sharded(p) else p for n, p in long.items()
        }
        self._sharded = {n for n, p in long.items() if is_sharded(p)}
        self._sizes = [local_part(p).numel() for p in self._short]
        if self._short:
            flat = torch.cat([local_part(p).reshape(-1).float() for p in self._short])
            self._masters[FLAT] = nn.Parameter(flat)
            if any(map(is_sharded, self._short)):
                self._sharded.add(FLAT)
        self.note: str | None = None
        self._in_8_bits = settings.optimizer != "adamw"
        self._adamw = self._make_adamw(settings)
        in_float16 = any(p.dtype == torch.float16 for p in self._short)
        self.loss_scale = LossScale() if in_float16 else None
        self.num_skipped = 0
        # Of this step's gradient; None until `clip` has looked at it.
        self._finite: bool | None = None

    def _make_adamw(self, settings: TrainingSettings) -> Any:  # noqa: ANN401 - bitsandbytes' is untyped
        masters = list(self._masters.values())
        if not self._in_8_bits:
            return torch.optim.AdamW(
                masters,
                lr=0.0,  # set at each step
                weight_decay=settings.weight_decay,
                fused=True,
            )
        package = require_bitsandbytes(f"training.optimizer={settings.optimizer}")
        paged = settings.optimizer == "paged_adamw8bit"
        if paged and any(master.device.type == "cpu" for master in masters):
            paged = False
            self.note = "paged_adamw8bit on a CPU: nothing to page, the same as adamw8bit"
        return package.optim.AdamW8bit(
            masters,
            lr=0.0,  # set at each step
            weight_decay=settings.weight_decay,
            is_paged=paged,
        )

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return the loss to call `backward` on: scaled if a parameter is in float16."""
        return loss if self.loss_scale is None else loss.float() * self.loss_scale.value

    def collect_gradients(self) -> None:
        """Add the gradients of the working parameters to those of their masters, still scaled."""
        if not self._short:
            return
        gradients = [
            torch.zeros_like(local_part(p)).reshape(-1)
            if p.grad is None
            else local_part(p.grad).reshape(-1)
            for p in self._short
        ]
        master = self._masters[FLAT]
        flat = torch.empty_like(master)
        # Not joined in the short format first, which would take as much memory as all weights.
        torch._foreach_copy_(torch.split(flat, self._sizes), gradients)
        master.grad = flat if master.grad is None else master.grad.add_(flat)
        for p in self._short:
            p.grad = None

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Add up the gradient over all processes; call once a step, after the last pass."""
        size = num_processes()
        if size == 1:
            return
        for name in sorted(self._sharded):
            # FSDP has reduced these already, to their mean.
            master = self._masters[name]
            if name != FLAT:
                gradient = self.parameters[name].grad
                master.grad = None if gradient is None else local_part(gradient)
            if master.grad is not None:
                master.grad.mul_(size)
        whole = [m for name, m in self._masters.items() if name not in self._sharded]
        # What no process has a gradient for stays without one, as in a single process.
        known = torch.tensor([m.grad is not None for m in whole], dtype=torch.float32)
        sum_tensors([known])
        reached = [m for m, count in zip(whole, known.tolist(), strict=True) if count]
        for master in reached:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        sum_tensors([m.grad for m in reached if m.grad is not None])

    @torch.no_grad()
    def clip(self, max_norm: float) -> float:
        """Undo the scale of the gradient, then shorten it to at most `max_norm`; call once a step.

        Returns:
            The gradient's L2 norm, unscaled and before clipping. If it is not finite in float16,
            the next `step` is skipped; in other formats that is for the caller to judge.
        """
        masters = self._masters.values()
        if self.loss_scale is not None:
            gradients = [m.grad for m in masters if m.grad is not None]
            torch._foreach_mul_(gradients, 1 / self.loss_scale.value)
        if self._sharded:
            norm = self._norm_over_shards()
            total = torch.tensor(norm, device=next(iter(masters)).device)
            nn.utils.clip_grads_with_norm_(masters, max_norm, total)
        else:
            norm = float(nn.utils.clip_grad_norm_(masters, max_norm))
        self._finite = math.isfinite(norm)
        return norm

    def _norm_over_shards(self) -> float:
        """Return the L2 norm of the whole gradient, of which this process has shards."""
        squares = {True: 0.0, False: 0.0}
        for name, master in self._masters.items():
            if master.grad is not None:
                squares[name in self._sharded] += float(master.grad.double().square().sum())
        return math.sqrt(sum_over_processes(squares[True]) + squares[False])

    def step(self, learning_rate: float) -> bool:
        """Update the masters, then the parameters; clear the gradients.

        With a loss scale, a gradient that is not finite changes no weight and halves the scale.

        Returns:
            Whether the weights were updated.

        Raises:
            TrainingError: If the loss scale cannot be halved any further.
        """
        if self.loss_scale is not None:
            finite = math.isfinite(self.clip(math.inf)) if self._finite is None else self._finite
            self.loss_scale.update(finite=finite)
            if not finite:
                self.num_skipped += 1
                self.clear()
                return False
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.clear()
        self._copy_to_parameters()
        return True

    def clear(self) -> None:
        """Drop all gradients."""
        self._finite = None
        for p in (*self.parameters.values(), *self._masters.values()):
            p.grad = None

    def state_tensors(self, *, moments: bool = True) -> dict[str, Tensor]:
        """Return everything that the next step depends on, as named tensors.

        None shares memory with another, as safetensors demands. Shards are put together, for the
        main process only; call it in all.

        Args:
            moments: With those of Adam; two thirds of it all, and nothing behind the last step.
        """
        tensors = {
            f"master/{name}": self._whole(name, m.detach()) for name, m in self._masters.items()
        }
        for name, master in self._masters.items() if moments else ():
            for key, value in self._adamw.state.get(master, {}).items():
                if key in CODE_TABLES:
                    tensors[key] = value
                else:
                    tensors[f"{key}/{name}"] = self._whole(name, torch.as_tensor(value))
        if self.loss_scale is not None:
            numbers = (self.loss_scale.value, self.loss_scale.num_good_steps, self.num_skipped)
            tensors["loss_scale"] = torch.tensor(numbers, dtype=torch.float64)
        return tensors

    def weight_tensors(self) -> dict[str, Tensor]:
        """Return the working parameters; sharded ones whole, for the main process only."""
        return {
            name: whole_on_main(local_part(p), like=p) if is_sharded(p) else p.detach()
            for name, p in self.parameters.items()
        }

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put whole tensors into the working parameters, for use without further training."""
        for name, p in self.parameters.items():
            local_part(p).copy_(part_of_whole(weights[name], like=p))

    def _whole(self, name: str, tensor: Tensor) -> Tensor:
        """Return what belongs to a master, put together from its shards; see `state_tensors`."""
        # The count of steps belongs to the whole.
        if name not in self._sharded or tensor.shape != self._masters[name].shape:
            return tensor
        if name != FLAT:
            return whole_on_main(tensor, like=self.parameters[name])
        parts = [
            whole_on_main(part.view_as(local_part(p)), like=p).reshape(-1)
            for part, p in zip(torch.split(tensor, self._sizes), self._short, strict=True)
        ]
        return torch.cat(parts)

    def _part(self, name: str, tensor: Tensor) -> Tensor:
        """Return this process's part of what belongs to a master."""
        if name not in self._sharded or tensor.dim() == 0:
            return tensor
        if name != FLAT:
            return part_of_whole(tensor, like=self.parameters[name])
        parts = torch.split(tensor, [p.numel() for p in self._short])
        return torch.cat(
            [
                part_of_whole(part.view(p.shape), like=p).reshape(-1)
                for part, p in zip(parts, self._short, strict=True)
            ]
        )

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `state_tensors`."""
        for index, (name, master) in enumerate(self._masters.items()):
            master.copy_(self._part(name, tensors[f"master/{name}"]))
            if f"step/{name}" not in tensors:
                continue
            if self._in_8_bits:
                self._load_8bit(index, name, master, tensors)
            else:
                self._adamw.state[master] = {
                    key: self._part(name, tensors[f"{key}/{name}"]).to(master.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        if self.loss_scale is not None:
            scale, num_good_steps, num_skipped = tensors["loss_scale"].tolist()
            self.loss_scale.value = scale
            self.loss_scale.num_good_steps = int(num_good_steps)
            self.num_skipped = int(num_skipped)
        self._copy_to_parameters()

    def _load_8bit(
        self, index: int, name: str, master: nn.Parameter, tensors: Mapping[str, Tensor]
    ) -> None:
        """Fill the buffers that bitsandbytes makes, since paged ones cannot be made elsewhere."""
        for key, table in CODE_TABLES.items():
            if key in tensors:
                self._adamw.name2qmap[table] = tensors[key].to(master.device)
        self._adamw.init_state(self._adamw.param_groups[0], master, 0, index)
        state = self._adamw.state[master]
        state["step"] = int(tensors[f"step/{name}"])
        for key in MOMENTS_8BIT:
            if key in state:
                state[key].copy_(tensors[f"{key}/{name}"])

    @torch.no_grad()
    def _copy_to_parameters(self) -> None:
        if self._short:
            parts = torch.split(self._masters[FLAT].detach(), self._sizes)
            own = [local_part(p) for p in self._short]
            shaped = [part.view_as(p) for part, p in zip(parts, own, strict=True)]
            torch._foreach_copy_(own, shaped)


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
    return known(settings.learning_rate) * share
