"""Do 95 % intervals of off-policy estimates hold the truth? Every estimator, on the simulator's exact worlds.

    python benchmarks/evaluation_coverage.py seeds=200 requests=4000 replicates=2000

Users of the simulated market with six candidates each, logged by one policy and valued under another, whose
value is known by enumeration. Slates of one position carry the estimators of single impressions, slates of
three those of slates: with ``satiation`` a video is worth less below its like, which IIPS does not know of
and is therefore not held to. Every seed is a log of its own, read as ``shopreel evaluate`` reads it.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.simulate import market_settings
from data.simulator.market import Market
from data.simulator.slates import SlatePolicy, SlateWorld, build_slate_world, slate_probabilities
from evaluation.off_policy import MODEL_BASED, MODEL_FREE
from evaluation.policy_config import OffPolicyConfig, Unit
from evaluation.policy_study import OffPolicyStudy, study_policy

WORLDS = {
    "one position": (1, 0.0, (*MODEL_FREE, *MODEL_BASED)),
    "slates": (3, 0.0, ("iips", "rips", "cascade_dr")),
    "slates with satiation": (3, 0.6, ("rips", "cascade_dr")),
}


class World:
    """Two policies on one slate world, the truth of one and logs of the other."""

    def __init__(self, market: Market, length: int, satiation: float) -> None:
        self.slates: SlateWorld = build_slate_world(
            market, np.random.default_rng(3), contexts=8, candidates=6, length=length, satiation=satiation
        )
        shape = self.slates.video_XM.shape
        self.logging = SlatePolicy(np.random.default_rng(4).normal(0, 1, shape), explore=0.4)
        self.target = SlatePolicy(4 * self.slates.baseline_XLM[:, 0], explore=0.2)
        self.value = self.slates.value(self.target)
        self.length = length

    def log(self, seed: int, requests: int) -> pa.Table:
        """A log with the marginal propensities that the independence estimator needs, its user as surface."""
        table = self.slates.log(np.random.default_rng([seed, 3]), requests, self.logging, self.target)
        if self.length == 1:  # the built-in reward model is what is to be judged
            return table.drop(["baseline", "baseline_target", "baseline_to_go", "baseline_to_go_target"])
        names = {int(user): x for x, user in enumerate(self.slates.user_id)}
        context = np.array([names[user] for user in table["user_id"].to_pylist()])
        place = np.argmax(self.slates.video_XM[context] == table["video_id"].to_numpy()[:, None], axis=1)
        at = (context, place, table["position"].to_numpy())
        for column, policy in (
            ("propensity_marginal", self.logging),
            ("target_propensity_marginal", self.target),
        ):
            table = table.append_column(column, pa.array(self._marginal(policy)[at]))
        return table

    def _marginal(self, policy: SlatePolicy) -> np.ndarray:  # type: ignore[type-arg]
        """P(video at position) over all slates [X, M, L]."""
        chance_XO, order_OL = slate_probabilities(policy, self.slates.order_OL), self.slates.order_OL
        marginal_XML = np.zeros((*self.slates.video_XM.shape, self.length))
        for step in range(self.length):
            for video in range(self.slates.video_XM.shape[1]):
                marginal_XML[:, video, step] = chance_XO[:, order_OL[:, step] == video].sum(axis=1)
        return marginal_XML

    def with_surface(self, table: pa.Table) -> pa.Table:
        return table.append_column("surface", table["user_id"].cast(pa.string()))

    def target_table(self) -> pa.Table:
        """The target's whole distribution, a user's context being its surface."""
        chance_XM = self._marginal(self.target)[:, :, 0]
        users = pa.array(np.repeat(self.slates.user_id, chance_XM.shape[1])).cast(pa.string())
        return pa.table(
            {"surface": users, "video_id": self.slates.video_XM.ravel(), "probability": chance_XM.ravel()}
        )


def study(world: World, folder: Path, seed: int, requests: int, replicates: int) -> OffPolicyStudy:
    """What the command says of one log."""
    log, target = folder / "log.parquet", None
    pq.write_table(world.with_surface(world.log(seed, requests)), log)
    if world.length == 1:
        target = str(folder / "target.parquet")
        pq.write_table(world.target_table(), target)
    config = OffPolicyConfig(
        reward="reward", target=target, logging_policy=None, target_policy=None, where=None,
        unit=Unit.request, min_effective_rows=100, min_effective_rewards=5, max_unsupported=0.05,
    )  # fmt: skip
    return study_policy(str(log), config, replicates=replicates, seed=seed)


def main(arguments: dict[str, str]) -> None:
    seeds, requests = int(arguments.get("seeds", "200")), int(arguments.get("requests", "4000"))
    replicates = int(arguments.get("replicates", "2000"))
    chosen = arguments.get("worlds", ",".join(WORLDS)).split(",")
    market = Market.build(market_settings("users=100", "videos=200", "products=50", "days=2"), 1)
    print(f"{seeds} logs of {requests:,} requests, {replicates:,} replicates; 95 % intervals")
    print(f"{'world':<22} {'estimator':<12} {'truth':>7} {'coverage':>9} {'bias/sd':>8} {'width/sd':>9}")
    begin, outside = time.perf_counter(), 0
    for name in chosen:
        length, satiation, held = WORLDS[name]
        world = World(market, length, satiation)
        found: dict[str, list[tuple[float, float, float]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(seeds):
                for estimator, each in study(
                    world, Path(folder), seed, requests, replicates
                ).estimates.items():
                    found.setdefault(estimator, []).append((each.low, each.value, each.high))
        for estimator in held:
            low_S, value_S, high_S = np.array(found[estimator]).T
            assert len(low_S) == seeds, f"{estimator} refused some logs"
            covered = float(((low_S <= world.value) & (world.value <= high_S)).mean())
            outside += not 0.92 <= covered <= 0.98
            spread = value_S.std(ddof=1)
            bias, width = (
                (value_S.mean() - world.value) / spread,
                (high_S - low_S).mean() / (2 * 1.96 * spread),
            )
            print(
                f"{name:<22} {estimator:<12} {world.value:>7.4f} {covered:>9.3f} {bias:>8.2f} {width:>9.2f}"
            )
    print(f"{outside} outside 92 – 98 %; {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
