"""KuaiRand (Kuaishou's short-video feed, 2022): Pure, 1K and 27K, standard and randomly exposed logs.

Source: Gao et al., CIKM 2022, https://kuairand.com, CC BY-SA 4.0.
"""

import re
from pathlib import Path

import ibis
import ibis.expr.types as ir

from data.dataset import DatasetInfo
from data.errors import ConfigError
from data.readers.draft import Draft, ReaderOptions
from data.readers.expressions import (
    at_least_zero,
    date_us,
    keep,
    label,
    out_of_range,
    split_list,
    whole,
    without_duplicates,
)
from data.readers.files import find, need
from data.readers.kuaishou import users
from data.readers.report import ImportReport
from data.readers.staging import Staging, TextFormat

LABELS = {
    "is_click": "click", "long_view": "long_view", "is_like": "like", "is_comment": "comment",
    "is_forward": "share", "is_follow": "follow", "is_profile_enter": "profile_view", "is_hate": "hide",
}  # fmt: skip
LOGS = ("log_standard_*.csv", "log_random_*.csv", "log_history_*.csv")
LOG_COLUMNS = {"user_id": "int64", "video_id": "int64", "date": "string"} | dict.fromkeys(
    ("time_ms", *LABELS, "play_time_ms", "is_rand", "tab"), "int64"
)
#: Columns that only tell upstream's exact duplicates from two real impressions of the same moment.
OPTIONAL_COLUMNS = dict.fromkeys(
    ("hourmin", "duration_ms", "profile_stay_time", "comment_stay_time"), "int64"
)
BELOW = ("", "data")
UTC_OFFSET_HOURS = 8
#: How far before the midnight of their logged day rows keep their order (more than upstream ever needs).
SQUEEZED_US = 3 * 3600 * 1_000_000


def read(staging: Staging, raw: Path, options: ReaderOptions) -> Draft:
    """Read the directory with the upstream files (or the one above its ``data``), or one log file."""
    logs = need(raw, LOGS, below=BELOW)
    variant = _variant(logs)
    report = ImportReport()
    notes = [
        "video_features_statistic is not imported: its monthly averages contain the future",
        "visible_status is not imported: it is the state at the time of the crawl",
        "policy tells randomly exposed impressions apart; upstream states no propensity",
    ]
    events = _events(staging, logs, options, report, notes)
    tables = {"events": events}
    beside = raw.parent if raw.is_file() else raw
    if files := find(beside, (f"video_features_basic_{variant}*.csv",), below=BELOW):
        tables["videos"] = _videos(staging, files, beside, report)
    if files := find(beside, (f"user_features_{variant}*.csv",), below=BELOW):
        tables["users"] = users(staging, files, report)
    info = DatasetInfo(
        name=f"kuairand-{variant}",
        source="KuaiRand, https://kuairand.com (Gao et al., CIKM 2022)",
        licence="CC BY-SA 4.0",
        notes=notes,
        time_zone="+08:00",
    )
    return Draft(info, tables, report)


def _variant(logs: list[Path]) -> str:
    found = {
        match.group(1) for file in logs if (match := re.search(r"_(pure|1k|27k)(_part\d+)?\.csv", file.name))
    }
    if len(found) > 1:
        raise ConfigError(
            f"raw={logs[0].parent}: holds logs of {' and '.join(sorted(found))}; keep one variant"
        )
    if not found:
        raise ConfigError(f"raw={logs[0]}: the name does not end in _pure, _1k or _27k as upstream's does")
    return found.pop()


def _events(
    staging: Staging, logs: list[Path], options: ReaderOptions, report: ImportReport, notes: list[str]
) -> ir.Table:
    real = [file for file in logs if not file.name.startswith("log_history_")]
    placed = [file for file in logs if file.name.startswith("log_history_")]
    parts = []
    for files, is_placed in ((real, False), (placed, True)):
        if files:
            rows = staging.read_text(files, LOG_COLUMNS, optional=OPTIONAL_COLUMNS).drop("line")
            parts.append(rows.mutate(is_placed=ibis.literal(is_placed)))
    rows = ibis.union(*parts) if len(parts) > 1 else parts[0]
    rows = keep(
        staging,
        rows,
        {
            "without user or video": rows.user_id.isnull() | rows.video_id.isnull(),
            "without time": rows.time_ms.isnull(),
            "time out of range": out_of_range(rows.time_ms, 1000, options.now),
        },
        report.table("events"),
    )
    time_us = rows.time_ms * 1000
    dashed = rows.date[:4] + "-" + rows.date[4:6] + "-" + rows.date[6:8]
    midnight_us = date_us(dashed, UTC_OFFSET_HOURS)
    early = ((time_us < midnight_us) & ~rows.is_placed).fill_null(False)
    # Upstream logs an impression under the day it was written, up to hours after its time. Published
    # splits go by that day: an early row goes to its first seconds, milliseconds squeezed into microseconds
    # so that order stays. It only ever moves later, so no history learns of it too soon.
    squeezed_us = midnight_us + ibis.greatest((time_us - midnight_us + SQUEEZED_US) // 1000, 0)
    rows = rows.mutate(event_time=ibis.cases((early, squeezed_us), else_=time_us), is_early=early)
    moved = staging.count(rows.filter(rows.is_early))
    if moved:
        notes.append(
            f"{moved:,} rows are logged under a later day (UTC+8) than their time_ms: they are placed just "
            "after that day's midnight, so that published splits by date are exact"
        )
    if placed:
        notes.append(
            "log_history files: only user, video, long_view, like and their order are real; times are placed "
            "one second apart, and every blank label is unknown"
        )
    rows = without_duplicates(rows.drop("is_early"))
    policy = ibis.cases(
        (rows.is_rand == 1, "random"), (rows.is_rand == 0, "standard"), else_=ibis.null("string")
    )
    return rows.select(
        user_id=rows.user_id,
        video_id=rows.video_id,
        event_time=rows.event_time,
        surface=rows.tab.cast("string"),
        watch_ms=at_least_zero(rows.play_time_ms),
        **{name: label(rows[upstream]) for upstream, name in LABELS.items()},
        policy=rows.is_placed.ifelse(ibis.null("string"), policy),
    )


def _videos(staging: Staging, files: list[Path], raw: Path, report: ImportReport) -> ir.Table:
    columns = dict.fromkeys(("video_id", "author_id", "music_id"), "int64")
    columns |= dict.fromkeys(("video_type", "upload_dt", "upload_type", "tag"), "string")
    columns |= dict.fromkeys(("video_duration", "server_width", "server_height", "music_type"), "float64")
    rows = staging.read_text(files, columns, TextFormat(multiline=True)).drop("line")
    report.table("videos").read = staging.count(rows)
    rows = without_duplicates(rows)
    duration_ms = whole(rows.video_duration)
    videos = rows.select(
        video_id=rows.video_id,
        creator_id=rows.author_id,
        duration_ms=ibis.cases((duration_ms > 0, duration_ms), else_=ibis.null("int64")),
        publish_time=date_us(rows.upload_dt, UTC_OFFSET_HOURS),
        tags=split_list(rows.tag, ","),
        video_type=rows.video_type,
        upload_type=rows.upload_type,
        music_id=rows.music_id,
        music_type=whole(rows.music_type),
        server_width=rows.server_width,
        server_height=rows.server_height,
    )
    return _with_texts(staging, videos, raw)


def _with_texts(staging: Staging, videos: ir.Table, raw: Path) -> ir.Table:
    """Join the supplementary captions and categories where they lie beside the log."""
    layout = TextFormat(multiline=True)
    if files := find(raw, ("kuairand_video_captions.csv",), below=BELOW):
        rows = staging.read_text(files, {"final_video_id": "int64", "caption": "string"}, layout)
        titles = rows.group_by(video_id=rows.final_video_id).aggregate(title=rows.caption.max())
        videos = videos.left_join(titles, "video_id").drop("video_id_right")
    if files := find(raw, ("kuairand_video_categories.csv",), below=BELOW):
        levels = {"category": "second_level_category_name", "top_category": "first_level_category_name"}
        rows = staging.read_text(
            files, {"final_video_id": "int64", **dict.fromkeys(levels.values(), "string")}, layout
        )
        named = {name: rows[upstream].nullif("UNKNOWN").max() for name, upstream in levels.items()}
        videos = videos.left_join(rows.group_by(video_id=rows.final_video_id).aggregate(**named), "video_id")
        videos = videos.drop("video_id_right")
    return videos
