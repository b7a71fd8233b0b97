"""What ``shopreel prepare`` counts while it streams, and how it tells it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Group
from rich.table import Table

from data.contract import time_zone
from data.held_out import unseen_impressions
from data.leaks import Impressions
from data.records import Block, Log
from data.schema import LABEL_BIT, LABELS, SPLITS
from data.split import TRAIN, SplitMode

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
SAMPLE_IMPRESSIONS = 100_000


@dataclass(slots=True)
class Tally:
    """Counts over blocks; S splits, L labels, rows of users and of the catalogue include row 0."""

    video_train_count: I64
    video_train_true: I64
    user_trained: npt.NDArray[np.bool_]
    records: int = 0
    users: int = 0
    actions: int = 0
    unattributed: I64 = field(default_factory=lambda: np.zeros(len(LABELS), np.int64))
    impressions_S: I64 = field(default_factory=lambda: np.zeros(len(SPLITS), np.int64))
    watched_S: I64 = field(default_factory=lambda: np.zeros(len(SPLITS), np.int64))
    true_SL: I64 = field(default_factory=lambda: np.zeros((len(SPLITS), len(LABELS)), np.int64))
    known_SL: I64 = field(default_factory=lambda: np.zeros((len(SPLITS), len(LABELS)), np.int64))
    known_true_SL: I64 = field(default_factory=lambda: np.zeros((len(SPLITS), len(LABELS)), np.int64))
    truth_users_SL: I64 = field(default_factory=lambda: np.zeros((len(SPLITS), len(LABELS)), np.int64))
    truth_videos_SL: I64 = field(default_factory=lambda: np.zeros((len(SPLITS), len(LABELS)), np.int64))
    _sampled: list[Impressions] = field(default_factory=list)

    @classmethod
    def empty(cls, *, users: int, videos: int) -> "Tally":
        """Nothing counted yet, for vocabularies of these lengths."""
        return cls(
            np.zeros(videos, np.int64), np.zeros((videos, len(LABELS)), np.int64), np.zeros(users, np.bool_)
        )

    def add(self, block: Block) -> None:
        """Count one block of whole users."""
        self.records += len(block)
        self.users += len(block.user_bounds()) - 1
        lost = block.own_true[block.is_action & ~block.attributed]
        self.actions += int(block.is_action.sum())
        self.unattributed += [int(((lost & bit) > 0).sum()) for bit in LABEL_BIT.values()]
        for rank in range(len(SPLITS)):
            here = np.flatnonzero((block.rank == rank) & ~block.is_action)
            true, known = block.true[here], block.known[here]
            self.impressions_S[rank] += len(here)
            self.watched_S[rank] += int((block.watch_ms[here] >= 0).sum())
            for place, bit in _present(true | known):
                self.true_SL[rank, place] += int(((true & bit) > 0).sum())
                self.known_SL[rank, place] += int(((known & bit) > 0).sum())
                self.known_true_SL[rank, place] += int(((true & known & bit) > 0).sum())
            if rank == TRAIN:
                self._add_train(block, here)
            elif len(here):
                self._add_truths(block, rank)

    def _add_train(self, block: Block, train: I64) -> None:
        video, true = block.video[train], block.true[train]
        self.video_train_count += np.bincount(video, minlength=len(self.video_train_count))
        for place, bit in _present(true):
            positive = video[(true & bit) > 0]
            self.video_train_true[:, place] += np.bincount(positive, minlength=len(self.video_train_true))
        self.user_trained[block.user[train]] = True
        missing = SAMPLE_IMPRESSIONS - sum(len(part.user) for part in self._sampled)
        if missing > 0:
            some = train[np.linspace(0, len(train) - 1, min(missing, len(train))).astype(np.int64)]
            self._sampled.append(
                Impressions(block.user[some], block.video[some], block.true[some], block.known[some])
            )

    def _add_truths(self, block: Block, rank: int) -> None:
        unseen = np.flatnonzero(unseen_impressions(block, rank))
        user, video, true = block.user[unseen], block.video[unseen], block.true[unseen]
        for place, bit in _present(true):
            positive = np.flatnonzero((true & bit) > 0)
            pairs = np.unique(user[positive] * len(self.video_train_count) + video[positive])
            self.truth_videos_SL[rank, place] += len(pairs)
            self.truth_users_SL[rank, place] += len(np.unique(pairs // len(self.video_train_count)))

    def sample(self) -> Impressions:
        """Training impressions of a random set of users, at most ``SAMPLE_IMPRESSIONS``."""
        empty = np.zeros(0, np.int64)
        parts = self._sampled or [Impressions(empty, empty, empty.astype(np.int32), empty.astype(np.int32))]
        return Impressions(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("user", "video", "true", "known")
            )
        )

    def tasks(self) -> list[str]:
        """Labels that are known for some training impression."""
        return [label for place, label in enumerate(LABELS) if self.known_SL[TRAIN, place]]

    def to_json(self, log: Log) -> dict[str, Any]:
        """The manifest's ``counts``."""
        by_label = {
            label: {
                split: {
                    "true": int(self.true_SL[rank, place]), "known": int(self.known_SL[rank, place]),
                    "known_true": int(self.known_true_SL[rank, place]),
                    **({} if rank == TRAIN else {
                        "truth_users": int(self.truth_users_SL[rank, place]),
                        "truth_videos": int(self.truth_videos_SL[rank, place]),
                    }),
                }
                for rank, split in enumerate(SPLITS)
            }
            for place, label in enumerate(LABELS)
            if self.known_SL[:, place].any() or self.true_SL[:, place].any()
        }  # fmt: skip
        kept = int(self.impressions_S.sum())
        return {
            "users": self.users,
            "videos": len(self.video_train_count) - 1,
            "videos_in_train": int((self.video_train_count[1:] > 0).sum()),
            "impressions": dict(zip(SPLITS, map(int, self.impressions_S), strict=True)),
            "watch_known": dict(zip(SPLITS, map(int, self.watched_S), strict=True)),
            "actions": self.actions,
            "left_out": log.extent.impressions - kept + log.extent.actions - self.actions,
            "unattributed": {
                label: int(count) for label, count in zip(LABELS, self.unattributed, strict=True) if count
            },
            "labels": by_label,
        }


def summary(manifest: dict[str, Any], unread: Sequence[str] = ()) -> Group:
    """What was made, for the screen; ``unread`` are columns of the log that nothing was made of."""
    counts = manifest["counts"]
    lines = [
        f"{counts['users']:,} users · {counts['videos']:,} videos ({counts['videos_in_train']:,} in train) · "
        f"{sum(counts['impressions'].values()):,} impressions · {counts['actions']:,} actions",
        _split_line(manifest),
    ]
    if counts["left_out"]:
        lines.append(f"left out, at or after split.end: {counts['left_out']:,} records")
    if counts["unattributed"]:
        lost = ", ".join(f"{count:,} {label}" for label, count in counts["unattributed"].items())
        lines.append(f"actions without an impression in their window (kept as history steps): {lost}")
    for label, cells in counts["labels"].items():
        late = sum(cell["true"] - cell["known_true"] for cell in cells.values())
        if late:
            lines.append(f"{label}: {late:,} came true in a window still open: truths, not known labels")
    lines += [f"no feature from {note}" for note in manifest["feature_notes"]]
    if unread:
        lines.append(f"not read, since the contract has no such columns: {', '.join(unread)}")
    if not counts["labels"]:
        lines.append(
            "no label: no model can be trained; write one to events, such as click (true where somebody did, "
            f"false where not, null where unknown); a label is one of {', '.join(LABELS)}"
        )
    return Group(*lines, _label_table(counts))


def _label_table(counts: dict[str, Any]) -> Table:
    table = Table(
        title="true of known labels, and below the truths that the split holds out (unseen positives, users)"
    )
    table.add_column("")
    for name in SPLITS:
        table.add_column(name, justify="right")
    table.add_row("impressions", *[f"{counts['impressions'][name]:,}" for name in SPLITS], end_section=True)
    for label, cells in counts["labels"].items():
        table.add_row(label, *[_cell(cells[name]) for name in SPLITS])
    return table


def _cell(cell: dict[str, int]) -> str:
    text = f"{cell['known_true']:,} of {cell['known']:,}"
    return text + (f"\n{cell['truth_videos']:,}, {cell['truth_users']:,}" if "truth_videos" in cell else "")


def _split_line(manifest: dict[str, Any]) -> str:
    split, zone = manifest["split"], time_zone(manifest["dataset"]["time_zone"])
    if split["mode"] == SplitMode.given.value:
        return "split: as the column split of events says"
    days = {
        name: datetime.fromtimestamp(split[f"{name}_ms"] / 1000, zone).isoformat(" ", "minutes")
        for name in ("validation", "test", "end")
        if split[f"{name}_ms"] is not None
    }
    return "split by time: " + ", ".join(f"{name} from {moment}" for name, moment in days.items())


def _present(masks: I32) -> list[tuple[int, int]]:
    """Place and bit of the labels that occur in ``masks``."""
    some = int(np.bitwise_or.reduce(masks, initial=0))
    return [(place, bit) for place, bit in enumerate(LABEL_BIT.values()) if some & bit]
