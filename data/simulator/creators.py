"""Who publishes: creators with a home, a style and a quality of their own."""

from dataclasses import dataclass

import numpy as np

from data.simulator.region import region_weights
from data.simulator.taste import F32, F64, I64, Clusters, draw_weighted, jitter, unit, zipf_weights

VIDEOS_PER_CREATOR = 12


@dataclass(frozen=True, slots=True)
class Creators:
    """Row r is creator r. ``quality`` and ``charisma`` are standard normal, ``output`` sums to 1."""

    region: I64
    cluster: I64
    style_CD: F32
    quality: F32
    charisma: F32
    output: F64

    def __len__(self) -> int:
        return len(self.region)


def build_creators(rng: np.random.Generator, videos: int, markets: int, clusters: Clusters) -> Creators:
    """Draw one creator for every twelve videos, at least four; few of them publish most."""
    count = max(4, videos // VIDEOS_PER_CREATOR)
    cluster = draw_weighted(rng, clusters.weight_C, count)
    centre = clusters.centroid_CD[cluster]
    return Creators(
        region=draw_weighted(rng, region_weights(markets), count),
        cluster=cluster,
        style_CD=unit(0.75 * centre + 0.65 * jitter(rng, *centre.shape)),
        quality=rng.standard_normal(count, dtype=np.float32),
        charisma=rng.standard_normal(count, dtype=np.float32),
        output=zipf_weights(rng, count, 0.7),
    )


def creator_ids(rows: I64) -> list[str]:
    """The public ids of creator rows."""
    return [f"c{row:06d}" for row in rows]
