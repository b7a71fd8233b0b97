"""Which impressions train, validate and test: by day in the dataset's time zone, or as given."""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from enum import Enum
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import ConfigError, ContractError
from data.schema import SPLITS

#: Ranks are positions in ``data.schema.SPLITS``: 0 train, 1 validation, 2 test.
TRAIN, VALIDATION, TEST = range(3)
TIE_BREAK = "split rank where given, time in ms, impressions before actions, catalogue row"
TIE_BREAK_UNORDERED = "split rank, then a hashed order of videos: the log has no order"


class SplitMode(Enum):
    """``time``: by boundaries; ``given``: by the ``split`` column of events."""

    time = "time"
    given = "given"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Boundaries in Unix ms: the first moment of validation and of test, and the first left out.

    With ``mode`` given only ``end_ms`` (or None: nothing is left out) plays a part.
    """

    mode: SplitMode
    validation_ms: int | None = None
    test_ms: int | None = None
    end_ms: int | None = None
    tie_break: str = TIE_BREAK

    def __post_init__(self) -> None:
        if self.mode is SplitMode.time and (self.validation_ms is None or self.test_ms is None):
            raise ConfigError("split: a split by time needs split.validation and split.test")
        bounds = [bound for bound in (self.validation_ms, self.test_ms, self.end_ms) if bound is not None]
        if any(later <= earlier for earlier, later in pairwise(bounds)):
            moments = " < ".join(moment(bound) for bound in bounds)
            raise ConfigError(f"split: validation, test and end must follow one another; got {moments}")

    def ranks(self, time_ms: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
        """Rank of events at these times; for a split by time only."""
        assert self.mode is SplitMode.time
        bounds = np.array([self.validation_ms, self.test_ms], np.int64)
        return np.searchsorted(bounds, time_ms, side="right").astype(np.int8)

    def begin_ms(self, rank: int) -> int | None:
        """First moment of a split by time; None for train and for a given split."""
        return None if self.mode is SplitMode.given else (None, self.validation_ms, self.test_ms)[rank]

    def to_json(self) -> dict[str, Any]:
        """As in the manifest: boundaries in Unix ms and readable, tie-break, and a hash over them."""
        value: dict[str, Any] = {**asdict(self), "mode": self.mode.value}
        for name in ("validation", "test", "end"):
            bound = value[f"{name}_ms"]
            value[name] = None if bound is None else moment(bound)
        value["hash"] = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Split":
        """Read a manifest's ``split``; anything else raises :class:`ContractError`."""
        try:
            split = cls(
                mode=SplitMode(value["mode"]),
                **{name: value[name] for name in ("validation_ms", "test_ms", "end_ms", "tie_break")},
            )
            if split.to_json()["hash"] != value["hash"]:
                raise ContractError("split: boundaries do not fit their hash; prepare again")
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(f"split: not a split manifest ({error}); prepare again") from None
        return split


def split_rank(name: str) -> int:
    """0, 1, 2 for train, validation, test; another name raises :class:`ConfigError`."""
    if name not in SPLITS:
        raise ConfigError(f"split={name}: choose one of {', '.join(SPLITS)}")
    return SPLITS.index(name)


def choose_split(
    *,
    given: bool,
    validation: str | None,
    test: str | None,
    end: str | None,
    zone: tzinfo,
    last_ms: int,
    ordered: bool,
) -> Split:
    """The split that a dataset and the ``split.*`` settings ask for.

    ``given``: events have a ``split`` column, which wins. Dates are ISO days (their midnight in
    ``zone``) or ISO moments. Without dates the day of the last event ``last_ms`` is the test split and
    the day before validation; with ``test`` alone validation is the day before it.
    Raises :class:`ConfigError` for dates that cannot be read or that contradict one another.
    """
    tie_break = TIE_BREAK if ordered else TIE_BREAK_UNORDERED
    end_ms = _boundary("split.end", end, zone)
    if given:
        return Split(mode=SplitMode.given, end_ms=end_ms, tie_break=tie_break)
    if not ordered:
        raise ConfigError("events have neither order nor a split column; add a column split to events")
    if validation is not None and test is None:
        raise ConfigError("split.validation is given without split.test; give both")
    last = last_ms if end_ms is None else min(last_ms, end_ms - 1)
    test_day = datetime.fromtimestamp(last / 1000, UTC).astimezone(zone).date()
    test_ms = _boundary("split.test", test or test_day.isoformat(), zone)
    assert test_ms is not None
    before = datetime.fromtimestamp((test_ms - 1) / 1000, UTC).astimezone(zone).date()
    validation_ms = _boundary("split.validation", validation or before.isoformat(), zone)
    return Split(
        mode=SplitMode.time, validation_ms=validation_ms, test_ms=test_ms, end_ms=end_ms, tie_break=tie_break
    )


def _boundary(key: str, text: str | None, zone: tzinfo) -> int | None:
    if text is None:
        return None
    try:
        if len(text) == len("2022-05-04"):
            begin = datetime.combine(date.fromisoformat(text), time(), zone)
        else:
            begin = datetime.fromisoformat(text)
            begin = begin if begin.tzinfo else begin.replace(tzinfo=zone)
    except ValueError:
        raise ConfigError(
            f"{key}={text}: neither day nor moment; write it as 2022-05-04 or 2022-05-04T18:00"
        ) from None
    return (begin - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def moment(time_ms: int) -> str:
    """Unix ms as text, in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
