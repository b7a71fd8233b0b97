"""What a bundle's ranker says of every logged impression of a split: the table ``predictions``."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from data.dataset import Dataset
from data.engine import Engine, open_engine
from data.held_out import HeldOutRules
from data.ranking_loader import RankingBatch
from data.records import Block, Log, Rows, distinct, extent_of, stream
from data.schema import LABEL_BIT
from data.sequences import Sequences
from data.shards import sequence_rows
from data.split import split_rank
from models.bundle import Bundle
from models.ranker_inference import Predictions, RankerScorer

_BLOCK_RECORDS = 200_000
_BATCH = 4096


@dataclass(frozen=True, slots=True)
class _Scored:
    """A batch of impressions, the log's own rows of their users and videos, and what was predicted."""

    batch: RankingBatch
    predictions: Predictions
    user: np.ndarray
    video: np.ndarray


def predictions_schema(bundle: Bundle) -> pa.Schema:
    """CONTRACTS section 4, with ``surface`` and ``market`` as slices."""
    assert bundle.ranker is not None
    tasks, shape = bundle.ranker.tasks, bundle.ranker.model.shape
    fields = [
        ("request_id", pa.string()),
        ("user_id", bundle.users.type),
        ("video_id", bundle.catalogue.type),
    ]
    fields += [(f"p_{task}", pa.float32()) for task in tasks]
    fields += [(f"label_{task}", pa.bool_()) for task in tasks]
    if shape.watch_bins:
        fields += [("predicted_watch_ms", pa.float32()), ("watch_ms", pa.int64())]
    if shape.order_value:
        fields += [("predicted_order_value_minor", pa.float32()), ("order_value_minor", pa.int64())]
    return pa.schema([*fields, ("surface", pa.string()), ("market", pa.string())])


def predict_impressions(
    bundle: Bundle, dataset: Dataset, split: str, *, memory_limit_gb: float
) -> Iterator[pa.Table]:
    """Tables of :func:`predictions_schema`: every impression of ``split`` scored with what was known strictly
    before it. Labels, watch time and order value are null where unknown.
    """
    scorer = bundle.ranker
    assert scorer is not None
    rules = HeldOutRules.of(bundle.prepared)
    model = Rows(bundle.users, bundle.catalogue, bundle.surfaces, bundle.markets)
    with open_engine(Engine.duckdb, memory_limit_gb=memory_limit_gb) as session:
        log = Log(dataset, extent_of(session, dataset), rules.split, rules.attribution, rules.label_by_split)
        # the log's own ids, so that two users or videos unknown to the bundle stay two
        own = replace(
            model,
            users=distinct(session, dataset, "user_id"),
            catalogue=distinct(session, dataset, "video_id"),
        )
        for block in stream(session, log, own, block_records=_BLOCK_RECORDS):
            for scored in _score(block, scorer, own, model, split_rank(split)):
                yield _table(scored, bundle, own, split)


def _score(block: Block, scorer: RankerScorer, own: Rows, model: Rows, rank: int) -> Iterator[_Scored]:
    user_row = np.concatenate([[0], model.users.rows(own.users.known)])
    video_row = np.concatenate([[0], model.catalogue.rows(own.catalogue.known)])
    sequences = Sequences.of(sequence_rows(block))
    users, videos = sequences.user_row, sequences.examples["example_video"]
    translated = replace(
        sequences,
        user_row=user_row[users],
        steps=sequences.steps | {"step_video": video_row[sequences.steps["step_video"]]},
        examples=sequences.examples | {"example_video": video_row[videos]},
    )
    owner = sequences.example_rows()
    chosen = np.flatnonzero(sequences.examples["example_split"] == rank)
    for begin in range(0, len(chosen), _BATCH):
        part = chosen[begin : begin + _BATCH]
        batch = scorer.features.impressions(translated, part)
        yield _Scored(batch, scorer.predict(batch), users[owner[part]], videos[part])


def _table(scored: _Scored, bundle: Bundle, own: Rows, split: str) -> pa.Table:
    batch, said = scored.batch, scored.predictions
    users = own.users.ids(scored.user)
    columns: list[pa.Array] = [
        pa.array([f"{split}:{user}" for user in users.to_pylist()]), users, own.catalogue.ids(scored.video),
        *(pa.array(probability) for probability in said.probabilities.values()),
        *(_label(batch, task) for task in said.probabilities),
    ]  # fmt: skip
    if said.watch_ms is not None:
        columns += [pa.array(said.watch_ms), pa.array(batch.watch_ms_B, mask=batch.watch_ms_B < 0)]
    if said.order_value_minor is not None:
        bought = (batch.true_B & LABEL_BIT["purchase"]) > 0
        known = (batch.known_B & LABEL_BIT["purchase"]) > 0
        value = np.where(bought, batch.order_value_B, 0)
        columns += [pa.array(said.order_value_minor), pa.array(value, mask=~known | (value < 0))]
    columns += [
        bundle.surfaces.ids(batch.requests.surface).cast(pa.string()),
        bundle.markets.ids(batch.requests.market).cast(pa.string()),
    ]
    return pa.table(columns, schema=predictions_schema(bundle))


def _label(batch: RankingBatch, task: str) -> pa.Array:
    bit = LABEL_BIT[task]
    return pa.array((batch.true_B & bit) > 0, mask=(batch.known_B & bit) == 0)
