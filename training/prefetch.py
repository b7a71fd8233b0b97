"""Prepare the next batches in a thread while the current one trains."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from data.ahead import ahead
from data.loader import LoaderPosition

B_co = TypeVar("B_co", covariant=True)


class Source(Protocol[B_co]):
    """Batches of one epoch, and the position after the last one made."""

    position: LoaderPosition

    def epoch(self) -> Iterator[B_co]:
        """The rest of the current epoch."""
        ...


def prefetch(
    loader: Source[B_co], depth: int = 2, *, pin: bool = False
) -> Iterator[tuple[B_co, LoaderPosition]]:
    """Batches of one epoch, each with the loader position *after* it (what a checkpoint stores).

    ``pin`` puts their arrays into pinned memory, from which CUDA reads while the processor goes on.
    """

    def made() -> Iterator[tuple[B_co, LoaderPosition]]:
        for batch in loader.epoch():
            yield (pinned(batch) if pin else batch), loader.position

    return ahead(made(), depth)


def pinned(batch: Any) -> Any:
    """The dataclass with all its arrays, and those of dataclasses in it, in pinned memory."""
    changed = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, np.ndarray):
            changed[field.name] = torch.from_numpy(np.ascontiguousarray(value)).pin_memory().numpy()
        elif is_dataclass(value):
            changed[field.name] = pinned(value)
    return replace(batch, **changed)
