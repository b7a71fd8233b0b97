"""Names of the numpy array types used here, and sums by group.

Axes are suffixes: ``R`` requests, ``U`` users (or groups of them), ``T`` right videos of the truth,
``H`` hits, ``N`` rows, ``M`` metrics, ``B`` bootstrap replicates, ``S`` segments or slices.
"""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]


def sum_by(group_N: Ints, weight_N: npt.NDArray[np.generic], groups: int) -> Floats:
    """Sum of ``weight_N`` per group, 0 for a group without rows."""
    return np.bincount(group_N, weight_N.astype(np.float64), minlength=groups).astype(np.float64)


def stack(columns: list[Floats], rows: int) -> Floats:
    """Columns side by side as [rows, len(columns)], also where there is none."""
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0))


def ratio(top: Floats, bottom: Floats) -> Floats:
    """``top / bottom``, NaN where ``bottom`` is not above 0."""
    quotient: Floats = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)
    return quotient
