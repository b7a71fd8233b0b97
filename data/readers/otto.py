"""OTTO's e-commerce sessions (2022): JSON lines of clicks, carts and orders.

Source: https://github.com/otto-de/recsys-dataset, CC BY 4.0 (data), MIT (code).
"""

from pathlib import Path

from data.dataset import DatasetInfo
from data.readers.draft import Draft, ReaderOptions
from data.readers.expressions import keep, out_of_range, without_duplicates
from data.readers.files import need
from data.readers.report import ImportReport
from data.readers.shopping import NOTES, events_of, products_of, videos_of
from data.readers.staging import Staging

LOGS = ("*train*.jsonl", "*test*.jsonl")
CODES = {"product_click": "clicks", "add_to_cart": "carts", "purchase": "orders"}
COLUMNS = {"session": "int64", "events": "array<struct<aid: int64, ts: int64, type: string>>"}


def read(staging: Staging, raw: Path, options: ReaderOptions) -> Draft:
    """Read ``train.jsonl`` and ``test.jsonl`` (whichever are there); a session becomes a user."""
    files = [raw] if raw.is_file() else need(raw, LOGS)
    sessions = staging.read_json_lines(files, COLUMNS)
    events = sessions.select(user_id=sessions.session, event=sessions.events).unnest("event")
    unfolded = events.select(
        "user_id", product_id=events.event["aid"], time_ms=events.event["ts"], code=events.event["type"]
    )
    rows = staging.stage(unfolded, "unfolding sessions")
    report = ImportReport()
    rows = keep(
        staging,
        rows,
        {
            "without session or product": rows.user_id.isnull() | rows.product_id.isnull(),
            "without time": rows.time_ms.isnull(),
            "time out of range": out_of_range(rows.time_ms, 1000, options.now),
            "unknown type": rows.code.isnull() | rows.code.notin(list(CODES.values())),
        },
        report.table("events"),
    )
    rows = without_duplicates(rows)
    events = events_of(rows.mutate(event_time=rows.time_ms * 1000), CODES)
    products, _ = products_of(rows)
    report.table("products").read = report.table("videos").read = staging.count(products)
    info = DatasetInfo(
        name="otto",
        source="OTTO recsys dataset, https://github.com/otto-de/recsys-dataset",
        licence="CC BY 4.0",
        notes=[*NOTES, "a session is a user: upstream gives no identity across sessions"],
        time_zone="Europe/Berlin",
    )
    return Draft(info, {"events": events, "products": products, "videos": videos_of(products)}, report)
