"""The value of showing a video: one explicit, versioned formula over calibrated predictions.

``value = w_watch · E[watch in s] + Σ w_task · p_task + w_gmv · E[order value in major units]``
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import ConfigError
from data.schema import LABELS

F32 = npt.NDArray[np.float32]
#: Minor units (cents) per major unit.
MINOR_PER_MAJOR = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueFormula:
    """Weights in value per second watched, per expected action, per major unit of expected order value.

    ``version`` names the weights in logs and reports. Tasks without a head count nothing.
    """

    version: str
    watch_s: float = 0.0
    gmv: float = 0.0
    tasks: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tasks) - set(LABELS))
        if unknown:
            raise ConfigError(f"value.tasks has {', '.join(unknown)}; labels are {', '.join(LABELS)}")
        if not all(map(math.isfinite, (self.watch_s, self.gmv, *self.tasks.values()))):
            raise ConfigError("value: every weight must be a finite number")

    def of(
        self, probabilities: Mapping[str, F32], watch_ms: F32 | None, order_value_minor: F32 | None, size: int
    ) -> F32:
        """Value float32[K] of K candidates; what has no head is left out."""
        value = np.zeros(size, np.float64)
        for task, weight in self.tasks.items():
            if task in probabilities:
                value += weight * probabilities[task]
        if watch_ms is not None:
            value += self.watch_s * watch_ms / 1000.0
        if order_value_minor is not None:
            value += self.gmv * order_value_minor / MINOR_PER_MAJOR
        return value.astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"version": self.version, "watch_s": self.watch_s, "gmv": self.gmv, "tasks": dict(self.tasks)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ValueFormula":
        """Inverse of :meth:`to_json`; anything else raises :class:`ConfigError`."""
        try:
            return cls(
                version=str(value["version"]), watch_s=float(value["watch_s"]), gmv=float(value["gmv"]),
                tasks={str(task): float(weight) for task, weight in value["tasks"].items()},
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"value: not a value formula ({error})") from None
