"""A simulated market's ranker against the truth that drew its log: log loss, calibration, order value.

    python benchmarks/ranker_oracle.py DATASET PREPARED RUN

Every impression of the first test day has a true probability of each label and a true expected watch time
and order value. The oracle knows the position, which the ranker does not at serving; ``averaged`` is an
oracle that does not either: its probability is the mean over the positions of the log. Excess log loss is
the expected one under the truth, so that no draw of labels blurs it.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.counters import DAY_MS
from data.prepared import Prepared
from data.ranking_loader import RankingLoader
from data.sequences import Sequences
from data.simulator.market import Market
from models.calibration import calibration_error
from models.ranker_inference import RankerScorer
from models.ranker_portable import load_ranker

POSITIONS = 8


@dataclass(frozen=True, slots=True)
class Comparison:
    """Said and true numbers of E test impressions, by name, and the rows of each one's market and user."""

    said: dict[str, np.ndarray]
    true: dict[str, np.ndarray]
    averaged: dict[str, np.ndarray]
    market: np.ndarray
    user: np.ndarray


class FirstDay(RankingLoader):
    """Impressions of the first day of the split: what a model trained daily is asked about."""

    def chosen(self, sequences: Sequences) -> np.ndarray:
        """Places of the impressions."""
        places = super().chosen(sequences)
        end_ms = self.prepared.manifest["split"]["test_ms"] + DAY_MS
        return places[sequences.examples["example_time_ms"][places] < end_ms]


def compare(dataset: str, prepared: Prepared, run: str) -> Comparison:
    """Score the test split by the serving path and ask the market for the same impressions."""
    parts = load_ranker(
        Path(run) / "model", prepared.video_table, prepared.video_raw, spec_hash=prepared.spec.hash,
        user_table=prepared.user_table,
    )  # fmt: skip
    scorer = RankerScorer(parts, prepared.video_table, prepared.user_table)
    loader = FirstDay(prepared, parts.features, split=2, batch_size=4096, seed=0, shuffle=False)
    truth, blocks = Market.load(dataset), []
    tasks = (*scorer.tasks, "watch_ms", "order_value_minor")
    for batch in loader.epoch():
        requests, said = batch.requests, scorer.predict(batch)
        numbers = {**said.probabilities, "watch_ms": said.watch_ms}
        numbers["order_value_minor"] = said.order_value_minor
        users = prepared.users.ids(requests.user_row).to_numpy()
        videos = prepared.catalogue.ids(batch.video_B).to_numpy()
        surfaces = prepared.surfaces.ids(requests.surface).to_pylist()
        ask = partial(truth.expected, users, videos, requests.time_ms, surface=surfaces, quantities=tasks)
        seen = np.bincount(np.maximum(batch.position_B, 0), minlength=POSITIONS) / batch.examples
        each = [ask(position=position) for position in range(POSITIONS)]
        averaged = {name: sum(w * e[name] for w, e in zip(seen, each, strict=True)) for name in tasks}
        blocks.append((numbers, ask(position=batch.position_B), averaged, requests.market, requests.user_row))

    def joined(place: int) -> dict[str, np.ndarray]:
        return {
            name: np.concatenate([block[place][name] for block in blocks])
            for name in blocks[0][place]
            if blocks[0][place][name] is not None
        }

    market, user = (np.concatenate([block[place] for block in blocks]) for place in (3, 4))
    return Comparison(joined(0), joined(1), joined(2), market, user)


def cross_entropy(true: np.ndarray, said: np.ndarray) -> float:
    """Expected log loss of ``said`` where ``true`` are the probabilities."""
    said = np.clip(said, 1e-9, 1 - 1e-9)
    return float(-(true * np.log(said) + (1 - true) * np.log1p(-said)).mean())


def calibration_gap(true: np.ndarray, said: np.ndarray, bins: int = 20) -> float:
    """Expected calibration error against true probabilities, over bins of equal size of ``said``."""
    return calibration_error(said, true, bins)


def bias_interval(said: np.ndarray, true: np.ndarray, user: np.ndarray, draws: int = 2000) -> np.ndarray:
    """95 % interval of Σ said / Σ true − 1 over draws of the users, who differ in what no log has shown."""
    place = np.unique(user, return_inverse=True)[1]
    sums = np.stack([np.bincount(place, x) for x in (said, true)], axis=1)
    times = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), draws)
    drawn = times @ sums
    return np.quantile(drawn[:, 0] / drawn[:, 1] - 1, [0.025, 0.975])


def main(dataset: str, prepared_path: str, run: str) -> None:
    """Print one line per head."""
    prepared = Prepared.open(prepared_path)
    found = compare(dataset, prepared, run)
    names = prepared.markets.ids(np.arange(len(prepared.markets))).to_pylist()
    markets = [row for row in np.unique(found.market)]
    print(f"{len(found.market):,} test impressions")
    print("head             rate   oracle  ranker  excess  excess over averaged  ECE   worst market")
    for name, said in found.said.items():
        true, averaged = found.true[name], found.averaged[name]
        if name in ("watch_ms", "order_value_minor"):
            bias = [said[found.market == m].mean() / true[found.market == m].mean() - 1 for m in markets]
            by_market = " ".join(f"{names[m]} {b:+.1%}" for m, b in zip(markets, bias, strict=True))
            low, high = bias_interval(said, true, found.user)
            print(
                f"{name:16} bias {said.mean() / true.mean() - 1:+.2%} ({low:+.1%} … {high:+.1%})  {by_market}"
            )
            continue
        best, reached = cross_entropy(true, true), cross_entropy(true, said)
        fair = cross_entropy(averaged, said) / cross_entropy(averaged, averaged) - 1
        worst = max(calibration_gap(true[found.market == m], said[found.market == m]) for m in markets)
        print(
            f"{name:16} {true.mean():.4f} {best:.4f}  {reached:.4f}  {reached / best - 1:+.1%}  {fair:+.1%}"
            f"                 {calibration_gap(true, said):.4f}  {worst:.4f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:4])
