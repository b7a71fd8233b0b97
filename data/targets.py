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

    def outcome(self, true_mask: np.ndarray, known_mask: np.ndarray) -> np.ndarray:
        """What came of impressions, int8: 1 engaged (a weighed label is true), 0 ignored (none is, and at
        least one is known), -1 unknown.
        """
        weighed = sum(LABEL_BIT[label] for label, value in self.labels.items() if value > 0)
        outcome = np.where(known_mask & weighed, 0, -1).astype(np.int8)
        outcome[(true_mask & weighed) != 0] = 1
        return outcome
