"""Optimizers in 8 bits stay near AdamW and resume bitwise; float16 trains with a scaled loss."""

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from taskfit.errors import ModelError, TrainingError
from taskfit.models.adapters import add_adapter, trainable_parameters
from taskfit.models.tree_model import TreeModel
from taskfit.settings import AdapterSettings, TrainingSettings
from taskfit.training import optim
from taskfit.training.optim import MasterOptimizer
from taskfit.tree import TokenTree

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed (pip install 'taskfit[qlora]')",
)
OPTIMIZERS = [
    "adamw",
    pytest.param("adamw8bit", marks=needs_bitsandbytes),
    pytest.param("paged_adamw8bit", marks=needs_bitsandbytes),
]
RATE = 1e-2
# A factor at which the tiny model's gradients, scaled, stay within float16.
SMALL = 2.0**-8


def random_parameters(dtype: torch.dtype, *, seed: int = 0) -> dict[str, torch.nn.Parameter]:
    """Above and below 4096 elements, where bitsandbytes changes from 8 to 32 bits."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"big": (70, 100), "small": (3, 5), "big2": (5000,)}
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in shapes.items()
    }


def run_steps(optimizer: MasterOptimizer, first: int, last: int) -> Iterator[bool]:
    """Step with gradients that are a function of the step."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for p in optimizer.parameters.values():
            gradient = torch.randn(p.shape, generator=generator) + 0.5
            factor = 1.0 if optimizer.loss_scale is None else optimizer.loss_scale.value
            p.grad = (gradient * factor).to(p.dtype)
        optimizer.collect_gradients()
        optimizer.clip(1.0)
        yield optimizer.step(RATE)


def flat(parameters: dict[str, torch.nn.Parameter]) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in parameters.values()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_goes_on_bitwise(
    name: Any, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "GROWTH_INTERVAL", 4)
    monkeypatch.setattr(optim, "INITIAL_SCALE", 2.0**4)
    settings = TrainingSettings(optimizer=name, weight_decay=0.1)
    whole = MasterOptimizer(random_parameters(dtype), settings)
    assert all(run_steps(whole, 0, 3))
    save_file(whole.state_tensors(), tmp_path / "optimizer.safetensors")
    assert all(run_steps(whole, 3, 6))

    again = MasterOptimizer(random_parameters(dtype, seed=1), settings)
    again.load_state_tensors(load_file(tmp_path / "optimizer.safetensors"))
    assert all(run_steps(again, 3, 6))
    assert torch.equal(flat(again.parameters), flat(whole.parameters))
    expected, found = whole.state_tensors(), again.state_tensors()
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert value.dtype == found[key].dtype, key
        assert torch.equal(value, found[key]), key
    if dtype == torch.float16:  # 2 ** 4 doubled at the fourth step, two good ones since
        assert expected["loss_scale"].tolist() == [2.0**5, 2, 0]


@needs_bitsandbytes
def test_moments_of_large_tensors_are_in_8_bits_and_of_small_ones_in_32() -> None:
    settings = TrainingSettings(optimizer="adamw8bit")
    optimizer = MasterOptimizer(random_parameters(torch.float32), settings)
    assert all(run_steps(optimizer, 0, 1))
    tensors = optimizer.state_tensors()
    assert {tensors[f"{key}/big"].dtype for key in ("state1", "state2")} == {torch.uint8}
    assert {tensors[f"{key}/small"].dtype for key in ("state1", "state2")} == {torch.float32}
    assert len(tensors["absmax1/big2"]) == math.ceil(5000 / 256)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_in_8_bits_go_where_those_of_adamw_go(dtype: torch.dtype) -> None:
    moves = []
    for name in ("adamw", "adamw8bit"):
        parameters = random_parameters(dtype)
        optimizer = MasterOptimizer(parameters, TrainingSettings(optimizer=name, weight_decay=0.1))
        before = torch.cat([m.detach().flatten().clone() for m in optimizer._masters.values()])
        assert all(run_steps(optimizer, 0, 20))
        after = torch.cat([m.detach().flatten() for m in optimizer._masters.values()])
        moves.append(after - before)
    cosine = torch.nn.functional.cosine_similarity(moves[0], moves[1], dim=0)
    assert 0.99 < float(cosine) < 1 - 1e-6  # near, and yet not the very same optimizer
    assert float(moves[1].norm() / moves[0].norm()) == pytest.approx(1, abs=0.02)


@needs_bitsandbytes
def test_a_paged_optimizer_on_a_cpu_is_the_unpaged_one_and_says_so() -> None:
    ends = []
    for name in ("adamw8bit", "paged_adamw8bit"):
        optimizer = MasterOptimizer(
            random_parameters(torch.float32), TrainingSettings(optimizer=name)
        )
        assert all(run_steps(optimizer, 0, 2))
        ends.append(flat(optimizer.parameters))
        assert (optimizer.note is not None) == (name == "paged_adamw8bit")
    assert "on a CPU" in str(optimizer.note)
    assert torch.equal(*ends)


def test_an_8_bit_optimizer_without_bitsandbytes_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"adamw8bit needs .*pip install 'taskfit\[qlora\]'"):
        MasterOptimizer(random_parameters(torch.float32), TrainingSettings(optimizer="adamw8bit"))


class Float16Rig:
    """A tiny Llama in float16 with adapters, whose loss is small by a factor."""

    def __init__(self, dtype: torch.dtype = torch.float16) -> None:
        model = tiny.tiny_model("llama", 61).to(dtype).requires_grad_(False)
        self.trees = TreeModel(model)
        add_adapter(model, AdapterSettings(lora_rank=4, lora_dropout=0.0), seed=0)
        self.parameters = trainable_parameters(model)
        self.optimizer = MasterOptimizer(self.parameters, TrainingSettings())

    def backward(self, factor: float, *, scaled: bool = True) -> torch.Tensor:
        """Return the masters' gradient of `factor` times a loss."""
        tree = TokenTree.build([[5, 6, 7, 8], [5, 6, 9]])
        leaves = np.array([path[-1] for path in tree.paths])
        logits = self.trees.logits(self.trees.hidden(tree, leaves))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([3, 4])) * factor
        (self.optimizer.scale_loss(loss) if scaled else loss).backward()
        self.optimizer.collect_gradients()
        return self.gradient()

    def gradient(self) -> torch.Tensor:
        gradients = [m.grad for m in self.optimizer._masters.values() if m.grad is not None]
        return torch.cat([g.flatten().clone() for g in gradients])


def test_gradients_that_underflow_in_float16_arrive_with_a_scaled_loss() -> None:
    rig, factor = Float16Rig(), 2.0**-28
    assert rig.backward(factor, scaled=False).count_nonzero() == 0
    rig.optimizer.clear()
    rig.backward(factor)
    norm = rig.optimizer.clip(math.inf)
    expected = Float16Rig(torch.float32).backward(factor)
    assert norm == pytest.approx(float(expected.norm()), rel=0.05)
    assert float(torch.nn.functional.cosine_similarity(rig.gradient(), expected, dim=0)) > 0.99
    before = flat(rig.parameters)
    assert rig.optimizer.step(RATE)
    assert not torch.equal(flat(rig.parameters), before)


def test_the_loss_is_left_alone_unless_a_parameter_is_in_float16() -> None:
    loss = torch.tensor(1.5)
    for dtype in (torch.float32, torch.bfloat16):
        optimizer = MasterOptimizer(random_parameters(dtype), TrainingSettings())
        assert optimizer.scale_loss(loss) is loss
        assert "loss_scale" not in optimizer.state_tensors()
    optimizer = MasterOptimizer(random_parameters(torch.float16), TrainingSettings())
    scaled = optimizer.scale_loss(loss.half())
    assert scaled.dtype == torch.float32  # 1.5 * 2 ** 16 does not exist in float16
    assert float(scaled) == 1.5 * 2**16


def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    rig = Float16Rig()
    rig.backward(SMALL)
    rig.optimizer.clip(1.0)
    assert rig.optimizer.step(RATE)  # so that there are moments that could move the weights
    before, moments = flat(rig.parameters), rig.optimizer.state_tensors()["exp_avg/flat"].clone()
    rig.backward(SMALL)
    rig.backward(1e6)  # one bad forward pass of several spoils the step
    assert not math.isfinite(rig.optimizer.clip(1.0))
    assert rig.optimizer.step(RATE) is False
    assert torch.equal(flat(rig.parameters), before)
    assert torch.equal(rig.optimizer.state_tensors()["exp_avg/flat"], moments)
    assert rig.optimizer.loss_scale is not None
    assert rig.optimizer.loss_scale.value == 2.0**15
    assert rig.optimizer.num_skipped == 1
    rig.backward(SMALL)
    assert math.isfinite(rig.optimizer.clip(1.0))
    assert rig.optimizer.step(RATE)
    assert not torch.equal(flat(rig.parameters), before)


def test_a_step_without_clipping_is_unscaled_all_the_same() -> None:
    ends = []
    for clipped in (True, False):
        rig = Float16Rig()
        rig.backward(SMALL)
        if clipped:
            rig.optimizer.clip(math.inf)
        assert rig.optimizer.step(RATE)
        ends.append(rig.optimizer.state_tensors()["exp_avg/flat"])
    assert torch.equal(*ends)


def test_the_scale_doubles_after_2000_good_steps_in_a_row() -> None:
    scale = optim.LossScale()
    for _ in range(1999):
        scale.update(finite=True)
    scale.update(finite=False)
    assert scale.value == 2.0**15
    for _ in range(1999):
        scale.update(finite=True)
    assert scale.value == 2.0**15
    scale.update(finite=True)
    assert scale.value == 2.0**16


def test_gradients_that_are_never_finite_end_in_a_message() -> None:
    scale = optim.LossScale()
    for _ in range(29):  # 2 ** 16 down to 2 ** -13
        scale.update(finite=False)
    with pytest.raises(TrainingError, match=r"float16 are not finite.*model\.dtype=float32"):
        scale.update(finite=False)
