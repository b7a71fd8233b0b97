"""The latent space that tastes, videos and products share: clusters of interest on the unit sphere.

Axes: ``C`` clusters, ``D`` latent dimensions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Clusters:
    """``centroid_CD`` are unit vectors; ``weight_C`` sums to 1 and falls like Zipf's law."""

    centroid_CD: F32
    weight_C: F64


def build_clusters(rng: np.random.Generator, clusters: int, dimensions: int) -> Clusters:
    """Draw the centres of interest."""
    weight = 1.0 / np.arange(1, clusters + 1) ** 0.6
    return Clusters(
        centroid_CD=unit(rng.standard_normal((clusters, dimensions))), weight_C=weight / weight.sum()
    )


def unit(vectors: npt.NDArray[np.floating]) -> F32:
    """Scale the last axis to length 1; a zero vector stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0), dtype=np.float32)


def jitter(rng: np.random.Generator, count: int, dimensions: int) -> F32:
    """Isotropic noise [count, dimensions] whose vectors have length about 1."""
    noise = rng.standard_normal((count, dimensions), dtype=np.float32)
    return noise / np.float32(np.sqrt(dimensions))


def draw_weighted(rng: np.random.Generator, weight: F64, count: int) -> I64:
    """``count`` rows drawn with replacement in proportion to ``weight``."""
    cumulative = np.cumsum(weight)
    rows = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    return np.asarray(np.minimum(rows, len(weight) - 1), dtype=np.int64)


def zipf_weights(rng: np.random.Generator, count: int, exponent: float) -> F64:
    """Weights that fall like ``rank ** -exponent`` over a random order of ``count`` rows; sum 1."""
    weight = np.empty(count)
    weight[rng.permutation(count)] = 1.0 / np.arange(1, count + 1) ** exponent
    return np.asarray(weight / weight.sum())
