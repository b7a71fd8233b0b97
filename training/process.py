"""What a training process sets up before anything else: seeds, device, memory behaviour."""

import ctypes
import os
import random

import numpy as np
import torch

from data.errors import ConfigError
from training.config import Device
from training.distributed import ALONE, Ranks


def start_process(seed: int, device: Device, threads: int, ranks: Ranks = ALONE) -> torch.device:
    """Seed every generator, choose the device, keep large CPU blocks from going back to the kernel.

    All ranks of a job start with one seed, so that they build the same model; :func:`part_ways` then
    gives each its own random stream. Ranks on one machine share its cores unless ``threads`` is given.
    """
    if device is Device.cuda and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda, but torch sees no CUDA device; use device=auto, or run shopreel doctor"
        )
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries that draw from the global generator
    random.seed(seed)
    if threads > 0 or ranks.local_world > 1:
        torch.set_num_threads(threads or max(len(os.sched_getaffinity(0)) // ranks.local_world, 1))
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: each step reuses its large blocks
        libc.mallopt(-1, 1 << 31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library has other habits
    if not wants_cuda(device):
        return torch.device("cpu")
    torch.cuda.set_device(ranks.local_rank)
    return torch.device("cuda", ranks.local_rank)


def wants_cuda(device: Device) -> bool:
    """Whether training runs on CUDA: asked for, or there and not declined."""
    return device is not Device.cpu and torch.cuda.is_available()


def part_ways(seed: int, ranks: Ranks) -> None:
    """Give every rank but the lead a random stream of its own, once the model is built."""
    if not ranks.lead:
        torch.manual_seed(
            int(np.random.SeedSequence([seed, ranks.rank]).generate_state(1, np.uint64)[0] >> 1)
        )
