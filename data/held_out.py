"""Held-out requests: one per user and split, with its history, what was seen, and the truth."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.dataset import Dataset
from data.engine import Engine, open_engine
from data.errors import ConfigError, ContractError
from data.history import UserHistory, UserRequest
from data.labels import Attribution
from data.records import Block, Log, Rows, distinct, extent_of, stream
from data.schema import LABEL_BIT, LABELS
from data.split import TRAIN, Split, split_rank

I64 = npt.NDArray[np.int64]
_BLOCK_RECORDS = 500_000


@dataclass(slots=True)
class HeldOutRequests:
    """B requests of one split, at most one per user.

    ``requests[i]`` is what the server would know, ``request_ids[i]`` its name in every table and
    ``markets[i]`` its market (null where unknown); ``seen[i]`` int64: distinct catalogue rows (> 0) shown
    to the user, or acted on, before the split began, ascending. ``truth``: see :func:`truth_schema`, its
    requests in the same order. ``without_truth``: users of the split who were left out for want of one.
    """

    requests: list[UserRequest]
    request_ids: pa.Array
    markets: pa.Array
    seen: list[I64]
    truth: pa.Table
    without_truth: int


@dataclass(frozen=True, slots=True)
class HeldOutRules:
    """How a log was split and labelled, so that every later command does the same."""

    split: Split
    attribution: Attribution
    label_by_split: bool = False

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> "HeldOutRules":
        """From a ``prepared.json``; anything else raises :class:`ContractError`."""
        try:
            settings = manifest["settings"]
            attribution = Attribution(settings["attribution_window_ms"])
            by_split = settings["label_horizon"] == "split"
            return cls(Split.from_json(manifest["split"]), attribution, by_split)
        except (KeyError, TypeError) as error:
            raise ContractError(f"prepared.json: lacks {error}; prepare again") from None


def truth_schema(user_id: pa.DataType, video_id: pa.DataType) -> pa.Schema:
    """The evaluation table ``truth``: a row per request and true video, labels null where unknown."""
    return pa.schema(
        [
            ("request_id", pa.string()),
            ("user_id", user_id),
            ("request_time", pa.timestamp("us", "UTC")),
            ("video_id", video_id),
            ("gain", pa.float64()),
            *[(label, pa.bool_()) for label in LABELS],
            ("surface", pa.string()),
            ("market", pa.string()),
        ]
    )


def held_out_requests(
    dataset: Dataset,
    split_name: str,
    *,
    gain: str | None,
    rules: HeldOutRules,
    rows: Rows,
    limit: int,
    memory_limit_gb: float = 4.0,
) -> Iterator[HeldOutRequests]:
    """Every request of ``split_name`` (``validation`` or ``test``) that has a truth, in batches.

    The history holds the last ``limit`` steps of everything before the split began; the truth is every
    video with ``gain`` true in the split that was not seen before, known to ``rows.catalogue`` or not.
    The request's time and surface are those of the user's first impression in the split. A user whom
    ``rows.users`` lacks has row 0, but a history all the same. A batch may hold no request.
    ``gain`` is a label, or ``any`` for every label but hide, else :class:`ConfigError`; None gives every
    user with an impression in the split, all without truth.
    """
    mask = None if gain is None else gain_mask(gain)
    rank = split_rank(split_name)
    if rank == TRAIN:
        raise ConfigError("split=train: the training split holds nothing out; choose validation or test")
    with open_engine(Engine.duckdb, memory_limit_gb=memory_limit_gb) as session:
        log = Log(dataset, extent_of(session, dataset), rules.split, rules.attribution, rules.label_by_split)
        # the log's own ids, so that two users or videos unknown to ``rows`` stay two
        own = replace(
            rows,
            users=distinct(session, dataset, "user_id"),
            catalogue=distinct(session, dataset, "video_id"),
        )
        translate = _Translation(own, rows, f"{split_name}:")
        for block in stream(session, log, own, block_records=_BLOCK_RECORDS):
            yield _batch(block, rank, mask, translate, limit)


def truth_of_split(
    dataset: Dataset,
    split_name: str,
    *,
    gain: str,
    rules: HeldOutRules,
    rows: Rows,
    memory_limit_gb: float = 4.0,
) -> pa.Table:
    """The whole ``truth`` table of a split, as :func:`held_out_requests` yields it in batches."""
    batches = held_out_requests(
        dataset, split_name, gain=gain, rules=rules, rows=rows, limit=0, memory_limit_gb=memory_limit_gb
    )
    schema = truth_schema(rows.users.type, rows.catalogue.type)
    return pa.concat_tables([schema.empty_table(), *(batch.truth for batch in batches)])


def gain_mask(gain: str) -> int:
    """The labels of ``gain`` as a mask; :class:`ConfigError` for anything but a label or ``any``."""
    if gain == "any":
        return sum(bit for label, bit in LABEL_BIT.items() if label != "hide")
    if gain not in LABEL_BIT:
        raise ConfigError(f"gain={gain}: choose one of {', '.join(LABELS)}, any")
    return LABEL_BIT[gain]


def unseen_impressions(block: Block, rank: int) -> npt.NDArray[np.bool_]:
    """Impressions of a split whose video the user had not met (shown or acted on) before it began."""
    now = (block.rank == rank) & ~block.is_action
    candidates = np.flatnonzero(now & (block.video > 0))
    key = block.user * (int(block.video.max(initial=0)) + 1) + block.video
    wanted = np.unique(key[candidates])
    earlier = key[block.rank < rank]
    place = np.searchsorted(wanted, earlier)
    met = np.zeros(len(wanted) + 1, bool)
    met[place[wanted[np.minimum(place, len(wanted) - 1)] == earlier] if len(wanted) else []] = True
    unseen = np.zeros(len(block), bool)
    unseen[candidates] = ~met[np.searchsorted(wanted, key[candidates])]
    return unseen


@dataclass(slots=True)
class _Translation:
    """From the rows of the log's own vocabularies to those of the model, and back to ids."""

    own: Rows
    model: Rows
    prefix: str
    user_row: I64 = field(init=False)
    video_row: I64 = field(init=False)

    def __post_init__(self) -> None:
        self.user_row = np.concatenate([[0], self.model.users.rows(self.own.users.known)])
        self.video_row = np.concatenate([[0], self.model.catalogue.rows(self.own.catalogue.known)])

    def request_ids(self, user: I64) -> pa.Array:
        """``<split>:<user_id>`` of the log's own user rows."""
        return pc.binary_join_element_wise(self.prefix, self.own.users.ids(user).cast(pa.string()), "")


def _batch(block: Block, rank: int, gain: int | None, translate: _Translation, limit: int) -> HeldOutRequests:
    bounds = block.user_bounds()
    number = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    unseen = unseen_impressions(block, rank)
    positive = np.flatnonzero(unseen & ((block.true & (gain or 0)) > 0))
    history_end = bounds[:-1] + np.bincount(number[block.rank < rank], minlength=len(bounds) - 1)
    in_split = np.flatnonzero((block.rank == rank) & ~block.is_action)
    first = np.full(len(bounds) - 1, -1)
    first[number[in_split[::-1]]] = in_split[::-1]
    present = np.flatnonzero(first >= 0)
    chosen = present if gain is None else np.unique(number[positive])
    video_row = translate.video_row[block.video]
    requests, seen = [], []
    for user in chosen.tolist():
        begin, end, now = bounds[user], history_end[user], first[user]
        steps = slice(max(begin, end - limit), end)
        history = UserHistory(
            video_row[steps], block.time_ms[steps], block.own_true[steps], block.own_known[steps],
            block.watch_ms[steps], block.surface[steps],
        )  # fmt: skip
        row = int(translate.user_row[block.user[begin]])
        requests.append(UserRequest(row, history, int(block.time_ms[now]), int(block.surface[now])))
        met = np.unique(video_row[begin:end])
        seen.append(met[met > 0])
    return HeldOutRequests(
        requests, translate.request_ids(block.user[first[chosen]]),
        translate.own.markets.ids(block.market[first[chosen]]).cast(pa.string()), seen,
        _truth(block, positive, unseen, first[number], translate), len(present) - len(chosen),
    )  # fmt: skip


def _truth(
    block: Block, positive: I64, unseen: npt.NDArray[np.bool_], request: I64, translate: _Translation
) -> pa.Table:
    """One row per user and true video; labels of all its impressions in the split together."""
    key = block.user * len(translate.own.catalogue) + block.video
    pairs, kept = np.unique(key[positive], return_index=True)
    kept = positive[np.sort(kept)]
    masks = np.zeros((2, len(pairs)), np.int32)
    shown = np.flatnonzero(unseen)
    shown = shown[np.isin(key[shown], pairs)]
    place = np.searchsorted(pairs, key[shown])
    np.bitwise_or.at(masks[0], place, block.true[shown])
    np.bitwise_or.at(masks[1], place, block.known[shown])
    true, known = masks[:, np.searchsorted(pairs, key[kept])]
    user_id = translate.own.users.ids(block.user[kept])
    return pa.table(
        [
            translate.request_ids(block.user[kept]),
            user_id,
            pa.array(block.time_ms[request[kept]] * 1000, pa.timestamp("us", "UTC")),
            translate.own.catalogue.ids(block.video[kept]),
            pa.array(np.ones(len(kept))),
            *[pa.array((true & bit) > 0, mask=((true | known) & bit) == 0) for bit in LABEL_BIT.values()],
            translate.own.surfaces.ids(block.surface[kept]).cast(pa.string()),
            translate.own.markets.ids(block.market[kept]).cast(pa.string()),
        ],
        schema=truth_schema(user_id.type, translate.own.catalogue.type),
    )
