"""Logs of shops without videos: each product is shown as itself, by a video of the same id that tags it."""

from collections.abc import Mapping

import ibis
import ibis.expr.types as ir

from data.readers.expressions import known_if

NOTES = (
    "the log tells only what happened: labels are true or unknown, never false",
    "each product is a video of the same id that tags it",
)


def events_of(rows: ir.Table, codes: Mapping[str, int | str]) -> ir.Table:
    """Events from ``user_id``, ``product_id``, ``event_time`` and ``code``; ``codes``: label → its code."""
    return rows.select(
        user_id=rows.user_id,
        video_id=rows.product_id,
        event_time=rows.event_time,
        product_id=rows.product_id,
        **{label: known_if(rows.code == code) for label, code in codes.items()},
    )


def videos_of(products: ir.Table, **columns: ir.Value) -> ir.Table:
    """One video per product, with its ``category`` where products have one, and any further ``columns``."""
    if "category" in products.columns:
        columns = {"category": products.category, **columns}
    return products.select(
        video_id=products.product_id, product_ids=ibis.array([products.product_id]), **columns
    )


def products_of(rows: ir.Table, known: ir.Table | None = None) -> tuple[ir.Table, ir.Table]:
    """All products of the log ``rows`` and of ``known``; and those that only the log names."""
    named = rows.select("product_id").distinct()
    if known is None:
        return named, named.limit(0)
    only_named = named.anti_join(known, "product_id")
    blank = {name: ibis.null(kind) for name, kind in known.schema().items() if name != "product_id"}
    return known.union(only_named.mutate(**blank).select(*known.columns)), only_named
