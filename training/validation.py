"""Full ranking of a held-out split during training, read from the prepared sequences.

Seen are the videos shown before; ``replay`` also counts those that were only acted on, so the figures of
a log with an ``actions`` table can differ a little from replay's.

Axes: U users, K cutoff.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from data.history import UserHistory, UserRequest
from data.prepared import Prepared
from data.schema import LABEL_BIT, LABELS
from data.sequences import Sequences
from data.storage import read_parquet
from data.trend import has_trend


@dataclass(slots=True)
class HeldOut:
    """Requests with their unseen positives; ``seen`` and ``truth`` hold catalogue rows per user.

    ``absent``: rows that nobody's list may hold, row 0 among them.
    """

    requests: list[UserRequest]
    seen: list[np.ndarray]
    truth: list[np.ndarray]
    absent: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))

    def take(self, places: np.ndarray) -> "HeldOut":
        """The requests at ``places``."""
        chosen = places.tolist()
        return HeldOut(
            [self.requests[i] for i in chosen], [self.seen[i] for i in chosen],
            [self.truth[i] for i in chosen], self.absent,
        )  # fmt: skip

    def mask(self, score_UN: np.ndarray, begin: int = 0) -> None:
        """Put -inf in place of scores of what the lists of the users from ``begin`` on may not hold."""
        score_UN[:, self.absent] = -np.inf
        for score_N, seen in zip(score_UN, self.seen[begin : begin + len(score_UN)], strict=True):
            score_N[seen] = -np.inf


def gain_mask(prepared: Prepared, gain: str) -> int:
    """Label mask of what is relevant: a label, ``any``, or ``auto`` (long_view, else click, else any)."""
    tasks = [label for label in LABELS if label in prepared.manifest["tasks"]]
    if gain == "auto":
        gain = next((label for label in ("long_view", "click") if label in tasks), "any")
    chosen = [label for label in tasks if label != "hide"] if gain == "any" else [gain]
    return sum(LABEL_BIT[label] for label in chosen)


def held_out(prepared: Prepared, split: int, gain: int, max_users: int, max_steps: int) -> HeldOut:
    """One request per user with unseen positives in ``split`` (1 validation, 2 test).

    Shards are in random user order, so the first ``max_users`` are a sample. Where the split cuts the log by
    days, videos that nobody was shown by its end are absent: most are still to come, none can be right, and
    a model would be praised for burying what is new.
    """
    result = HeldOut([], [], [])
    if has_trend(prepared):
        result.absent = _never_shown(prepared, split)
    for shard in prepared.shards:
        if len(result.requests) >= max_users:
            break
        _collect(Sequences.read(shard), split, gain, max_users, max_steps, result)
    return result


def _never_shown(prepared: Prepared, split: int) -> np.ndarray:
    """Rows without an impression up to the end of ``split``, row 0 among them."""
    shown_N = np.zeros(len(prepared.catalogue), bool)
    for shard in prepared.shards:
        table = read_parquet(shard, ["example_video", "example_split"])
        video, of_split = (column.combine_chunks().flatten().to_numpy() for column in table.columns)
        shown_N[video[of_split <= split]] = True
    shown_N[0] = False
    return np.flatnonzero(~shown_N)


def _collect(
    sequences: Sequences, split: int, gain: int, max_users: int, max_steps: int, result: HeldOut
) -> None:
    examples, steps = sequences.examples, sequences.steps
    row_of = sequences.example_rows()
    user_of = sequences.user_row[row_of]
    # chunks of one user are neighbours: [first, last] example per user
    starts = (
        np.flatnonzero(np.r_[True, user_of[1:] != user_of[:-1]]) if len(user_of) else np.zeros(0, np.int64)
    )
    ends = np.append(starts[1:], len(user_of))
    positive = (examples["example_split"] == split) & ((examples["example_true"] & gain) != 0)
    has_truth = np.add.reduceat(positive, starts) > 0 if len(starts) else np.zeros(0, bool)
    for begin, end in zip(starts[has_truth], ends[has_truth], strict=True):
        if len(result.requests) >= max_users:
            return
        split_E = examples["example_split"][begin:end]
        video_E = examples["example_video"][begin:end]
        seen = np.unique(video_E[split_E < split])
        truth = np.setdiff1d(np.unique(video_E[positive[begin:end]]), seen)
        truth = truth[truth > 0]
        if len(truth) == 0:
            continue
        first = begin + int(np.argmax(split_E >= split))
        row = int(row_of[first])
        offset = int(sequences.step_offsets[row])
        stop = offset + int(examples["example_history_end"][first])
        start = max(offset, stop - max_steps)
        history = UserHistory(
            video_row=steps["step_video"][start:stop].astype(np.int64),
            time_ms=steps["step_time_ms"][start:stop].astype(np.int64),
            actions=steps["step_actions"][start:stop].astype(np.int32),
            known=steps["step_known"][start:stop].astype(np.int32),
            watch_ms=steps["step_watch_ms"][start:stop].astype(np.int32),
            surface_row=steps["step_surface"][start:stop].astype(np.int32),
        )
        time_ms = int(examples["example_time_ms"][first])
        surface = int(examples["example_surface"][first])
        user_row = int(user_of[begin])
        result.requests.append(
            UserRequest(user_row=user_row, history=history, time_ms=time_ms, surface_row=surface)
        )
        result.seen.append(seen)
        result.truth.append(truth)


def rank_metrics(held: HeldOut, user_UD: np.ndarray, video_ND: np.ndarray, k: int) -> dict[str, float]:
    """:func:`rank_scores` of user vectors against the catalogue's."""
    return rank_scores(held, lambda begin, end: user_UD[begin:end] @ video_ND.T, k)


def rank_scores(
    held: HeldOut, scores: Callable[[int, int], np.ndarray], k: int, batch: int = 512
) -> dict[str, float]:
    """Mean ``ndcg@k``, ``recall@k`` and ``hit@k`` over users, seen and absent videos masked.

    ``scores(begin, end)`` gives float32 ``[end − begin, N + 1]`` for a stretch of requests. Ties rank the
    smaller row first. Without users every metric is 0.
    """
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    totals = np.zeros(3)
    for begin in range(0, len(held.requests), batch):
        score_UN = scores(begin, min(begin + batch, len(held.requests)))
        held.mask(score_UN, begin)
        for score_N, truth in zip(score_UN, held.truth[begin : begin + batch], strict=True):
            gains = np.zeros(k)
            for row in truth:
                ahead = np.count_nonzero(score_N > score_N[row]) + np.count_nonzero(
                    score_N[:row] == score_N[row]
                )
                if ahead < k:
                    gains[ahead] = 1.0
            ideal = discount[: min(k, len(truth))].sum()
            totals += (gains @ discount / ideal, gains.sum() / len(truth), float(gains.any()))
    mean = totals / max(len(held.requests), 1)
    return {f"ndcg@{k}": mean[0], f"recall@{k}": mean[1], f"hit@{k}": mean[2]}
