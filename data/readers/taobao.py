"""Taobao's shopping logs: ``UserBehavior.csv`` (2017), and the tab-separated ``ecomm_*`` files (2019).

Both tell only what happened, so a label is true or unknown, never false. A product is shown as itself:
each becomes a video of the same id that tags the one product.
Source: Tianchi, Alibaba; non-commercial terms.
"""

from pathlib import Path

import ibis
import ibis.expr.types as ir

from data.dataset import DatasetInfo
from data.errors import ConfigError
from data.readers.draft import Draft, ReaderOptions
from data.readers.expressions import (
    SECOND_US,
    at_least_zero,
    date_us,
    keep,
    split_list,
    whole,
    without_duplicates,
)
from data.readers.files import find
from data.readers.report import ImportReport
from data.readers.shopping import NOTES, events_of, products_of, videos_of
from data.readers.staging import Staging, TextFormat

LABELS = ("product_click", "save", "add_to_cart", "purchase")
USER_BEHAVIOR = ("UserBehavior*.csv",)
BEHAVIOR_CODES = dict(zip(LABELS, ("pv", "fav", "cart", "buy"), strict=True))
#: The days that upstream says it covers, 25 November to 3 December 2017 at UTC+8, as Unix seconds.
BEHAVIOR_FROM_S, BEHAVIOR_BEFORE_S = 1_511_539_200, 1_512_316_800
EDGES, PRODUCTS, USERS = (
    ("ecomm_edge_train*.txt",),
    ("ecomm_item_feature*.txt",),
    ("ecomm_user_feature*.txt",),
)
EDGE_CODES = dict(zip(LABELS, (1, 2, 3, 4), strict=True))
TABS = TextFormat(delimiter="\t", quote=None, header=False)
UTC_OFFSET_HOURS = 8
LAST_SECOND_OF_DAY = 86_399


def read(staging: Staging, raw: Path, options: ReaderOptions) -> Draft:
    """Read whichever of the two layouts lies in ``raw``."""
    logs, edges = find(raw, USER_BEHAVIOR), find(raw, EDGES)
    if logs and edges:
        raise ConfigError(f"raw={raw}: holds UserBehavior.csv and ecomm_edge_train.txt; name one as raw=FILE")
    if not logs and not edges:
        raise ConfigError(
            f"raw={raw}: found neither UserBehavior.csv nor ecomm_edge_train.txt (plain or .gz)"
        )
    return _read_user_behavior(staging, logs) if logs else _read_ecomm(staging, edges, raw)


def _read_user_behavior(staging: Staging, logs: list[Path]) -> Draft:
    columns = {
        "user_id": "int64",
        "product_id": "int64",
        "category": "string",
        "code": "string",
        "time_s": "int64",
    }
    rows = staging.read_text(logs, columns, TextFormat(quote=None, header=False)).drop("line")
    report = ImportReport()
    rows = keep(
        staging,
        rows,
        {
            "without user or product": rows.user_id.isnull() | rows.product_id.isnull(),
            "without time": rows.time_s.isnull(),
            "outside the log's days (2017-11-25 to 2017-12-03)": (rows.time_s < BEHAVIOR_FROM_S)
            | (rows.time_s >= BEHAVIOR_BEFORE_S),
            "unknown behaviour": rows.code.isnull() | rows.code.notin(list(BEHAVIOR_CODES.values())),
        },
        report.table("events"),
    )
    unique = without_duplicates(rows)
    events = events_of(unique.mutate(event_time=unique.time_s * SECOND_US), BEHAVIOR_CODES)
    products = rows.group_by("product_id").aggregate(category=rows.category.max())
    report.table("products").read = report.table("videos").read = staging.count(products)
    info = _info("taobao-userbehavior", "https://tianchi.aliyun.com/dataset/649")
    return Draft(info, {"events": events, "products": products, "videos": videos_of(products)}, report)


def _read_ecomm(staging: Staging, edges: list[Path], raw: Path) -> Draft:
    columns = {"user_id": "int64", "product_id": "int64", "code": "int64", "date": "string"}
    rows = staging.read_text(edges, columns, TABS)
    report = ImportReport()
    dashed = rows.date[:4] + "-" + rows.date[4:6] + "-" + rows.date[6:8]
    rows = rows.mutate(day_us=date_us(dashed, UTC_OFFSET_HOURS)).drop("date")
    rows = keep(
        staging,
        rows,
        {
            "without user or product": rows.user_id.isnull() | rows.product_id.isnull(),
            "not a day": rows.day_us.isnull(),
            "unknown behaviour": rows.code.isnull() | rows.code.notin(list(EDGE_CODES.values())),
        },
        report.table("events"),
    )
    rows = without_duplicates(rows, order="line")
    of_day = ibis.window(group_by=[rows.user_id, rows.day_us], order_by=rows.line)
    place_s = ibis.least(ibis.row_number().over(of_day), LAST_SECOND_OF_DAY)
    events = events_of(rows.mutate(event_time=rows.day_us + place_s * SECOND_US), EDGE_CODES)
    beside = raw.parent if raw.is_file() else raw
    files = find(beside, PRODUCTS)
    known = _products(staging, files, report) if files else None
    products, only_named = products_of(rows, known)
    for table in ("products", "videos"):
        counted = report.table(table)
        counted.read, counted.added = report.table("products").read, staging.count(only_named)
        if known is None:
            counted.read = staging.count(products)
    tags = {} if known is None else {"tags": split_list(products.top_category, ",")}
    tables = {"events": events, "products": products, "videos": videos_of(products, **tags)}
    if files := find(beside, USERS):
        tables["users"] = _users(staging, files, report)
    info = _info("taobao-ecomm", "Taobao sample, https://tianchi.aliyun.com/competition/entrance/231719")
    info.real_time = False
    info.extra["time_resolution"] = "day"
    info.notes.append(
        "only the day of an event is real: a user's events of a day are placed one second apart from its "
        "midnight (UTC+8) in the order of the file, which need not be the true one"
    )
    return Draft(info, tables, report)


def _products(staging: Staging, files: list[Path], report: ImportReport) -> ir.Table:
    columns = {"product_id": "int64", "top_category": "string", "category": "string", "brand": "string"}
    rows = staging.read_text(files, {**columns, "price_yuan": "float64"}, TABS).drop("line")
    report.table("products").read = staging.count(rows)
    rows = without_duplicates(rows)
    price_minor = whole(at_least_zero(rows.price_yuan) * 100)
    return rows.select(
        product_id=rows.product_id,
        brand=rows.brand.nullif("0"),
        category=rows.category,
        price_minor=price_minor,
        currency=price_minor.notnull().ifelse("CNY", ibis.null("string")),
        top_category=rows.top_category,
    )


def _users(staging: Staging, files: list[Path], report: ImportReport) -> ir.Table:
    codes = ("gender", "age_level", "education", "career")
    columns = {
        "user_id": "int64",
        **dict.fromkeys(codes, "int64"),
        "income": "float64",
        "life_stages": "string",
    }
    rows = staging.read_text(files, columns, TABS).drop("line")
    report.table("users").read = staging.count(rows)
    rows = without_duplicates(rows)
    return rows.select(
        user_id=rows.user_id,
        **{name: at_least_zero(rows[name]) for name in codes},
        income=at_least_zero(rows.income),
        life_stages=split_list(rows.life_stages.nullif("-1"), ","),
    )


def _info(name: str, source: str) -> DatasetInfo:
    return DatasetInfo(
        name=name,
        source=source,
        licence="Tianchi terms, non-commercial",
        notes=list(NOTES),
        time_zone="+08:00",
    )
