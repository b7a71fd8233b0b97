"""RetailRocket's shop log (2015): views, carts and transactions, with hashed item properties.

Source: https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset, CC BY-NC-SA 4.0.
"""

from pathlib import Path

import ibis
import ibis.expr.types as ir

from data.dataset import DatasetInfo
from data.readers.draft import Draft, ReaderOptions
from data.readers.expressions import keep, out_of_range, without_duplicates
from data.readers.files import find, need
from data.readers.report import ImportReport
from data.readers.shopping import NOTES, events_of, products_of, videos_of
from data.readers.staging import Staging

CODES = {"product_click": "view", "add_to_cart": "addtocart", "purchase": "transaction"}
LOG_COLUMNS = {"timestamp": "int64", "visitorid": "int64", "event": "string", "itemid": "int64"}
PROPERTY_COLUMNS = {"timestamp": "int64", "itemid": "int64", "property": "string", "value": "string"}


def read(staging: Staging, raw: Path, options: ReaderOptions) -> Draft:
    """Read ``events.csv``, and ``item_properties_part*.csv`` with ``category_tree.csv`` where there."""
    rows = staging.read_text(
        need(raw, ("events.csv",)), LOG_COLUMNS, optional={"transactionid": "string"}
    ).drop("line")
    report = ImportReport()
    rows = keep(
        staging,
        rows,
        {
            "without visitor or item": rows.visitorid.isnull() | rows.itemid.isnull(),
            "without time": rows.timestamp.isnull(),
            "time out of range": out_of_range(rows.timestamp, 1000, options.now),
            "unknown event": rows.event.isnull() | rows.event.notin(list(CODES.values())),
        },
        report.table("events"),
    )
    rows = without_duplicates(rows)
    rows = rows.select(
        user_id=rows.visitorid, product_id=rows.itemid, event_time=rows.timestamp * 1000, code=rows.event
    )
    known = _products(staging, raw.parent if raw.is_file() else raw)
    products, only_named = products_of(rows, known)
    added = staging.count(only_named) if known is not None else 0
    for table in ("products", "videos"):
        report.table(table).added = added
        report.table(table).read = staging.count(products) - added
    tags = {}
    if "parent_category" in products.columns:
        parent = products.parent_category
        tags = {"tags": parent.isnull().ifelse(ibis.null("array<string>"), ibis.array([parent]))}
    info = DatasetInfo(
        name="retailrocket",
        source="RetailRocket, https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset",
        licence="CC BY-NC-SA 4.0",
        notes=[
            *NOTES,
            "category is the first that a product ever had: later ones would tell the future",
            "all other item properties are left out: they are hashed and change over time",
        ],
    )
    tables = {"events": events_of(rows, CODES), "products": products, "videos": videos_of(products, **tags)}
    return Draft(info, tables, report)


def _products(staging: Staging, raw: Path) -> ir.Table | None:
    files = find(raw, ("item_properties_part*.csv", "item_properties.csv"))
    if not files:
        return None
    rows = staging.read_text(files, PROPERTY_COLUMNS)
    named = rows.filter(rows.itemid.notnull()).select(product_id=rows.itemid).distinct()
    categories = rows.filter(rows.property == "categoryid")
    by_time = ibis.window(group_by=categories.itemid, order_by=[categories.timestamp, categories.value])
    categories = categories.mutate(place=ibis.row_number().over(by_time))
    first = categories.filter(categories.place == 0).select(product_id="itemid", category="value")
    products = named.left_join(first, "product_id").drop("product_id_right")
    if tree := find(raw, ("category_tree.csv",)):
        parents = staging.read_text(tree, {"categoryid": "string", "parentid": "string"})
        parents = parents.group_by(category=parents.categoryid).aggregate(
            parent_category=parents.parentid.max()
        )
        products = products.left_join(parents, "category").drop("category_right")
    return products
