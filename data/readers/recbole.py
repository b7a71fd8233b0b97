"""RecBole atomic files: ``NAME.inter``, with ``NAME.item`` and ``NAME.user`` where they are there.

Tab-separated with a typed header, ``field:token|float|token_seq|float_seq``. Source: https://recbole.io.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ibis
import ibis.expr.types as ir

from data.contract_values import EARLIEST
from data.dataset import DatasetInfo
from data.errors import ConfigError, ContractError
from data.readers.draft import Draft, ReaderOptions
from data.readers.expressions import (
    PLACED_FROM_US,
    ids_of,
    keep,
    label,
    out_of_range,
    split_list,
    without_duplicates,
)
from data.readers.files import find, need
from data.readers.report import ImportReport
from data.readers.staging import Staging, TextFormat, read_header
from data.schema import TABLES

LAYOUT = TextFormat(delimiter="\t", quote=None)
TYPES = {"token": "string", "float": "float64", "token_seq": "string", "float_seq": "string"}
USER_FIELDS, VIDEO_FIELDS = ("user_id", "session_id"), ("item_id",)
TITLE_FIELDS = ("title", "movie_title", "item_title", "name")
TAG_FIELDS = ("class", "genre", "genres", "categories", "category", "tags")


class Atomic(NamedTuple):
    """A read atomic file: its rows under bare field names, and the RecBole type of each field."""

    rows: ir.Table
    types: Mapping[str, str]
    file: Path

    def field(self, names: tuple[str, ...]) -> str:
        """The first of ``names`` that is there; raises with the fields of the file."""
        for name in names:
            if name in self.types:
                return name
        found = ", ".join(self.types)
        raise ContractError(f"{self.file}, column {names[0]}: missing (it has {found}); rename the field")


def read(staging: Staging, raw: Path, options: ReaderOptions) -> Draft:
    """Read the one ``.inter`` file in ``raw`` and its companions. A float ``rating`` gives ``like``."""
    logs = need(raw, ("*.inter",))
    if len(logs) > 1:
        names = ", ".join(file.name for file in logs[:5])
        raise ConfigError(f"raw={raw}: holds several .inter files ({names}); name one, as raw={logs[0]}")
    report = ImportReport()
    log = _read(staging, logs[0])
    stem = logs[0].name.removesuffix(".gz").removesuffix(".inter")
    videos, users = (
        _read(staging, files[0]) if (files := find(logs[0].parent, (f"{stem}.{kind}",))) else None
        for kind in ("item", "user")
    )
    user, video = log.field(USER_FIELDS), log.field(VIDEO_FIELDS)
    user_columns = [log.rows[user], *([users.rows[users.field((user,))]] if users else [])]
    video_columns = [log.rows[video], *([videos.rows[videos.field((video,))]] if videos else [])]
    user_kind, video_kind = ids_of(staging, *user_columns), ids_of(staging, *video_columns)
    info = DatasetInfo(
        name=stem.lower(),
        source=f"RecBole atomic files of {stem}, https://recbole.io",
        licence="that of the underlying data set",
    )
    ids = {"user_id": log.rows[user].cast(user_kind), "video_id": log.rows[video].cast(video_kind)}
    tables = {"events": _events(staging, log, ids, options, info, report)}
    if videos:
        rows = without_duplicates(_videos(videos, video, video_kind, info))
        report.table("videos").read = staging.count(videos.rows)
        tables["videos"] = rows
    if users:
        user_id = users.rows[user].cast(user_kind)
        further = _further(users, {user}, "users", info)
        report.table("users").read = staging.count(users.rows)
        tables["users"] = without_duplicates(users.rows.select(user_id=user_id, **further))
    return Draft(info, tables, report)


def _read(staging: Staging, file: Path) -> Atomic:
    types = {}
    columns = {}
    for head in read_header(file, LAYOUT):
        name, _, kind = head.partition(":")
        if kind not in TYPES or not name:
            known = ", ".join(TYPES)
            raise ContractError(f"{file}, line 1: {head!r} is not field:type ({known}); mend the header")
        types[name], columns[head] = kind, TYPES[kind]
    rows = staging.read_text([file], columns, LAYOUT)
    return Atomic(rows.rename({head.partition(":")[0]: head for head in columns}), types, file)


def _events(
    staging: Staging,
    log: Atomic,
    ids: Mapping[str, ir.Value],
    options: ReaderOptions,
    info: DatasetInfo,
    report: ImportReport,
) -> ir.Table:
    rows = log.rows.mutate(**ids)
    reasons = {"without user or item": rows.user_id.isnull() | rows.video_id.isnull()}
    if log.types.get("timestamp") == "float":
        per_second, placed_from_us = _time_unit(staging, rows, info)
        reasons["without time"] = rows.timestamp.isnull()
        if not placed_from_us:
            reasons["time out of range"] = out_of_range(rows.timestamp, per_second, options.now)
    else:
        info.ordered = info.real_time = False
        info.notes.append("no timestamp field: all events share one placed time, and their order is unknown")
    compared = list(dict.fromkeys([*log.types, "user_id", "video_id"]))
    rows = keep(staging, rows, reasons, report.table("events")).select(*compared)
    rows = without_duplicates(rows)
    time_us = ibis.literal(PLACED_FROM_US)
    if "without time" in reasons:
        time_us = (rows.timestamp * (1_000_000 // per_second)).round().cast("int64") + placed_from_us
    labels = {"click": ibis.literal(True)}
    if log.types.get("label") == "float":
        labels["click"] = label(rows.label)
    if log.types.get("rating") == "float":
        labels["like"] = rows.rating >= options.like_from_rating
        info.notes.append(f"like is a rating of {options.like_from_rating:g} or more")
    return rows.select(user_id=rows.user_id, video_id=rows.video_id, event_time=time_us, **labels)


def _time_unit(staging: Staging, rows: ir.Table, info: DatasetInfo) -> tuple[int, int]:
    """Units of ``timestamp`` per second, and what to add (µs) where it is a mere counter."""
    (found,) = staging.fetch(rows.aggregate(last=rows.timestamp.max()))
    last = found["last"] or 0.0
    if last < EARLIEST.timestamp():
        info.real_time = False
        info.notes.append("timestamp is a counter, not a time: it is placed as seconds from 2000-01-01")
        return 1, PLACED_FROM_US
    return (1 if last < 1e11 else 1000 if last < 1e14 else 1_000_000), 0


def _videos(videos: Atomic, key: str, kind: str, info: DatasetInfo) -> ir.Table:
    rows, types = videos.rows, videos.types
    columns = {"video_id": rows[key].cast(kind)}
    used = {key}
    title = next((name for name in TITLE_FIELDS if types.get(name, "").startswith("token")), None)
    if title:
        columns["title"] = rows[title]
        used.add(title)
    tags = next((name for name in TAG_FIELDS if types.get(name) == "token_seq"), None)
    if tags:
        columns["tags"] = split_list(rows[tags], " ")
        used.add(tags)
    return rows.select(**columns, **_further(videos, used, "videos", info))


def _further(atomic: Atomic, used: set[str], table: str, info: DatasetInfo) -> dict[str, ir.Value]:
    """The remaining fields as features: token as string, float as float64, token_seq as list of string."""
    columns = {}
    for name, kind in atomic.types.items():
        if name in used:
            continue
        if kind == "float_seq":
            info.notes.append(f"{atomic.file.name}: {name} (float_seq) is left out")
            continue
        # A field that happens to bear a contract name need not have the contract's meaning or type.
        column = f"{name}_field" if name in TABLES[table] else name
        values = atomic.rows[name]
        columns[column] = split_list(values, " ") if kind == "token_seq" else values
    return columns
