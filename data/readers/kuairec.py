"""KuaiRec (Kuaishou, 2020): ``big_matrix.csv``, and ``small_matrix.csv`` where nearly every pair was shown.

Source: Gao et al., CIKM 2022, https://kuairec.com, CC BY-SA 4.0.
"""

from pathlib import Path

import ibis
import ibis.expr.types as ir

from data.dataset import DatasetInfo
from data.readers.draft import Draft, ReaderOptions
from data.readers.expressions import (
    at_least_zero,
    date_us,
    keep,
    out_of_range,
    split_list,
    whole,
    without_duplicates,
)
from data.readers.files import find, need
from data.readers.kuaishou import users
from data.readers.report import ImportReport
from data.readers.staging import Staging, TextFormat

BELOW = ("", "data")
POLICIES = {"big_matrix.csv": "standard", "small_matrix.csv": "everything_shown"}
LOG_COLUMNS = {
    "user_id": "int64", "video_id": "int64", "play_duration": "float64", "video_duration": "float64",
    "timestamp": "float64",
}  # fmt: skip
#: Kuaishou's definition of a long view, as KuaiRand's documentation states it.
LONG_VIEW_MS = 18_000
UTC_OFFSET_HOURS = 8


def read(staging: Staging, raw: Path, options: ReaderOptions) -> Draft:
    """Read the matrices that are there, with captions, categories, daily features and users."""
    logs = need(raw, tuple(POLICIES), below=BELOW)
    report = ImportReport()
    parts = [
        staging.read_text([file], LOG_COLUMNS).mutate(
            policy=ibis.literal(POLICIES[file.name.removesuffix(".gz")])
        )
        for file in logs
    ]
    rows = (ibis.union(*parts) if len(parts) > 1 else parts[0]).drop("line")
    rows = keep(
        staging,
        rows,
        {
            "without user or video": rows.user_id.isnull() | rows.video_id.isnull(),
            "without time": rows.timestamp.isnull(),
            "time out of range": out_of_range(rows.timestamp, 1, options.now),
        },
        report.table("events"),
    )
    rows = without_duplicates(rows)
    watch_ms, duration_ms = whole(at_least_zero(rows.play_duration)), whole(rows.video_duration)
    events = rows.select(
        user_id=rows.user_id,
        video_id=rows.video_id,
        event_time=(rows.timestamp * 1000).round().cast("int64") * 1000,
        watch_ms=watch_ms,
        long_view=watch_ms >= ibis.least(duration_ms, LONG_VIEW_MS),
        policy=rows.policy,
    )
    durations = rows.group_by("video_id").aggregate(duration_ms=whole(rows.video_duration.max()))
    beside = raw.parent if raw.is_file() else raw
    tables = {"events": events, "videos": _videos(staging, durations, beside)}
    report.table("videos").read = staging.count(durations)
    if files := find(beside, ("user_features.csv",), below=BELOW):
        tables["users"] = users(staging, files, report)
    info = DatasetInfo(
        name="kuairec",
        source="KuaiRec, https://kuairec.com (Gao et al., CIKM 2022)",
        licence="CC BY-SA 4.0",
        notes=[
            f"long_view is derived: watched to the end, or for at least {LONG_VIEW_MS:,} ms",
            "policy tells the fully observed matrix (everything_shown) from the ordinary feed (standard)",
            "of item_daily_features only what does not change is imported, from each video's first day",
        ],
        time_zone="+08:00",
    )
    return Draft(info, tables, report)


def _videos(staging: Staging, videos: ir.Table, raw: Path) -> ir.Table:
    if files := find(raw, ("item_daily_features.csv",), below=BELOW):
        videos = _join(videos, _daily(staging, files))
    if files := find(raw, ("item_categories.csv",), below=BELOW):
        rows = staging.read_text(files, {"video_id": "int64", "feat": "string"})
        codes = rows.feat.re_replace(r"[\[\] ]", "").nullif("")
        rows = rows.mutate(codes=codes).group_by("video_id").aggregate(codes=lambda t: t.codes.max())
        videos = _join(videos, rows.select("video_id", tags=split_list(rows.codes, ",")))
    if files := find(raw, ("kuairec_caption_category.csv",), below=BELOW):
        names = {"title": "caption", "category": "second_level_category_name"}
        names["top_category"] = "first_level_category_name"
        columns = {"video_id": "int64", **dict.fromkeys(names.values(), "string")}
        rows = staging.read_text(files, columns, TextFormat(multiline=True))
        named = {name: rows[upstream].nullif("UNKNOWN").max() for name, upstream in names.items()}
        videos = _join(videos, rows.group_by("video_id").aggregate(**named))
    return videos


def _daily(staging: Staging, files: list[Path]) -> ir.Table:
    texts = dict.fromkeys(("video_type", "upload_dt", "upload_type", "video_tag_name"), "string")
    numbers = dict.fromkeys(("author_id", "music_id", "video_width", "video_height"), "float64")
    rows = staging.read_text(files, {"video_id": "int64", "date": "int64", **texts, **numbers})
    by_day = ibis.window(group_by=rows.video_id, order_by=[rows.date, rows.line])
    rows = rows.mutate(place=ibis.row_number().over(by_day))
    rows = rows.filter(rows.place == 0)
    return rows.select(
        video_id=rows.video_id,
        creator_id=whole(rows.author_id),
        publish_time=date_us(rows.upload_dt, UTC_OFFSET_HOURS),
        video_type=rows.video_type,
        upload_type=rows.upload_type,
        music_id=at_least_zero(whole(rows.music_id)),
        video_width=at_least_zero(rows.video_width),
        video_height=at_least_zero(rows.video_height),
        tag_name=rows.video_tag_name.nullif("UNKNOWN"),
    )


def _join(videos: ir.Table, further: ir.Table) -> ir.Table:
    return videos.left_join(further, "video_id").drop("video_id_right")
