"""What a training process sets up before anything else: seeds, device, memory behaviour."""

import ctypes
import random

import numpy as np
import torch

from data.errors import ConfigError
from training.config import Device


def start_process(seed: int, device: Device, threads: int) -> torch.device:
    """Seed every generator, choose the device, keep large CPU blocks from going back to the kernel."""
    if device is Device.cuda and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda, but torch sees no CUDA device; use device=auto, or run shopreel doctor"
        )
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries that draw from the global generator
    random.seed(seed)
    if threads > 0:
        torch.set_num_threads(threads)
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: each step reuses its large blocks
        libc.mallopt(-1, 1 << 31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library has other habits
    cuda = device is not Device.cpu and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")
