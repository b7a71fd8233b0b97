"""The training loader: prepared shards → batches, streamed, sharded by rank, resumed exactly.

Order is a pure function of (seed, epoch): shards are permuted, windows are permuted inside a shard and
batched by similar length, so the position ``(epoch, shard, batch)`` is the whole state.

A *query* is a moment of a history, and its target is what the user engaged with next. Of a log without order
a few moments of a fresh random order are queries, and everything that the order puts after one is its target.

Axes: B windows, S steps (padded at the end), Q queries, P targets, V candidate videos.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from data.columns import ranges
from data.negatives import MixedSampler
from data.prepared import Prepared
from data.sequences import Sequences, Windows, cut_windows
from data.targets import TargetWeights

#: Queries of a set in one epoch.
SET_QUERIES = 4
#: Power of the uniform number that says after which share of a set a query stands: whole histories are what
#: is served, so long prefixes are likelier, five sixths of a set on average.
SET_PREFIX = 0.2


@dataclass(slots=True)
class Batch:
    """One training step. History videos and targets index ``video_rows`` (catalogue rows, ``[V]``).

    Query q stands in window ``query_window_Q[q]`` after ``query_position_Q[q]`` steps, and owns the targets
    ``target_offsets[q]:target_offsets[q + 1]``; the first of them is what came next. ``target_contrast_P`` is
    the weight of a target that was engaged with, less than 0 for one that is known to have been ignored, and
    0 for any other; all 0 in a log in which nobody is known to have ignored anything. ``target_outcome_P``
    int8 is 1 where what lists are judged by came true, -1 where it is known not to have, 0 where unknown.

    ``log_correction`` is float32 ``[V]`` for sampled softmax, or None where ``video_rows`` is all of the
    loader's ``population``. Padding steps carry index 0. ``epoch`` counts passes over the log.
    """

    user_row_B: np.ndarray
    length_B: np.ndarray
    video_BS: np.ndarray
    time_ms_BS: np.ndarray
    actions_BS: np.ndarray
    known_BS: np.ndarray
    watch_ms_BS: np.ndarray
    surface_BS: np.ndarray
    query_window_Q: np.ndarray
    query_position_Q: np.ndarray
    query_time_ms_Q: np.ndarray
    target_offsets: np.ndarray
    target_video_P: np.ndarray
    target_weight_P: np.ndarray
    target_contrast_P: np.ndarray
    target_outcome_P: np.ndarray
    video_rows: np.ndarray
    log_correction: np.ndarray | None
    epoch: int = 0

    @property
    def examples(self) -> int:
        """Number of queries."""
        return len(self.query_window_Q)

    @property
    def query_of_target_P(self) -> np.ndarray:
        """The query of each target, ascending."""
        return np.repeat(np.arange(self.examples), np.diff(self.target_offsets))


@dataclass(frozen=True, slots=True)
class LoaderPosition:
    """Where the next batch comes from."""

    epoch: int = 0
    shard: int = 0
    batch: int = 0


class SequenceLoader:
    """Iterate ``epoch()`` for the batches of one epoch from ``position`` on; state is the position.

    ``tokens`` bounds B × (S + 1) of a batch on each rank. ``n_uniform`` = None takes every video that
    training ever showed as candidate (full softmax), else that many uniform negatives among them beside
    the batch's own next videos. An impression that is known to have been ignored is no positive; with
    ``ignored`` it is a query and target of weight 0, for its contrast and outcome. ``gain`` is the label mask
    of what lists are judged by. ``splits`` is 1 for training, 2 for training and validation together.
    """

    def __init__(
        self,
        prepared: Prepared,
        weights: TargetWeights,
        *,
        tokens: int,
        max_steps: int,
        n_uniform: int | None,
        seed: int,
        splits: int = 1,
        ignored: bool = False,
        gain: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.prepared = prepared
        self.weights = weights
        self.tokens = tokens
        self.max_steps = max_steps
        self.seed = seed
        self.rank, self.world = rank, world
        self.position = LoaderPosition()
        self.ordered = bool(prepared.manifest["dataset"]["ordered"])
        self.splits = splits
        self.ignored = ignored
        self.gain = gain
        #: What an ignored impression weighs: all of them at most as much as all that were engaged with;
        #: 0 where there is none.
        self.ignored_weight = 0.0
        self.queries_total, positive_weight, shown_count = self._count()
        shown = np.flatnonzero(shown_count)
        #: What full softmax ranks: the unknown row, then every video that training ever showed.
        self.population = np.concatenate([[0], shown[shown > 0]])
        self._index_of = np.zeros(len(prepared.catalogue), np.int64)
        self._index_of[self.population] = np.arange(len(self.population))
        self.sampler = (
            None if n_uniform is None else MixedSampler(positive_weight, self.population[1:], n_uniform)
        )
        self._cached: tuple[int, Sequences] | None = None

    def epoch(self) -> Iterator[Batch]:
        """Batches from the current position to the end of its epoch; then the next epoch begins."""
        epoch = self.position.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.prepared.shards))
        for place in range(self.position.shard, len(order)):
            generator = np.random.default_rng([self.seed, epoch, int(order[place]), 1])
            sequences, windows = self._windows(int(order[place]), generator)
            groups = self._groups(windows, generator)
            for number in range(self.position.batch, len(groups)):
                self.position = LoaderPosition(epoch, place, number + 1)
                draw = np.random.default_rng([self.seed, epoch, int(order[place]), number, self.rank, 2])
                yield replace(self._batch(sequences, windows, groups[number], draw), epoch=epoch)
            self.position = LoaderPosition(epoch, place + 1, 0)
        self.position = LoaderPosition(epoch + 1, 0, 0)

    def _count(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Queries of an epoch; how often each catalogue row is what came next, and how often it was shown
        (all ranks together).
        """
        rows = len(self.prepared.catalogue)
        total, per_video, shown = 0, np.zeros(rows, np.float64), np.zeros(rows, np.int64)
        engaged_weight, ignored = 0.0, 0
        for shard in self.prepared.shards:
            sequences = Sequences.read(shard)
            video = sequences.examples["example_video"]
            trained = sequences.examples["example_split"] < self.splits
            shown += np.bincount(video[trained], minlength=rows)
            keep, weight, outcome = self._targets(sequences)
            engaged_weight += float(weight[outcome == 1].sum())
            ignored += int((outcome == 0).sum())
            often = np.ones(len(keep))
            if not self.ordered:
                row = sequences.example_rows()[keep]
                size = np.bincount(row, minlength=sequences.num_rows)
                often = (np.minimum(size, SET_QUERIES) / np.maximum(size, 1))[row]
            total += round(often.sum())
            per_video += np.bincount(video[keep], often, rows)
        self.ignored_weight = min(engaged_weight / ignored, 1.0) if ignored else 0.0
        if total == 0:
            names = ", ".join(sorted(self.weights.labels)) or "none"
            raise ValueError(
                f"{self.prepared.name}: no training impression has a label that targets weigh ({names}); "
                "set target.weights for a label of this log, or target.impression above 0"
            )
        return total, per_video, shown

    def _targets(self, sequences: Sequences) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Examples that are targets, their weight as positives, and ``TargetWeights.outcome``."""
        examples = sequences.examples
        weight = self.weights.of(examples["example_true"])
        outcome = self.weights.outcome(examples["example_true"], examples["example_known"])
        weight[outcome == 0] = 0.0
        wanted = (weight > 0) | ((outcome == 0) & self.ignored)
        keep = np.flatnonzero(
            wanted & (examples["example_split"] < self.splits) & (examples["example_video"] > 0)
        )
        return keep, weight[keep], outcome[keep]

    def _contrast(self, weight: np.ndarray, outcome: np.ndarray) -> np.ndarray:
        """See ``Batch.target_contrast_P``."""
        if self.ignored_weight == 0.0:
            return np.zeros(len(weight), np.float32)
        ignored = np.where(outcome == 0, -self.ignored_weight, 0.0)
        return np.where(outcome == 1, weight, ignored).astype(np.float32)

    def _came(self, true_mask: np.ndarray, known_mask: np.ndarray) -> np.ndarray:
        """See ``Batch.target_outcome_P``."""
        came = np.where(known_mask & self.gain, -1, 0)
        came[(true_mask & self.gain) != 0] = 1
        return came.astype(np.int8)

    def _windows(self, shard: int, generator: np.random.Generator) -> tuple[Sequences, Windows]:
        if self._cached is None or self._cached[0] != shard:
            self._cached = (shard, Sequences.read(self.prepared.shards[shard]))
        sequences = self._cached[1]
        keep, weight, outcome = self._targets(sequences)
        contrast = self._contrast(weight, outcome)
        came = self._came(*(sequences.examples[name][keep] for name in ("example_true", "example_known")))
        time_ms = sequences.examples["example_time_ms"][keep].astype(np.int64)
        row = sequences.example_rows()[keep]
        known = sequences.examples["example_history_end"][keep].astype(np.int64)
        if not self.ordered:
            sequences, known = _shuffled(sequences, keep, row, generator)
        video = sequences.examples["example_video"][keep].astype(np.int64)
        windows = cut_windows(sequences, row, known, video, weight, time_ms, contrast, came, self.max_steps)
        return sequences, windows

    def _groups(self, windows: Windows, generator: np.random.Generator) -> list[np.ndarray]:
        """Windows of this rank, batched by similar length under the token budget, batches shuffled.

        Every rank gets the same number of batches: groups are cut over all ranks' windows, then each
        rank takes every ``world``-th window of a group (an empty share repeats one without weight).
        """
        shuffled = generator.permutation(len(windows.row))
        # similar lengths share a batch; the noise keeps the composition of batches fresh
        noisy = windows.length[shuffled] * generator.uniform(0.9, 1.1, len(shuffled))
        ordered = shuffled[np.argsort(noisy, kind="stable")]
        lengths = windows.length[ordered] + 1
        groups, begin, longest = [], 0, 0
        for place, length in enumerate(lengths.tolist()):
            longest = max(longest, length)
            if place > begin and longest * (place - begin + 1) > self.tokens * self.world:
                groups.append(ordered[begin:place])
                begin, longest = place, length
        if begin < len(ordered):
            groups.append(ordered[begin:])
        return [groups[i] for i in generator.permutation(len(groups))]

    def _batch(
        self, sequences: Sequences, windows: Windows, group: np.ndarray, generator: np.random.Generator
    ) -> Batch:
        chosen = group[self.rank :: self.world]
        idle = len(chosen) == 0
        if idle:
            chosen = group[:1]
        length = windows.length[chosen]
        steps = int(length.max(initial=0))
        index_BS = windows.start[chosen, None] + np.arange(steps)
        valid_BS = np.arange(steps) < length[:, None]
        index_BS = np.where(valid_BS, index_BS, 0)
        step = {}
        for name, column in sequences.steps.items():
            picked = column[index_BS] if len(column) else np.zeros_like(index_BS)
            step[name] = np.where(valid_BS, picked, 0).astype(np.int64)
        query, own, offsets, targets = self._queries(windows, chosen, generator)
        # long sets have more to say than short ones, but less than in proportion
        share_P = np.repeat(np.diff(offsets) ** -0.5, np.diff(offsets)).astype(np.float32)
        batch = Batch(
            user_row_B=sequences.user_row[windows.row[chosen]],
            length_B=length,
            video_BS=step["step_video"],
            time_ms_BS=step["step_time_ms"],
            actions_BS=step["step_actions"],
            known_BS=step["step_known"],
            watch_ms_BS=step["step_watch_ms"],
            surface_BS=step["step_surface"],
            query_window_Q=query,
            query_position_Q=windows.position[own],
            query_time_ms_Q=windows.time_ms[own],
            target_offsets=offsets,
            target_video_P=windows.video[targets],
            target_weight_P=windows.weight[targets] * (0.0 if idle else 1.0) * share_P,
            target_contrast_P=windows.contrast[targets] * (0.0 if idle else 1.0) * share_P,
            target_outcome_P=windows.outcome[targets] * np.int8(not idle),
            video_rows=self.population,
            log_correction=None,
        )
        return self._with_candidates(batch, generator)

    def _queries(
        self, windows: Windows, chosen: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Queries of the ``chosen`` windows: their window and next target ``[Q]``, the offsets of their
        targets, and the targets ``[P]``.
        """
        starts, stops = windows.target_offsets[chosen], windows.target_offsets[chosen + 1]
        count = stops - starts
        if self.ordered:
            query, own = np.repeat(np.arange(len(chosen)), count), ranges(starts, stops)
            ends = own + 1
        else:
            query = np.repeat(np.arange(len(chosen)), np.minimum(count, SET_QUERIES))
            share = generator.random(len(query)) ** SET_PREFIX
            own = starts[query] + (count[query] * share).astype(np.int64)
            ends = stops[query]
        return query, own, np.concatenate([[0], np.cumsum(ends - own)]), ranges(own, ends)

    def _with_candidates(self, batch: Batch, generator: np.random.Generator) -> Batch:
        """Turn catalogue rows into indices of the step's candidates."""
        if self.sampler is None:
            return replace(
                batch,
                video_BS=self._index_of[batch.video_BS],
                target_video_P=self._index_of[batch.target_video_P],
            )
        next_Q = batch.target_video_P[batch.target_offsets[:-1]]
        present = np.unique(np.concatenate([batch.video_BS.ravel(), batch.target_video_P]))
        drawn = self.sampler.draw(next_Q, present, generator)
        return replace(
            batch,
            video_BS=np.searchsorted(drawn.rows, batch.video_BS),
            target_video_P=np.searchsorted(drawn.rows, batch.target_video_P),
            video_rows=drawn.rows,
            log_correction=drawn.log_correction,
        )


def _shuffled(
    sequences: Sequences, keep: np.ndarray, row: np.ndarray, generator: np.random.Generator
) -> tuple[Sequences, np.ndarray]:
    """Unordered logs: a fresh random order of each user's training set; each video is predicted from
    those that the draw puts before it.
    """
    examples = sequences.examples
    order = keep[np.lexsort((generator.random(len(keep)), row))]
    offsets = np.searchsorted(row, np.arange(sequences.num_rows + 1))
    place = np.empty(len(examples["example_video"]), np.int64)
    place[order] = np.arange(len(order)) - offsets[row]
    steps = {
        "step_video": examples["example_video"][order],
        "step_time_ms": examples["example_time_ms"][order],
        "step_actions": examples["example_true"][order],
        "step_known": examples["example_known"][order],
        "step_watch_ms": examples["example_watch_ms"][order],
        "step_surface": examples["example_surface"][order],
    }
    shuffled = replace(sequences, step_offsets=offsets, steps=steps)
    return shuffled, place[keep]
