"""The user table that Kuaishou's KuaiRand and KuaiRec share."""

from pathlib import Path

import ibis.expr.types as ir

from data.readers.expressions import at_least_zero, whole, without_duplicates
from data.readers.report import ImportReport
from data.readers.staging import Staging

TEXTS = (
    "user_active_degree", "follow_user_num_range", "fans_user_num_range", "friend_user_num_range",
    "register_days_range",
)  # fmt: skip
NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
CODES = (
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    *(f"onehot_feat{n}" for n in range(18)),
)


def users(staging: Staging, files: list[Path], report: ImportReport) -> ir.Table:
    """``user_features*.csv``: counts as float64 (numeric), codes as int64 and ranges as string (categorical).

    Upstream's signs for unknown (blank, ``UNKNOWN``, -124) become null.
    """
    columns = {
        "user_id": "int64",
        **dict.fromkeys(TEXTS, "string"),
        **dict.fromkeys((*NUMBERS, *CODES), "float64"),
    }
    rows = staging.read_text(files, columns).drop("line")
    report.table("users").read = staging.count(rows)
    rows = without_duplicates(rows)
    return rows.select(
        user_id=rows.user_id,
        **{name: rows[name].nullif("UNKNOWN") for name in TEXTS},
        **{name: at_least_zero(rows[name]) for name in NUMBERS},
        **{name: at_least_zero(whole(rows[name])) for name in CODES},
    )
