"""What all parts of benchmarks/gpu.py share: the device, random models, a tokenizer, clocks."""

import copy
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from taskfit.data import cache_folder
from taskfit.models.frozen_depth import decoder_layers
from taskfit.models.load import LoadedModel, load_model
from taskfit.models.packaged import WEIGHTS
from taskfit.models.tree_model import TreeModel
from taskfit.plan.shapes import known_config
from taskfit.settings import ModelSettings
from taskfit.tasks.chat import find_template

TEXT = """
the a this one every old new small large red quiet good bad warm cold river city farmer teacher
garden train song letter winter morning reads sees finds keeps loses writes near under behind
between always never often seldom yes no
"""
WORDS = TEXT.split()
PACKAGED = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and in which shapes is measured.

    Attributes:
        device: The device.
        tiny: Whether shapes are tiny, for a dry run.
    """

    device: torch.device
    tiny: bool

    @classmethod
    def here(cls, *, tiny: bool) -> "Bench":
        """Take this machine's GPU, or the processor for a dry run.

        Raises:
            SystemExit: If there is no GPU, and this is no dry run.
        """
        if tiny:
            return cls(torch.device("cpu"), True)
        if not torch.cuda.is_available():
            raise SystemExit("PyTorch sees no GPU here; --dry-run tries the script on a CPU.")
        return cls(torch.device("cuda"), False)

    def pick(self, full: Any, tiny: Any) -> Any:  # noqa: ANN401 - of whatever kind
        """Return the one or the other."""
        return tiny if self.tiny else full

    def wait(self) -> None:
        """Wait until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def tidy(self) -> None:
        """Give back memory that nothing holds any more."""
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def seconds(self, function: Callable[[], object], *, repeats: int, warmup: int = 2) -> float:
        """Return the median of the seconds that a call takes, the device's work included."""
        found = []
        for _ in range(self.pick(warmup, 0) + self.pick(repeats, 1)):
            self.wait()
            started = time.perf_counter()
            function()
            self.wait()
            found.append(time.perf_counter() - started)
        return statistics.median(found[self.pick(warmup, 0) :])


def llama(bench: Bench) -> LlamaConfig:
    """Return a small configuration to compare numbers on."""
    return LlamaConfig(
        vocab_size=bench.pick(4096, 512),
        hidden_size=bench.pick(512, 64),
        intermediate_size=bench.pick(1024, 128),
        num_hidden_layers=bench.pick(4, 3),
        num_attention_heads=bench.pick(8, 4),
        num_key_value_heads=bench.pick(4, 2),
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def random_model(
    config: PretrainedConfig, bench: Bench, dtype: torch.dtype, *, std: float | None = None
) -> PreTrainedModel:
    """Return a random model on the device, without gradients; the same numbers every time.

    Args:
        config: Its shape; left as it is.
        bench: Where.
        dtype: Of its weights.
        std: Of matrices; None: as transformers starts them.
    """
    torch.manual_seed(0)
    with bench.device:
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    if std is not None:
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=std)
    model.requires_grad_(False)
    ready: PreTrainedModel = model.eval()
    return ready


def random_four_bit_model(
    config: PretrainedConfig, bench: Bench, dtype: torch.dtype
) -> PreTrainedModel:
    """Return a random model with layers in NF4, of which no more than one was ever in 16 bits.

    Args:
        config: Its shape; left as it is.
        bench: Where.
        dtype: Of all else, and of products.
    """
    import bitsandbytes

    one = copy.deepcopy(config)
    one.num_hidden_layers = 1
    model = random_model(one, bench, dtype)
    # All layers look at one configuration, which says how they attend.
    model.config.num_hidden_layers = config.num_hidden_layers
    layers, before = decoder_layers(model), torch.get_default_dtype()
    kind = type(layers[0])
    for place in range(config.num_hidden_layers):
        torch.set_default_dtype(dtype)
        try:
            with bench.device:
                layer = kind(model.config, place)
        finally:
            torch.set_default_dtype(before)
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                packed = bitsandbytes.nn.Linear4bit(
                    module.in_features,
                    module.out_features,
                    bias=False,
                    compute_dtype=dtype,
                    compress_statistics=True,
                    quant_type="nf4",
                    device="meta",
                )
                packed.weight = bitsandbytes.nn.Params4bit(
                    module.weight.data,
                    requires_grad=False,
                    quant_type="nf4",
                    compress_statistics=True,
                    module=packed,
                ).to(bench.device)
                packed.support_avx512bf16_for_cpu = False
                layer.set_submodule(name, packed)
        layer.requires_grad_(False).eval()
        if place == 0:
            layers[0] = layer
        else:
            layers.append(layer)
    # What PEFT and transformers look at.
    model.is_loaded_in_4bit = model.is_quantized = True
    return model


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer learned from a few words, with a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = find_template("chatml")
    return tokenizer


def small_model_at_hand(bench: Bench, dtype: str) -> tuple[LoadedModel, str]:
    """Return the packaged model if it is in the cache, else a random one of its shape, and which.

    Args:
        bench: Where.
        dtype: As settings name it.
    """
    if not bench.tiny and (cache_folder() / "models" / PACKAGED / WEIGHTS).is_file():
        settings = ModelSettings(name=PACKAGED, dtype=dtype, device=bench.device.type)
        return load_model(settings), PACKAGED
    config = llama(bench) if bench.tiny else known_config(PACKAGED)
    model = random_model(config, bench, getattr(torch, dtype))
    return LoadedModel(TreeModel(model), small_tokenizer(), "random", None), "random"


def apart(found: Tensor, judge: Tensor) -> float:
    """Return the root of the mean squared difference, in standard deviations of the judge."""
    difference = (found.float() - judge.float()).square().mean().sqrt()
    return float(difference / judge.float().std())
