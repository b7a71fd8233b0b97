"""Writes what was served and what came of it as a dataset that ``shopreel prepare`` takes as it is.

The store is the truth; this only carries rows over, in parts. ``written.json`` says how far: parts are
written first and the mark after them, and parts beyond the mark, left behind by a crash, are removed
before the next are written. So every row is in exactly one part, whatever dies when.

All parts of ``events`` have the same columns: those of the labels that clients have told so far, and one per
experiment. When a new one turns up, the older parts are written again with it as unknown.
"""

import hashlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.atomic import read_json, write_json
from data.dataset import DatasetInfo
from data.errors import ConfigError
from data.schema import ACTIONS, EVENTS, LABELS
from serving.live import LiveBundle
from serving.log_tables import (
    actions_table,
    arm_columns,
    contract_schema,
    events_table,
    known_labels,
    served_schema,
    served_table,
    with_arms,
    without_labels,
)
from serving.metrics import Metrics
from serving.served import ServedPage, ServedSlot, unpack
from serving.sessions import place_of
from serving.state import Store
from serving.state.protocol import EventRecord, SessionGone

logger = logging.getLogger("shopreel.log")
MARK = "written.json"
#: Rows of a log read at once, and so about the most in one part.
PART_ROWS = 50_000


class LogWriter:
    """Carries a store's logs into a dataset directory. One per directory and store; not thread-safe."""

    def __init__(self, directory: str | Path, store: Store, live: LiveBundle, metrics: Metrics) -> None:
        """Open the directory, or begin it. Raises :class:`ConfigError` where it belongs to another store."""
        self._directory = Path(directory)
        self._store = store
        self._metrics = metrics
        identity = hashlib.sha256(b"served log" + store.secret()).hexdigest()[:16]
        if (self._directory / MARK).is_file():
            self._mark = read_json(self._directory / MARK)
            if self._mark.get("store") != identity:
                raise ConfigError(f"log={directory}: was written from another store; give a new directory")
        elif self._directory.exists() and any(self._directory.iterdir()):
            raise ConfigError(f"log={directory}: is not empty and no served log; give a new directory")
        else:
            self._mark = {
                "store": identity, "events": 0, "pages": 0, "labels": [], "arms": [],
                "ids": {"user_id": str(live.users.type), "video_id": str(live.catalogue.type),
                        "product_id": str(live.facts.products.ids.type)},
            }  # fmt: skip
            self._begin(live)
        self._mark.setdefault("arms", [])
        ids = self._mark["ids"].items()
        kinds = {name: pa.int64() if kind == "int64" else pa.string() for name, kind in ids}
        self._events = contract_schema(EVENTS, kinds)
        self._actions = contract_schema(ACTIONS, kinds)
        self._served = served_schema(kinds["user_id"], kinds["video_id"])
        self._drop_leftovers()
        self._widen(self._mark["labels"], self._mark["arms"])

    def write(self) -> int:
        """Carry over what is new, in one part per table; returns how many log rows it read."""
        pages = self._store.pages_after(self._mark["pages"], PART_ROWS)
        events = self._store.events_after(self._mark["events"], PART_ROWS)
        if not pages and not events:
            return 0
        mark = dict(self._mark)
        if pages:
            mark["pages"] = pages[-1].seq
            table = served_table([unpack(row.log) for row in pages], self._served)
            self._write_part("served", pages[0].seq, pages[-1].seq, table)
        if events:
            mark["events"] = events[-1].seq
            records, span = [row.event for row in events], (events[0].seq, events[-1].seq)
            slots = _Slots(self._store)
            arms = sorted({*mark["arms"], *arm_columns(records, slots)})
            impressions = events_table(records, slots, with_arms(self._events, arms))
            labels = sorted({*mark["labels"], *known_labels(impressions)}, key=LABELS.index)
            if (labels, arms) != (mark["labels"], mark["arms"]):
                mark |= {"labels": labels, "arms": arms}
                self._widen(labels, arms)
            self._write_part("events", *span, without_labels(impressions, labels))
            self._write_part("actions", *span, actions_table(records, self._actions))
        write_json(self._directory / MARK, mark)
        self._mark = mark
        self._metrics.log_rows.inc(len(pages) + len(events))
        return len(pages) + len(events)

    def _begin(self, live: LiveBundle) -> None:
        """The tables that do not grow, and ``dataset.json``."""
        self._directory.mkdir(parents=True, exist_ok=True)
        pq.write_table(live.videos.slice(1), self._directory / "videos.parquet", compression="zstd")
        if live.products is not None:
            pq.write_table(live.products, self._directory / "products.parquet", compression="zstd")
        info = DatasetInfo(
            name="served",
            source="shopreel serve",
            licence="yours",
            notes=[
                f"served from {live.name} on; propensity and policy of an impression are those of its slot.",
                "videos.parquet lacks embeddings: put the catalogue's own in its place before training.",
                "served/ holds every slot that was handed out, watched or not.",
            ],
            tasks=list(LABELS),
        )
        write_json(self._directory / "dataset.json", asdict(info))
        write_json(self._directory / MARK, self._mark)

    def _write_part(self, table: str, first: int, last: int, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        target = self._directory / table / f"part-{first:012}-{last:012}.parquet"
        target.parent.mkdir(exist_ok=True)
        _replace(target, rows)

    def _widen(self, labels: Sequence[str], arms: Sequence[str]) -> None:
        """Give every part of ``events`` the columns of ``labels`` and ``arms``, and those of any part."""
        parts = sorted((self._directory / "events").glob("*.parquet"))
        columns = {part: set(pq.read_schema(part).names) for part in parts}
        wanted = set(labels).union(arms, *columns.values())
        schema = with_arms(self._events, sorted(wanted - set(self._events.names)))
        for part in parts:
            if not wanted <= columns[part]:
                rows = pq.read_table(part)
                full = {
                    field.name: rows.column(field.name)
                    if field.name in rows.column_names
                    else pa.nulls(rows.num_rows, field.type)
                    for field in schema
                    if field.name in wanted
                }
                _replace(part, pa.table(full))

    def _drop_leftovers(self) -> None:
        for table, done in (("served", "pages"), ("events", "events"), ("actions", "events")):
            for part in (self._directory / table).glob("*"):
                # part-FIRST-LAST.parquet
                if part.name.startswith(".") or int(part.stem.split("-")[2]) > self._mark[done]:
                    logger.warning("removing %s, which a crash left behind", part)
                    part.unlink()


def _replace(target: Path, rows: pa.Table) -> None:
    draft = target.with_name(f".{target.name}.draft")
    try:
        pq.write_table(rows, draft, compression="zstd")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


class LogThread:
    """Writes the log every ``every_s`` seconds until closed, and once more then."""

    def __init__(self, writer: LogWriter, metrics: Metrics, every_s: float) -> None:
        self._writer = writer
        self._metrics = metrics
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="log-writer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is left, then stop."""
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(self._every_s):
            self._write_all()
        self._write_all()

    def _write_all(self) -> None:
        try:
            while self._writer.write():
                pass
        except Exception:
            self._metrics.log_failures.inc()
            logger.exception("writing the served log failed; nothing is lost, it is tried again")


class _Slots:
    """Looks up the slot of an impression; remembers the pages of one part."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pages: dict[str, ServedPage | None] = {}

    def __call__(self, event: EventRecord) -> tuple[ServedPage, ServedSlot] | None:
        if event.request_id is None:
            return None
        if event.request_id not in self._pages:
            self._pages[event.request_id] = self._load(event.request_id)
        page = self._pages[event.request_id]
        if page is None or page.user_id != event.user_id:
            return None
        slot = next((slot for slot in page.slots if slot.video_id == event.video_id), None)
        return None if slot is None else (page, slot)

    def _load(self, request_id: str) -> ServedPage | None:
        place = place_of(request_id)
        if place is None:
            return None
        try:
            log = self._store.session(place.session_id, place.page).log
        except SessionGone:
            return None
        return None if log is None else unpack(log)
