"""In which precision a training step multiplies matrices. Weights, sums and losses are float32 always."""

from contextlib import AbstractContextManager
from enum import Enum

import torch

from data.errors import ConfigError


class Precision(Enum):
    """``auto``: ``bfloat16`` on CUDA, ``float32`` on CPU, where bfloat16 is slow. ``tf32``: CUDA's float32
    with 10 bits of mantissa within matrix products.
    """

    auto = "auto"
    float32 = "float32"
    tf32 = "tf32"
    bfloat16 = "bfloat16"

    def on(self, device: torch.device) -> "Precision":
        """What it means on ``device``; refuses what only CUDA has."""
        if device.type != "cuda" and self in (Precision.tf32, Precision.bfloat16):
            raise ConfigError(
                f"precision={self.value} needs CUDA, and this trains on {device.type}; use auto"
            )
        if self is Precision.auto:
            return Precision.bfloat16 if device.type == "cuda" else Precision.float32
        return self


def set_products(precision: Precision) -> None:
    """Let float32 matrix products of this process use TF32, or not."""
    torch.set_float32_matmul_precision("high" if precision is Precision.tf32 else "highest")


def stepping(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Around the forward pass of a step."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision is Precision.bfloat16)
