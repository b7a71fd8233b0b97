"""Moving arrays to the device a model lives on, without making the processor wait for the device."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(array: Tensor | npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """The array on ``device``; shared with the caller where it is there already.

    Towards CUDA it goes through pinned memory: a copy from pageable memory waits until the device has done
    all that was asked of it before.
    """
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def low_precision(device: torch.device) -> bool:
    """Whether matrix products on ``device`` now take bfloat16, by ``torch.autocast``; only ever on CUDA."""
    if device.type != "cuda" or not torch.is_autocast_enabled("cuda"):
        return False
    return torch.get_autocast_dtype("cuda") is torch.bfloat16
