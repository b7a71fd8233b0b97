"""Prepared shards → batches of impressions for the ranker: one example, and what was known before it.

Order is a pure function of (seed, epoch), as in ``data.loader``. Axes: B examples, S steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.catalogue_keys import CatalogueKeys
from data.counters import DAY_MS, DecayedCounts
from data.loader import LoaderPosition
from data.prepared import Prepared
from data.ranking_features import Requests, candidate_statistics, user_statistics, watch_ratio
from data.ranking_spec import (
    COUNTED,
    MATCHED,
    OFFERED,
    PRICED,
    SPOKEN,
    RankingSpec,
    ranking_spec_features,
    translation,
)
from data.schema import FUNNEL, LABEL_BIT, LABELS
from data.sequences import Sequences

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(slots=True)
class RankingBatch:
    """B impressions. ``true``/``known`` are label masks of which only known bits may enter a loss;
    ``watch_ms`` and ``order_value_minor`` are −1 where unknown, ``position`` −1.
    """

    requests: Requests
    video_B: I64
    user_statistics_BF: F32
    candidate_statistics_BG: F32
    true_B: I64
    known_B: I64
    watch_ms_B: I64
    order_value_B: I64
    position_B: I64

    @property
    def examples(self) -> int:
        """Number of impressions."""
        return len(self.video_B)


class RankingFeatures:
    """Catalogue, counts and spec together: turns requests and candidates into the ranker's numbers."""

    def __init__(
        self, spec: RankingSpec, keys: CatalogueKeys, counts: dict[str, list[DecayedCounts]]
    ) -> None:
        self.spec, self.keys, self.counts = spec, keys, counts

    def user(self, requests: Requests) -> tuple[F32, F32]:
        """Outcomes of the steps ``[B, S, C]`` and statistics ``[B, F]`` of each user."""
        outcome = requests.outcomes(self.spec, self.keys.duration_ms)
        return outcome, user_statistics(requests, outcome, self.spec)

    def candidates(self, requests: Requests, outcome_BSC: F32, video_BK: I64) -> F32:
        """Statistics ``[B, K, G]`` of candidates."""
        return candidate_statistics(requests, outcome_BSC, video_BK, self.keys, self.counts, self.spec)

    def impressions(self, sequences: Sequences, chosen: I64) -> "RankingBatch":
        """The impressions ``chosen`` (places in the flat example arrays) with features and labels."""
        requests = requests_of(sequences, chosen, self.spec.max_steps)
        outcome, users = self.user(requests)
        columns = {name: column[chosen].astype(np.int64) for name, column in sequences.examples.items()}
        video = columns["example_video"]
        return RankingBatch(
            requests, video, users, self.candidates(requests, outcome, video[:, None])[:, 0],
            columns["example_true"], columns["example_known"], columns["example_watch_ms"],
            columns["example_order_value_minor"], columns["example_position"],
        )  # fmt: skip


def requests_of(sequences: Sequences, chosen: I64, max_steps: int) -> Requests:
    """The requests behind the impressions ``chosen`` (places in the flat example arrays)."""
    row = np.searchsorted(sequences.example_offsets, chosen, side="right") - 1
    examples = sequences.examples
    base = sequences.step_offsets[row]
    end = base + examples["example_history_end"][chosen]
    length = np.minimum(end - base, max_steps)
    steps = np.arange(int(length.max(initial=0)))
    valid = steps < length[:, None]
    index = np.where(valid, (end - length)[:, None] + steps, 0)

    def step(name: str) -> I64:
        column = sequences.steps[name]
        picked = column[index] if len(column) else np.zeros_like(index)
        return np.where(valid, picked, 0).astype(np.int64)

    def example(name: str) -> I64:
        return examples[name][chosen].astype(np.int64)

    return Requests(
        sequences.user_row[row], example("example_time_ms"), example("example_surface"),
        example("example_market"), length, step("step_video"), step("step_time_ms"), step("step_actions"),
        step("step_known"), step("step_watch_ms"), step("step_surface"),
    )  # fmt: skip


class RankingLoader:
    """Batches of ``batch_size`` impressions of one split, ``epoch()`` by ``epoch()``.

    Only impressions of known videos with at least one known task (or watch time) take part; of the
    training split those of its last ``train_days`` days (0: all). ``shuffle`` false keeps the order.
    """

    def __init__(
        self, prepared: Prepared, features: RankingFeatures, *, split: int, batch_size: int, seed: int,
        train_days: int = 0, shuffle: bool = True,
    ) -> None:  # fmt: skip
        self.prepared, self.features, self.split = prepared, features, split
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        spec = features.spec
        self.first_ms = spec.day_zero_ms - train_days * DAY_MS if train_days and spec.use_time else None
        self.mask = sum(LABEL_BIT[task] for task in spec.tasks)
        self.position = LoaderPosition()
        self._cached: tuple[int, Sequences] | None = None
        self.targets_total = sum(
            len(self.chosen(self._sequences(place))) for place in range(len(prepared.shards))
        )

    def chosen(self, sequences: Sequences) -> I64:
        """Places of the impressions that take part."""
        examples = sequences.examples
        labelled = ((examples["example_known"] & self.mask) != 0) | (examples["example_watch_ms"] >= 0)
        keep = (examples["example_split"] == self.split) & (examples["example_video"] > 0) & labelled
        if self.first_ms is not None and self.split == 0:
            keep &= examples["example_time_ms"] >= self.first_ms
        return np.flatnonzero(keep)

    def epoch(self) -> Iterator[RankingBatch]:
        """Batches from the current position to the end of its epoch; then the next epoch begins."""
        epoch = self.position.epoch
        order = np.arange(len(self.prepared.shards))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        for place in range(self.position.shard, len(order)):
            sequences = self._sequences(int(order[place]))
            chosen = self.chosen(sequences)
            if self.shuffle:
                chosen = np.random.default_rng([self.seed, epoch, int(order[place]), 1]).permutation(chosen)
            for number in range(self.position.batch, -(-len(chosen) // self.batch_size)):
                self.position = LoaderPosition(epoch, place, number + 1)
                begin = number * self.batch_size
                yield self.batch(sequences, chosen[begin : begin + self.batch_size])
            self.position = LoaderPosition(epoch, place + 1, 0)
        self.position = LoaderPosition(epoch + 1, 0, 0)

    def batch(self, sequences: Sequences, chosen: I64) -> RankingBatch:
        """The impressions ``chosen`` with their features and labels."""
        return self.features.impressions(sequences, chosen)

    def _sequences(self, shard: int) -> Sequences:
        if self._cached is None or self._cached[0] != shard:
            self._cached = (shard, Sequences.read(self.prepared.shards[shard]))
        return self._cached[1]


def build_features(
    prepared: Prepared, *, half_life_days: tuple[float, ...], max_steps: int
) -> RankingFeatures:
    """Spec, base rates and counts from the shards of ``prepared``.

    Raises ``ValueError`` where no task has both outcomes known in training, or where ``max_steps`` is
    more than the context that ``prepare`` kept.
    """
    context = int(prepared.manifest["settings"]["context_steps"])
    if max_steps > context:
        raise ValueError(f"model.max_steps={max_steps} is above the {context} steps kept by prepare")
    dataset, split = prepared.manifest["dataset"], prepared.manifest["split"]
    by_time = split["mode"] == "time"
    tasks, base_rate = _tasks(prepared)
    spec = RankingSpec(
        tasks=tasks, base_rate=base_rate, matched=ranking_spec_features(prepared.spec, MATCHED),
        counted=ranking_spec_features(prepared.spec, COUNTED) if by_time and dataset["real_time"] else (),
        half_life_days=half_life_days, day_zero_ms=int(split["validation_ms"]) if by_time else 0,
        use_time=bool(dataset["real_time"] and dataset["ordered"]), max_steps=max_steps,
        price_rows=next((bag.rows for bag in prepared.spec.bags if bag.name == PRICED), 0),
        market_rows=translation(prepared.markets, prepared.vocabularies.get(OFFERED))
        if ranking_spec_features(prepared.spec, ("video_product_ids",)) else (),
        content=bool(prepared.spec.side("video").dense),
        language_rows=translation(*(prepared.vocabularies.get(name) for name in SPOKEN)),
    )  # fmt: skip
    keys = CatalogueKeys.of(spec, prepared.video_table, prepared.user_table, prepared.video_raw)
    return RankingFeatures(spec, keys, count_outcomes(prepared, spec, keys))


def _tasks(prepared: Prepared) -> tuple[tuple[str, ...], tuple[float, ...]]:
    known, true = np.zeros(len(LABELS)), np.zeros(len(LABELS))
    for shard in prepared.shards:
        examples = Sequences.read(shard).examples
        train = examples["example_split"] == 0
        for place, bit in enumerate(LABEL_BIT.values()):
            seen = train & ((examples["example_known"] & bit) > 0)
            known[place] += seen.sum()
            true[place] += (seen & ((examples["example_true"] & bit) > 0)).sum()
    chosen = [place for place in range(len(LABELS)) if 0 < true[place] < known[place]]
    if not chosen:
        raise ValueError(
            f"{prepared.name}: no label is known both true and false in training; a ranker needs impressions "
            "with outcomes, not a log of positives alone"
        )
    return tuple(LABELS[place] for place in chosen), tuple(float(true[p] / known[p]) for p in chosen)


def funnel_parents(prepared: Prepared, tasks: tuple[str, ...], share: float = 0.99) -> tuple[int, ...]:
    """For every task the place of the step that always came before it, −1 where there is none.

    The funnel's order is the contract's, and every other label may come after a click; a step is a parent
    only where the log agrees: at least ``share`` of the later step's known positives have it too.
    """
    before = {task: FUNNEL[: FUNNEL.index(task)] if task in FUNNEL else FUNNEL[:1] for task in tasks}
    pairs = [(task, parent) for task in tasks for parent in before[task] if parent in tasks]
    both, positives = dict.fromkeys(pairs, 0), dict.fromkeys(pairs, 0)
    for shard in prepared.shards:
        examples = Sequences.read(shard).examples
        train = examples["example_split"] == 0
        true, known = examples["example_true"], examples["example_known"]
        for task, parent in pairs:
            bit, earlier = LABEL_BIT[task], LABEL_BIT[parent]
            seen = train & ((true & known & bit) > 0) & ((known & earlier) > 0)
            positives[task, parent] += int(seen.sum())
            both[task, parent] += int((seen & ((true & earlier) > 0)).sum())
    found = dict.fromkeys(tasks, -1)
    for task, parent in pairs:  # the latest parent wins
        if positives[task, parent] > 0 and both[task, parent] >= share * positives[task, parent]:
            found[task] = tasks.index(parent)
    return tuple(found.values())


def count_outcomes(
    prepared: Prepared, spec: RankingSpec, keys: CatalogueKeys
) -> dict[str, list[DecayedCounts]]:
    """Counts per entity and half-life; channels: true per task, exposures per task, impressions, watch
    ratio and how often that is known.

    An outcome counts on the day it happened, an exposure on the day of the impression: every impression
    whose label is known, or still may become so at the end of the log.
    """
    if not spec.counted:
        return {}
    video, day, amount = [], [], []
    window = prepared.manifest["settings"]["attribution_window_ms"]
    bits = np.array([LABEL_BIT[task] for task in spec.tasks], np.int64)
    open_for = np.array([window[task] for task in spec.tasks], np.int64)
    context = int(prepared.manifest["settings"]["context_steps"])
    all_sequences = [Sequences.read(shard) for shard in prepared.shards]
    end_ms = max(int(s.examples["example_time_ms"].max(initial=0)) for s in all_sequences)
    for sequences in all_sequences:
        examples, steps = sequences.examples, sequences.steps
        time = examples["example_time_ms"].astype(np.int64)
        exposed = ((examples["example_known"][:, None] & bits) > 0) | (
            (time[:, None] + open_for > end_ms) & ~_action_free(sequences, bits)
        )
        ratio = watch_ratio(
            examples["example_watch_ms"].astype(np.int64), keys.duration_ms[examples["example_video"]]
        )
        seen = np.concatenate(
            [np.zeros_like(exposed), exposed, np.ones((len(time), 1)), np.maximum(ratio, 0)[:, None],
             (ratio >= 0)[:, None]], axis=1,
        )  # fmt: skip
        first = np.zeros(len(steps["step_time_ms"]), bool)
        again = np.r_[False, sequences.user_row[1:] == sequences.user_row[:-1]]
        for row in np.flatnonzero(again):
            begin = sequences.step_offsets[row]
            first[begin : begin + context] = True
        happened = ((steps["step_actions"][:, None] & bits) > 0) & ~first[:, None]
        kept = np.flatnonzero(happened.any(1))
        outcome = np.zeros((len(kept), seen.shape[1]))
        outcome[:, : len(bits)] = happened[kept]
        video += [examples["example_video"], steps["step_video"][kept]]
        day += [spec.day(time), spec.day(steps["step_time_ms"][kept].astype(np.int64))]
        amount += [seen.astype(np.float32), outcome.astype(np.float32)]
    rows, days, amounts = np.concatenate(video).astype(np.int64), np.concatenate(day), np.concatenate(amount)
    return {
        name: [DecayedCounts.build(keys.key[name][rows], days, amounts, h) for h in spec.half_life_days]
        for name in spec.counted
    }


def _action_free(sequences: Sequences, bits: I64) -> npt.NDArray[np.bool_]:
    """[1, T]: tasks of which no impression of the shard knows anything: blank, not pending."""
    known = np.bitwise_or.reduce(sequences.examples["example_known"], initial=0)
    free: npt.NDArray[np.bool_] = (known & bits) == 0
    return free[None, :]
