"""The loss as a number, without making the processor wait for the device."""

import torch
from torch import Tensor


class LateLoss:
    """On CPU a step's loss; on CUDA that of the step before, which is there without waiting.

    A step's kernels are then queued while the device still works at the last one's. Whoever needs to know
    that all is well so far (before a checkpoint, say) asks for :meth:`last`.
    """

    def __init__(self) -> None:
        self._copy: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def after(self, loss: Tensor) -> float:
        """The newest known loss once ``loss`` was asked for; the first call waits."""
        if not loss.is_cuda:
            return float(loss.item())
        value = None if self._copy is None else self.last()
        self._copy = torch.empty((), pin_memory=True)
        self._copy.copy_(loss.detach(), non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record()
        return self.last() if value is None else value

    def last(self) -> float:
        """The loss asked for last, waiting for it; 0 before any, or on CPU, where none is late."""
        if self._copy is None or self._arrived is None:
            return 0.0
        self._arrived.synchronize()
        return float(self._copy)
