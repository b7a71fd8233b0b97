"""MovieLens: 100K (``u.data``), 1M and 10M (``ratings.dat``), 20M, 25M, 32M and latest (``ratings.csv``).

Source: GroupLens, https://grouplens.org/datasets/movielens; research use, no redistribution.
"""

from pathlib import Path

import ibis
import ibis.expr.types as ir

from data.dataset import DatasetInfo
from data.errors import ConfigError
from data.readers.draft import Draft, ReaderOptions
from data.readers.expressions import SECOND_US, keep, out_of_range, split_list, without_duplicates
from data.readers.files import find
from data.readers.report import ImportReport
from data.readers.staging import Staging, TextFormat

LOG_COLUMNS = {"user_id": "int64", "video_id": "int64", "rating": "float64", "time_s": "int64"}
#: The flags of ``u.item`` after its five text columns, in upstream's order (``u.genre``).
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
CSV_NAMES = {"user_id": "userId", "video_id": "movieId", "rating": "rating", "time_s": "timestamp"}


def read(staging: Staging, raw: Path, options: ReaderOptions) -> Draft:
    """Read whichever layout lies in ``raw``. ``options.like_from_rating`` makes the label ``like``."""
    layouts = {"u.data": _read_100k, "ratings.dat": _read_dat, "ratings.csv": _read_csv}
    found = {name: files[0] for name in layouts if (files := find(raw, (name,)))}
    if not found:
        raise ConfigError(f"raw={raw}: found none of {', '.join(layouts)} (plain or .gz)")
    if len(found) > 1:
        raise ConfigError(f"raw={raw}: holds {' and '.join(found)}; name one as raw=FILE")
    ((name, file),) = found.items()
    report = ImportReport()
    rows, tables = layouts[name](staging, file, report)
    rows = keep(
        staging,
        rows,
        {
            "without user or movie": rows.user_id.isnull() | rows.video_id.isnull(),
            "without rating": rows.rating.isnull(),
            "without time": rows.time_s.isnull(),
            "time out of range": out_of_range(rows.time_s, 1, options.now),
        },
        report.table("events"),
    )
    rows = without_duplicates(rows)
    events = rows.select(
        user_id=rows.user_id,
        video_id=rows.video_id,
        event_time=rows.time_s * SECOND_US,
        click=ibis.literal(True),
        like=rows.rating >= options.like_from_rating,
    )
    info = DatasetInfo(
        name=file.resolve().parent.name.lower(),
        source="MovieLens, https://grouplens.org/datasets/movielens",
        licence="GroupLens: research use, no redistribution",
        notes=[
            f"like is a rating of {options.like_from_rating:g} or more; every rated movie counts as clicked",
            "times are those of rating, not of watching",
        ],
    )
    return Draft(info, {"events": events, **tables}, report)


def _read_100k(staging: Staging, file: Path, report: ImportReport) -> tuple[ir.Table, dict[str, ir.Table]]:
    log = staging.read_text([file], LOG_COLUMNS, TextFormat(delimiter="\t", quote=None, header=False)).drop(
        "line"
    )
    bars = TextFormat(delimiter="|", quote=None, header=False, encoding="latin-1")
    tables = {}
    if files := find(file.parent, ("u.item",)):
        texts = dict.fromkeys(("title", "release_date", "video_release_date", "url"), "string")
        rows = staging.read_text(
            files, {"video_id": "int64", **texts, **dict.fromkeys(GENRES, "int64")}, bars
        )
        genres = ibis.literal("")
        for genre in GENRES[1:]:
            genres = genres + (rows[genre] == 1).fill_null(False).ifelse(f"{genre}|", "")
        genres = genres.re_replace(r"\|$", "").nullif("")
        tables["videos"] = _videos(staging, rows.mutate(genres=genres), report)
    if files := find(file.parent, ("u.user",)):
        codes = dict.fromkeys(("gender", "occupation", "zip_code"), "string")
        columns = {"user_id": "int64", "age": "float64", **codes}
        tables["users"] = _users(staging, staging.read_text(files, columns, bars), report)
    return log, tables


def _read_dat(staging: Staging, file: Path, report: ImportReport) -> tuple[ir.Table, dict[str, ir.Table]]:
    layout = TextFormat(delimiter="::", quote=None, header=False)
    log = staging.read_text([file], LOG_COLUMNS, layout).drop("line")
    tables = {}
    if files := find(file.parent, ("movies.dat",)):
        layout = TextFormat(delimiter="::", quote=None, header=False, encoding=_encoding(files[0]))
        columns = {"video_id": "int64", "title": "string", "genres": "string"}
        tables["videos"] = _videos(staging, staging.read_text(files, columns, layout), report)
    if files := find(file.parent, ("users.dat",)):
        codes = {"age_group": "int64", "occupation": "int64", "zip_code": "string"}
        layout = TextFormat(delimiter="::", quote=None, header=False)
        columns = {"user_id": "int64", "gender": "string", **codes}
        tables["users"] = _users(staging, staging.read_text(files, columns, layout), report)
    return log, tables


def _read_csv(staging: Staging, file: Path, report: ImportReport) -> tuple[ir.Table, dict[str, ir.Table]]:
    rows = staging.read_text([file], {CSV_NAMES[name]: kind for name, kind in LOG_COLUMNS.items()})
    log = rows.select(**{name: rows[upstream] for name, upstream in CSV_NAMES.items()})
    tables = {}
    if files := find(file.parent, ("movies.csv",)):
        rows = staging.read_text(
            files, {"movieId": "int64", "title": "string", "genres": "string"}, TextFormat(multiline=True)
        )
        tables["videos"] = _videos(staging, rows.rename(video_id="movieId"), report)
    return log, tables


def _videos(staging: Staging, rows: ir.Table, report: ImportReport) -> ir.Table:
    report.table("videos").read = staging.count(rows)
    rows = without_duplicates(rows.select("video_id", "title", "genres"))
    return rows.select(
        video_id=rows.video_id,
        title=rows.title,
        tags=split_list(rows.genres.nullif("(no genres listed)"), "|"),
        release_year=rows.title.re_extract(r"\(([0-9]{4})\)\s*$", 1).nullif("").cast("int64"),
    )


def _users(staging: Staging, rows: ir.Table, report: ImportReport) -> ir.Table:
    report.table("users").read = staging.count(rows)
    return without_duplicates(rows.drop("line"))


def _encoding(file: Path) -> str:
    """1M's movies are latin-1 and 10M's UTF-8, under the same name."""
    try:
        file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"
