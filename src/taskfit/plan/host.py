"""What a run on a CPU keeps resident beside its tensors.

A GPU's counter knows tensors only. Resident memory of a process knows more, and each part here was
found by the difference between what lives in tensors and what `benchmarks/plan_check.py` measured,
with and without tensors mapped one by one.
"""

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from taskfit.plan.model import ModelCount

# glibc takes tensors up to 32 MB from its heap. Tensors that are kept for the backward pass and
# short-lived ones alternate there, and a hole that a short-lived one leaves is used again only by
# what fits into it. With each tensor mapped by itself this part is gone. By bytes of a number,
# fitted to label words and sft; dpo was not among them.
HEAP_SHARE = {2: 0.42, 4: 0.6}
# Vocabulary and merges of a fast tokenizer: 46 MB for 49,152 tokens.
TOKENIZER_BYTES_PER_TOKEN = 950
# oneDNN generates code for every shape of a 16-bit product, and keeps it.
KERNEL_BYTES = 26_000_000


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Resident memory beside tensors (bytes).

    Attributes:
        tokenizer_bytes: Of the tokenizer.
        kernel_bytes: Of code made on the spot.
        mapped_bytes: Of the weights' file beyond the weights that are its pages: the whole file
            stays mapped as long as one weight is.
        converted_bytes: Of stored weights that are held in another format and unmapped once all
            are loaded.
        temporary_bytes: Of short-lived weights on their way to another format.
        heap_bytes: Of what the heap leaves unused: the holes of short-lived weights, or those
            between tensors in training or scoring, which fill the former first.
        states_bytes: Of kept states that enter the first trained layer. (Those in files count
            for nothing: their pages can be given up at any time.)
    """

    tokenizer_bytes: int = 0
    kernel_bytes: int = 0
    mapped_bytes: int = 0
    converted_bytes: int = 0
    temporary_bytes: int = 0
    heap_bytes: int = 0
    states_bytes: int = 0

    @property
    def loaded_bytes(self) -> int:
        """Return what is there once the model is loaded."""
        return self.tokenizer_bytes + self.mapped_bytes

    @property
    def loading_bytes(self) -> int:
        """Return what is there beside the weights while they are loaded, without the heap."""
        return self.loaded_bytes + self.converted_bytes

    @property
    def resident_bytes(self) -> int:
        """Return what is there all along."""
        return self.loaded_bytes + self.kernel_bytes


def host_memory(
    count: ModelCount,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype,
    dynamic_bytes: int,
    states_bytes: int,
) -> HostMemory:
    """Predict what is resident beside tensors.

    Args:
        count: The model's parameters.
        config: The model's configuration, which names the format of the stored weights.
        dtype: Of weights and arithmetic in the run.
        dynamic_bytes: Most that forward and backward pass have in tensors beyond what stays.
        states_bytes: Of kept states in main memory.
    """
    text = config.get_text_config()
    stored = text.dtype or torch.float32
    keeps_format = stored == dtype
    num_converted = count.num_packed if keeps_format else count.num_parameters
    converted = num_converted * int(stored.itemsize)
    # Packed weights are made from weights in the compute format.
    temporary = count.num_packed * dtype.itemsize if count.num_packed else converted
    return HostMemory(
        tokenizer_bytes=TOKENIZER_BYTES_PER_TOKEN * int(text.vocab_size),
        kernel_bytes=KERNEL_BYTES if dtype.itemsize == 2 else 0,
        mapped_bytes=converted if keeps_format else 0,
        converted_bytes=0 if keeps_format else converted,
        temporary_bytes=temporary,
        heap_bytes=max(temporary, round(HEAP_SHARE[dtype.itemsize] * dynamic_bytes)),
        states_bytes=states_bytes,
    )
