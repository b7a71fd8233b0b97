"""Ibis expressions that several readers share. All give the same values on DuckDB and on Spark."""

from collections.abc import Mapping
from datetime import datetime

import ibis
import ibis.expr.types as ir

from data.contract_values import EARLIEST
from data.readers.report import TableReport
from data.readers.staging import Staging

DAY_US = 86_400_000_000
SECOND_US = 1_000_000
#: Where events without any real time begin (Unix microseconds, 2000-01-01T00:00:00Z).
PLACED_FROM_US = 946_684_800 * SECOND_US


def label(value: ir.NumericValue) -> ir.BooleanValue:
    """1 → true, 0 → false; blank and anything else → null, that is unknown."""
    return ibis.cases((value == 1, True), (value == 0, False), else_=ibis.null("boolean"))


def known_if(condition: ir.BooleanValue) -> ir.BooleanValue:
    """True where ``condition`` holds and unknown elsewhere: a log that tells only what happened."""
    return ibis.cases((condition, True), else_=ibis.null("boolean"))


def whole(value: ir.NumericValue) -> ir.IntegerValue:
    """A number that upstream wrote as ``12.0`` as int64; NaN → null."""
    return ibis.cases((value.isnan(), ibis.null("float64")), else_=value).round().cast("int64")


def at_least_zero(value: ir.NumericValue) -> ir.NumericValue:
    """Negative numbers, upstream's sign for unknown, → null."""
    return ibis.cases((value >= 0, value), else_=ibis.null(value.type()))


def split_list(text: ir.StringValue, separator: str) -> ir.ArrayValue:
    """``"a|b"`` → ``["a", "b"]``; blank → null."""
    # Spark reads some separators as regular expressions; the unit separator is none.
    return text.replace(separator, "\x1f").split("\x1f") if separator != " " else text.split(" ")


def date_us(text: ir.StringValue, utc_offset_hours: int = 0) -> ir.IntegerValue:
    """Midnight of ``YYYY-MM-DD…`` at the given offset from UTC, in Unix microseconds; not a date → null."""
    day = text[:10].try_cast("date").epoch_days().cast("int64")
    return day * DAY_US - utc_offset_hours * 3600 * SECOND_US


def clock_us(text: ir.StringValue, utc_offset_hours: int = 0) -> ir.IntegerValue:
    """``YYYY-MM-DD?HH:MM:SS[.ffffff]…`` in Unix microseconds; not a time → null."""
    hours, minutes, seconds = (text[start : start + 2].try_cast("int64") for start in (11, 14, 17))
    digits = text.re_extract(r"^.{19}\.([0-9]{1,6})", 1)
    fraction = (digits + "000000")[:6].try_cast("int64")
    of_day = (hours * 3600 + minutes * 60 + seconds) * SECOND_US
    return date_us(text, utc_offset_hours) + of_day + fraction


def out_of_range(value: ir.NumericValue, per_second: int, now: datetime) -> ir.BooleanValue:
    """Whether a Unix time in 1/``per_second`` s lies before 1990, or after ``now`` by more than a day."""
    earliest, latest = (int(moment.timestamp() * per_second) for moment in (EARLIEST, now))
    return (value < earliest) | (value > latest + 86_400 * per_second)


def keep(
    staging: Staging, rows: ir.Table, reasons: Mapping[str, ir.BooleanValue], report: TableReport
) -> ir.Table:
    """``rows`` without those that any of ``reasons`` holds for, counted under the first one that does."""
    branches = [(broken.fill_null(False), why) for why, broken in reasons.items()]
    marked = rows.mutate(dropped_because=ibis.cases(*branches, else_=ibis.null("string")))
    counted = marked.group_by("dropped_because").aggregate(n=marked.count())
    # groups come back in any order; the report keeps that of ``reasons``, for equal bytes from equal input
    found = {row["dropped_because"]: row["n"] for row in staging.fetch(counted)}
    report.read += sum(found.values())
    report.dropped.update({why: found[why] for why in reasons if why in found})
    return marked.filter(marked.dropped_because.isnull()).drop("dropped_because")


def without_duplicates(rows: ir.Table, *, order: str | None = None) -> ir.Table:
    """One row for each set of equal rows; with ``order`` (a column not compared), the earliest stays."""
    if order is None:
        return rows.distinct()
    compared = [name for name in rows.columns if name != order]
    return rows.group_by(compared).aggregate(**{order: rows[order].min()})


def ids_of(staging: Staging, *columns: ir.StringValue) -> str:
    """The id type of text ids: ``int64`` when every one of ``columns`` is a plain integer, else ``string``.

    An integer is plain when it reads the same both ways (no leading zero or plus, at most 18 digits).
    """
    for column in columns:
        strange = column.notnull() & ~column.re_search(r"^(0|-?[1-9][0-9]{0,17})$")
        rows = column.as_table()
        if staging.count(rows.filter(strange).limit(1)):
            return "string"
    return "int64"
