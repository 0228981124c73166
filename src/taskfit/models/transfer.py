"""Arrays of the processor on the model's device."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def on_device(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device, without waiting for what a GPU has still to do.

    Copies from ordinary memory wait until everything before them is done, in the middle of a pass.
    Those from pinned memory take their turn; PyTorch keeps it for the next copy once they are over.

    Args:
        array: The array; on a CPU the tensor shares its memory.
        device: The device.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
