"""MicroLens (micro-video comments, 2023): ``*_pairs.csv`` with times, or ``*_pairs.tsv`` with order only.

Source: Ni et al., https://github.com/westlake-repl/MicroLens; research use.
"""

from pathlib import Path

import ibis

from data.dataset import DatasetInfo
from data.errors import ConfigError
from data.readers import sequence
from data.readers.draft import Draft, ReaderOptions
from data.readers.expressions import keep, out_of_range, without_duplicates
from data.readers.files import find
from data.readers.report import ImportReport
from data.readers.staging import Staging, TextFormat

CSV, TSV = ("*_pairs.csv", "*pairs.csv"), ("*_pairs.tsv", "*pairs.tsv")


def read(staging: Staging, raw: Path, options: ReaderOptions) -> Draft:
    """Read the pairs (``.csv`` is preferred: it has real times), and the titles where they are there."""
    files = find(raw, CSV) or find(raw, TSV)
    if not files:
        raise ConfigError(f"raw={raw}: found neither *_pairs.csv nor *_pairs.tsv (plain or .gz)")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ConfigError(f"raw={raw}: holds several logs ({names}); name one, as raw={files[0]}")
    file = files[0]
    name = file.name.split("_pairs")[0]
    draft = (
        _read_times(staging, file, options) if ".csv" in file.name else sequence.read_sequences(staging, file)
    )
    draft.info.name = name.lower()
    draft.info.source = "MicroLens (Ni et al. 2023), https://github.com/westlake-repl/MicroLens"
    draft.info.licence = "research use, see the repository"
    draft.info.notes.append(
        "an event is a public comment under a video; *_likes_and_views is not imported: it counts the future"
    )
    if titles := find(file.parent, (f"{name}_titles.csv", f"{name}_title_en.csv")):
        columns = {"item": "int64", "title": "string"}
        rows = staging.read_text(titles[:1], columns, TextFormat(multiline=True))
        draft.report.table("videos").read = staging.count(rows)
        draft.tables["videos"] = without_duplicates(rows.select(video_id=rows.item, title=rows.title))
    return draft


def _read_times(staging: Staging, file: Path, options: ReaderOptions) -> Draft:
    rows = staging.read_text([file], dict.fromkeys(("user", "item", "timestamp"), "int64")).drop("line")
    report = ImportReport()
    rows = keep(
        staging,
        rows,
        {
            "without user or item": rows.user.isnull() | rows["item"].isnull(),
            "without time": rows.timestamp.isnull(),
            "time out of range": out_of_range(rows.timestamp, 1000, options.now),
        },
        report.table("events"),
    )
    rows = without_duplicates(rows)
    events = rows.select(
        user_id=rows.user,
        video_id=rows["item"],
        event_time=rows.timestamp * 1000,
        click=ibis.literal(True),
        comment=ibis.literal(True),
    )
    notes = ["the log tells only what happened: labels are true, never false"]
    info = DatasetInfo(name="", source="", licence="", notes=notes, time_zone="+08:00")
    return Draft(info, {"events": events}, report)
