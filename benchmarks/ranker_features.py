"""The ranker's own inputs as a table, for models that read tables: the same rows, the same knowledge."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from data.prepared import Prepared
from data.ranking_loader import RankingBatch, RankingFeatures, RankingLoader, build_features
from data.schema import LABEL_BIT
from data.sequences import Sequences

#: Masks of true and known labels, watch time, and whose impression of what it was.
LABELS_OF_ROW = ("true", "known", "watch_ms", "user_row", "video")


class AtSplitStart(RankingLoader):
    """Impressions that know only what came before their split began: one request per user and split."""

    def _sequences(self, shard: int) -> Sequences:
        sequences = super()._sequences(shard)
        begin_ms = self.prepared.manifest["split"][("validation_ms", "validation_ms", "test_ms")[self.split]]
        row = sequences.example_rows()
        early = np.r_[0, np.cumsum(sequences.steps["step_time_ms"] < begin_ms)]
        before = early[sequences.step_offsets[row + 1]] - early[sequences.step_offsets[row]]
        held = sequences.examples["example_split"] == self.split
        end = sequences.examples["example_history_end"]
        frozen = np.where(held, np.minimum(end, before), end)
        return replace(sequences, examples=sequences.examples | {"example_history_end": frozen})


def open_features(prepared: Prepared, max_steps: int = 128) -> RankingFeatures:
    """Features as ``model=ranker`` reads them by default."""
    return build_features(prepared, half_life_days=(3.0, 30.0), max_steps=max_steps)


def tabulate(
    prepared: Prepared, features: RankingFeatures, split: int, train_days: int,
    loading: type[RankingLoader] = RankingLoader,
    more: tuple[tuple[str, ...], Callable[[RankingBatch], np.ndarray]] | None = None,
) -> tuple[np.ndarray, list[str], list[int], dict[str, np.ndarray]]:  # fmt: skip
    """All impressions of a split: float32 columns, their names, which are categories, and the labels.

    Columns are those of ``more`` (names, and what makes ``[B, names]`` of a batch), the statistics, surface,
    hour, user and video ids (as rows) and every single-valued feature; the labels are ``LABELS_OF_ROW``.
    """
    first_names, first_columns = more or ((), lambda batch: np.zeros((batch.examples, 0)))
    loader = loading(
        prepared, features, split=split, batch_size=8192, seed=0, train_days=train_days, shuffle=False
    )
    spec = features.spec
    single = {
        side: [bag.name for bag in prepared.spec.side(side).bags if not bag.multiple]
        for side in ("user", "video")
    }
    blocks, labels = [], []
    for batch in loader.epoch():
        rows = {"user": batch.requests.user_row, "video": batch.video_B}
        tables = {"user": prepared.user_table, "video": prepared.video_table}
        categories = [batch.requests.surface, spec.hour(batch.requests.time_ms), batch.video_B]
        for side, names in single.items():
            taken = tables[side].take(rows[side])
            for name in names:
                values, offsets = taken.bags[name]
                column = np.zeros(batch.examples, np.int64)
                column[np.diff(offsets) > 0] = values
                categories.append(column)
        statistics = (first_columns(batch), batch.user_statistics_BF, batch.candidate_statistics_BG)
        block = np.concatenate([*statistics, np.stack(categories, 1)], axis=1)
        blocks.append(block.astype(np.float32))
        labels.append((batch.true_B, batch.known_B, batch.watch_ms_B, batch.requests.user_row, batch.video_B))
    names = [
        *first_names, *spec.user_names, *spec.candidate_names, "surface", "hour", "video_row",
        *single["user"], *single["video"],
    ]  # fmt: skip
    first = len(first_names) + len(spec.user_names) + len(spec.candidate_names)
    parts = [np.concatenate(part) for part in zip(*labels, strict=True)]
    columns = dict(zip(LABELS_OF_ROW, parts, strict=True))
    return np.concatenate(blocks), names, list(range(first, len(names))), columns


def label(columns: dict[str, np.ndarray], task: str) -> tuple[np.ndarray, np.ndarray]:
    """True and known of one task."""
    bit = LABEL_BIT[task]
    known = (columns["known"] & bit) > 0
    return ((columns["true"] & bit) > 0) & known, known
