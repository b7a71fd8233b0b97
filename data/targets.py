"""Which impressions count as engagement, and how much: shared by the towers and the baselines."""

from dataclasses import dataclass

import numpy as np

from data.schema import LABEL_BIT


@dataclass(frozen=True, slots=True)
class TargetWeights:
    """What counts as a positive: the largest weight among an impression's true labels, or
    ``impression`` where none is true; weight 0 is no target.
    """

    labels: dict[str, float]
    impression: float

    def of(self, true_mask: np.ndarray) -> np.ndarray:
        """Weight float32 per label mask."""
        weight = np.full(len(true_mask), self.impression, np.float32)
        for label, value in self.labels.items():
            np.maximum(
                weight, np.where(true_mask & LABEL_BIT[label], value, 0.0), out=weight, casting="unsafe"
            )
        return weight
