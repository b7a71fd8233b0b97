"""How near to a simulated market's oracle a model can come: what users' clicks do not tell, nobody knows.

    python benchmarks/ranker_floor.py DATASET PREPARED [steps]

For every user who comes on the first test day, taste and bias are estimated from that user's clicks before it
(the newest ``steps``, 0: all) by somebody who knows the rest exactly: every video's place in taste space, its
quality, the weights of the click, the positions, and how tastes are spread over users. The posterior is
Gaussian around its mode (Laplace). Prints the excess of its expected log loss over the oracle's: a model that
must learn videos and weights as well will stay above, and how far is its own.
"""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.counters import DAY_MS
from data.dataset import Dataset, read_info
from data.prepared import Prepared
from data.simulator.behaviour import (
    CLICK_BIAS,
    CLICK_FOREIGN,
    CLICK_QUALITY,
    CLICK_SURFACE,
    SURFACES,
    Exposure,
    click_probability,
    examination,
    user_taste,
    video_affinity,
)
from data.simulator.market import Market

ITERATIONS = 15


def main(source: str, prepared_path: str, steps: int = 0) -> None:
    """Print rows, mean history and excess."""
    market = Market.load(source)
    world = market.world
    split = Prepared.open(prepared_path).manifest["split"]
    path = Path(source)
    rows = Dataset(path, read_info(path)).read("events")
    time_ms = rows["event_time"].cast(pa.int64()).to_numpy() // 1000
    user = np.searchsorted(world.users.id, rows["user_id"].to_numpy())
    order = np.lexsort((time_ms, user))
    surfaces = rows["surface"].to_pylist()
    exposure = Exposure(
        user, np.searchsorted(world.videos.id, rows["video_id"].to_numpy()),
        (time_ms - world.settings.start_ms) // DAY_MS, np.array([SURFACES.index(name) for name in surfaces]),
        rows["position"].to_numpy().astype(np.int64),
    ).take(order)  # fmt: skip
    clicked = rows["click"].to_numpy(zero_copy_only=False)[order].astype(np.float64)
    time_ms = time_ms[order]
    looked = examination(exposure)
    foreign = world.users.language[exposure.user] != world.videos.language[exposure.video]
    known = CLICK_BIAS + CLICK_SURFACE[exposure.surface]
    known = known + CLICK_QUALITY * world.videos.quality[exposure.video] + CLICK_FOREIGN * foreign
    inputs = world.settings.taste_strength * world.videos.vector_ND[exposure.video]
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1).astype(np.float64)
    centre = np.r_[world.users.taste_UD.mean(0), world.users.click_bias.mean()]
    spread = np.cov(np.c_[world.users.taste_UD, world.users.click_bias].T)
    test = (time_ms >= split["test_ms"]) & (time_ms < split["test_ms"] + DAY_MS)
    before = time_ms < split["test_ms"]
    said, lengths = np.zeros(len(time_ms)), []
    begins = np.searchsorted(exposure.user, np.arange(len(world.users) + 1))
    for begin, end in pairwise(begins):
        asked = begin + np.flatnonzero(test[begin:end])
        if not len(asked):
            continue
        past = (begin + np.flatnonzero(before[begin:end]))[-steps:]
        lengths.append(len(past))
        mode, covariance = _posterior(inputs[past], known[past], looked[past], clicked[past], centre, spread)
        logit = inputs[asked] @ mode + known[asked]
        variance = np.einsum("nd,de,ne->n", inputs[asked], covariance, inputs[asked])
        said[asked] = looked[asked] / (1 + np.exp(-logit / np.sqrt(1 + np.pi * variance / 8)))
    taste = user_taste(world, exposure.user, exposure.day)
    true = looked * click_probability(world, exposure, video_affinity(world, exposure, taste))
    true, said = true[test], said[test]
    loss = [-(true * np.log(p) + (1 - true) * np.log1p(-p)).mean() for p in (true, said)]
    print(
        f"{test.sum():,} impressions, {np.mean(lengths):.0f} steps before on average: click {loss[0]:.4f} by "
        f"the oracle, {loss[1]:.4f} by the best knowledge of users, {loss[1] / loss[0] - 1:+.1%}"
    )


def _posterior(
    x_SD: np.ndarray, known_S: np.ndarray, looked_S: np.ndarray, clicked_S: np.ndarray, centre_D: np.ndarray,
    spread_DD: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mode and covariance, from P(click) = looked · σ(x · w + known) and w ~ N(centre, spread)."""
    precision, w = np.linalg.inv(spread_DD), centre_D.copy()
    curve = precision
    for _ in range(ITERATIONS):
        chance = 1 / (1 + np.exp(-(x_SD @ w + known_S)))
        p = looked_S * chance
        slope = (clicked_S - p) / (1 - p + 1e-9) * (1 - chance)
        weight = looked_S * chance * (1 - chance) ** 2 / (1 - p + 1e-9)
        curve = (x_SD * weight[:, None]).T @ x_SD + precision
        step = np.linalg.solve(curve, x_SD.T @ slope - precision @ (w - centre_D))
        w += np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-6:
            break
    return w, np.linalg.inv(curve)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
