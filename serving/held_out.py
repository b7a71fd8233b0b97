"""Held-out requests of a dataset as the pipeline takes them: what replay and recommend rank."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from data.contract import check_types
from data.dataset import Dataset
from data.errors import ConfigError
from data.held_out import HeldOutRules, held_out_requests
from data.records import Rows as RowsOf
from data.schema import SPLITS
from models.bundle import Bundle
from serving.exact import Rows
from serving.pipeline import Pipeline, RankedList, RankRequest


@dataclass(slots=True)
class HeldOutBatch:
    """B requests, their names, the catalogue rows their users had met, and the true videos of all.

    ``truth`` has the columns of ``data.held_out.truth_schema``. ``without_truth`` requests were left out.
    """

    requests: list[RankRequest]
    request_ids: pa.Array
    seen: list[Rows]
    truth: pa.Table
    without_truth: int


def open_log(path: str) -> Dataset:
    """Open the dataset at a path or URL after checking what its Parquet footers tell."""
    dataset = Dataset.open(path)
    check_types(dataset)
    return dataset


def refuse_known_split(bundle: Bundle, name: str, split: str) -> None:
    """Raise :class:`ConfigError` where the towers or the trend of the bundle called ``name`` know ``split``.

    They would be asked about what they know.
    """
    facts, asked = bundle.manifest.models["two_tower"], SPLITS.index(split)
    if facts.get("trend") and (facts["as_of"] == "end" or SPLITS.index(facts["as_of"]) > asked):
        raise ConfigError(
            f"bundle={name}: its trend knows the log up to {facts['as_of']}, so the {split} "
            f"split is no test of it; publish with as_of={split}"
        )
    if (facts.get("splits") or 1) > asked:
        raise ConfigError(
            f"bundle={name}: its towers have learnt from the {split} split, so it is no test of them; "
            "train with model.refit_epochs=0"
        )


def user_requests(
    bundle: Bundle,
    dataset: Dataset,
    split: str,
    *,
    gain: str | None,
    k: int,
    rules: bool,
    memory_limit_gb: float,
    history_steps: int | None = None,
) -> Iterator[HeldOutBatch]:
    """One request per user of the split, as of its beginning; ``gain`` as in ``data.held_out``.

    Histories have the newest ``history_steps``, or as many as the user tower reads.
    """
    for held in held_out_requests(
        dataset,
        split,
        gain=gain,
        rules=HeldOutRules.of(bundle.prepared),
        rows=RowsOf(bundle.users, bundle.catalogue, bundle.surfaces, bundle.markets),
        limit=history_steps or bundle.encoder.model.shape.max_steps,
        memory_limit_gb=memory_limit_gb,
    ):
        requests = [
            RankRequest(user, k, exclude_rows=seen, market=market, rules=rules)
            for user, seen, market in zip(held.requests, held.seen, held.markets.to_pylist(), strict=True)
        ]
        yield HeldOutBatch(requests, held.request_ids, held.seen, held.truth, held.without_truth)


def rank_all(
    pipeline: Pipeline, requests: Sequence[RankRequest], *, size: int, stages: bool = False
) -> list[RankedList]:
    """Rank any number of requests, ``size`` at a time."""
    answers: list[RankedList] = []
    for start in range(0, len(requests), size):
        answers += pipeline.rank(requests[start : start + size], stages=stages)
    return answers
