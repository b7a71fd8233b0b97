"""Open Bandit (ZOZOTOWN, 2019): three fashion slots, logged by a random and a Thompson-sampling policy.

Source: Saito et al., https://research.zozo.com/data.html, CC BY 4.0.
"""

from pathlib import Path
from typing import NamedTuple

import ibis
import ibis.expr.types as ir

from data.dataset import DatasetInfo
from data.errors import ConfigError
from data.readers.draft import Draft, ReaderOptions
from data.readers.expressions import clock_us, keep, label, without_duplicates
from data.readers.report import ImportReport
from data.readers.staging import Staging

POLICIES, CAMPAIGNS = ("bts", "random"), ("all", "men", "women")
USER_FEATURES = tuple(f"user_feature_{number}" for number in range(4))
VIDEO_TEXTS = tuple(f"item_feature_{number}" for number in (1, 2, 3))
LOG_COLUMNS = {
    "timestamp": "string", "item_id": "int64", "position": "int64", "click": "int64",
    "propensity_score": "float64", **dict.fromkeys(USER_FEATURES, "string"),
}  # fmt: skip
CONTEXT_COLUMNS = {"item_id": "int64", "item_feature_0": "float64", **dict.fromkeys(VIDEO_TEXTS, "string")}


class Log(NamedTuple):
    """One log file, and the policy and campaign that its folders name."""

    policy: str
    campaign: str
    file: Path


def read(staging: Staging, raw: Path, options: ReaderOptions) -> Draft:
    """Read every ``POLICY/CAMPAIGN/CAMPAIGN.csv`` under ``raw``, or ``raw`` being one policy's folder."""
    logs = _find(raw)
    report = ImportReport()
    rows = ibis.union(*parts) if len(parts := [_rows(staging, log) for log in logs]) > 1 else parts[0]
    rows = keep(
        staging,
        rows,
        {
            "without item": rows.video_id.isnull(),
            "without time": rows.event_time.isnull(),
            "position is not 1, 2 or 3": ~rows.position.isin([0, 1, 2]),
        },
        report.table("events"),
    )
    events = rows.drop(*USER_FEATURES)
    tables = {"events": events, "users": rows.select("user_id", *USER_FEATURES).distinct()}
    report.table("users").read = staging.count(tables["users"])
    # Upstream salts the hashes of item features by policy, so one policy's file describes a campaign.
    with_context = [log for log in logs if log.file.with_name("item_context.csv").exists()]
    described = {log.campaign: log for log in reversed(with_context)}
    if described:
        contexts = [_videos(staging, described[campaign]) for campaign in sorted(described)]
        videos = ibis.union(*contexts) if len(contexts) > 1 else contexts[0]
        report.table("videos").read = staging.count(videos)
        tables["videos"] = without_duplicates(videos)
    info = DatasetInfo(
        name="openbandit",
        source="Open Bandit Dataset (Saito et al., 2020), https://research.zozo.com/data.html",
        licence="CC BY 4.0",
        notes=[
            "upstream has no user id: a user is all impressions with the same four user features",
            "ids of videos are CAMPAIGN-ITEM: upstream numbers the items of each campaign from 0",
            "surface is the campaign; position counts from 0; propensity is that of the video there",
            "item features are those that bts gives, where it is there: their hashes are salted by policy",
            "user-item_affinity columns are left out: they belong to a pair, not to a user or a video",
        ],
        time_zone="+09:00",
    )
    return Draft(info, tables, report)


def _find(raw: Path) -> list[Log]:
    logs = [
        Log(policy, campaign, file)
        for policy in POLICIES
        for campaign in CAMPAIGNS
        for root in ([raw / policy] if raw.name != policy else [raw / policy, raw])
        if (file := _one(root / campaign / f"{campaign}.csv")) is not None
    ]
    if not logs:
        raise ConfigError(
            f"raw={raw}: found none of {{{','.join(POLICIES)}}}/{{{','.join(CAMPAIGNS)}}}/CAMPAIGN.csv"
        )
    return logs


def _one(file: Path) -> Path | None:
    return next((path for path in (file, file.with_name(file.name + ".gz")) if path.exists()), None)


def _rows(staging: Staging, log: Log) -> ir.Table:
    rows = staging.read_text([log.file], LOG_COLUMNS)
    features = ibis.literal("")
    for name in USER_FEATURES:
        features = features + "|" + rows[name].fill_null("")
    return rows.select(
        user_id=features.hexdigest("md5"),
        video_id=f"{log.campaign}-" + rows.item_id.cast("string"),
        event_time=clock_us(rows.timestamp),
        position=rows.position - 1,
        surface=ibis.literal(log.campaign),
        click=label(rows.click),
        propensity=rows.propensity_score,
        policy=ibis.literal(log.policy),
        **{name: rows[name] for name in USER_FEATURES},
    )


def _videos(staging: Staging, log: Log) -> ir.Table:
    rows = staging.read_text([log.file.with_name("item_context.csv")], CONTEXT_COLUMNS)
    return rows.select(
        video_id=f"{log.campaign}-" + rows.item_id.cast("string"),
        category=rows.item_feature_3,
        item_feature_0=rows.item_feature_0,
        item_feature_1=rows.item_feature_1,
        item_feature_2=rows.item_feature_2,
        campaign=ibis.literal(log.campaign),
    )
