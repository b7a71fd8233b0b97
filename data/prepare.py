"""``shopreel prepare``: a dataset → labels, point-in-time histories, vocabularies, features, split."""

import difflib
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console

from data.ahead import ahead
from data.columns import align, column
from data.contract import open_dataset, time_zone
from data.dataset import Dataset
from data.encoding import encode
from data.engine import Engine, Session, open_engine
from data.errors import ConfigError, ContractError
from data.feature_building import BuiltFeatures, FeatureSettings, build_spec
from data.features import Side
from data.fingerprint import fingerprint
from data.labels import Attribution
from data.leaks import Leak, find_leaks
from data.prepare_summary import Tally, summary
from data.prepared import INDEXES, write_tables
from data.progress import progress
from data.records import Block, Log, Rows, count_impressions, distinct, extent_of, stream
from data.schema import LABELS, SPLITS, TABLES
from data.shards import CONTEXT_STEPS, NEW_STEPS, ShardWriter
from data.split import SplitMode, choose_split, moment
from data.storage import refuse_taken, staged_output
from data.vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
#: Records per block: what is in memory at once, and never less than one whole user.
BLOCK_RECORDS = 1_000_000


class Horizon(Enum):
    """Until when an impression may know its outcomes."""

    log = "log"
    split = "split"


@dataclass(kw_only=True, slots=True)
class SplitConfig:
    """ISO days, or None; see ``configs/prepare.yaml``."""

    validation: str | None
    test: str | None
    end: str | None


@dataclass(kw_only=True, slots=True)
class AttributionConfig:
    """Windows after an impression: minutes for all labels, days for those named."""

    default_minutes: float
    days: dict[str, float | None]
    horizon: Horizon

    def __post_init__(self) -> None:
        for label, window in self.days.items():
            if label not in LABELS:
                raise ConfigError(f"attribution.days.{label}: no label; choose of {', '.join(LABELS)}")
            if window is not None and window <= 0:
                raise ConfigError(f"attribution.days.{label}={window} is not above 0")
        if self.default_minutes <= 0:
            raise ConfigError(f"attribution.default_minutes={self.default_minutes} is not above 0")


@dataclass(kw_only=True, slots=True)
class FeaturesConfig:
    """Sizes of vocabularies and tables."""

    exclude: list[str]
    max_id_rows: int
    max_category_rows: int
    min_count: int
    buckets: int
    ngram_rows: int
    managed: list[str]
    managed_rows: int

    def __post_init__(self) -> None:
        for name in ("max_id_rows", "max_category_rows", "buckets", "ngram_rows", "managed_rows"):
            if getattr(self, name) < 2:
                raise ConfigError(f"features.{name}={getattr(self, name)} is below 2")
        if self.min_count < 1:
            raise ConfigError(f"features.min_count={self.min_count} is below 1")


@dataclass(kw_only=True, slots=True)
class PrepareConfig:
    """``configs/prepare.yaml`` explains and defaults every key."""

    dataset: str
    out: str
    overwrite: bool
    engine: Engine
    memory_limit_gb: float
    temp_directory: str | None
    threads: int
    seed: int
    max_unknown_share: float
    split: SplitConfig
    attribution: AttributionConfig
    features: FeaturesConfig
    leak_check: bool
    shard_steps: int

    def __post_init__(self) -> None:
        if not 0 <= self.max_unknown_share <= 1:
            raise ConfigError(f"max_unknown_share={self.max_unknown_share} is not in [0, 1]")
        if self.memory_limit_gb <= 0:
            raise ConfigError(f"memory_limit_gb={self.memory_limit_gb} is not above 0")
        if self.threads < 0:
            raise ConfigError(f"threads={self.threads} is negative; 0 takes all cores")
        if self.shard_steps < 1:
            raise ConfigError(f"shard_steps={self.shard_steps} is below 1")


CONFIG = PrepareConfig


def run(config: PrepareConfig) -> None:
    """Check, split, stream, encode; print the counts and the next command."""
    refuse_taken(config.out, overwrite=config.overwrite)
    dataset = open_dataset(config.dataset, max_unknown_share=config.max_unknown_share)
    with (
        open_engine(
            config.engine, memory_limit_gb=config.memory_limit_gb, temp_directory=config.temp_directory,
            threads=config.threads,
        ) as session,
        staged_output(config.out, overwrite=config.overwrite, scratch=config.temp_directory) as scratch,
    ):  # fmt: skip
        log = open_log(session, dataset, config)
        rows = rows_of(session, log, seed=config.seed)
        tally, parts = write_sequences(session, log, rows, scratch, shard_steps=config.shard_steps)
        built, tables = build_features(dataset, rows, tally, config)
        manifest = write_tables(scratch, manifest=_manifest(config, log, tally, parts, built), **tables)
    console = Console()
    console.print(summary(manifest, unread(dataset)))
    console.print(
        f"next: shopreel train model=two_tower prepared={shlex.quote(config.out)} out=RUN",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def open_log(session: Session, dataset: Dataset, config: PrepareConfig) -> Log:
    """The dataset's log under the configured split and attribution."""
    extent = extent_of(session, dataset)
    split = choose_split(
        given=extent.given, validation=config.split.validation, test=config.split.test, end=config.split.end,
        zone=time_zone(dataset.info.time_zone), last_ms=extent.last_impression_ms,
        ordered=dataset.info.ordered,
    )  # fmt: skip
    days = {label: window for label, window in config.attribution.days.items() if window is not None}
    attribution = Attribution.of(default_minutes=config.attribution.default_minutes, days=days)
    log = Log(dataset, extent, split, attribution, config.attribution.horizon is Horizon.split)
    _refuse_empty(log, count_impressions(session, log))
    return log


def _refuse_empty(log: Log, impressions: list[int]) -> None:
    """Any split needs training impressions; one by time needs validation and test too."""
    needed = SPLITS if log.split.mode is SplitMode.time else SPLITS[:1]
    for name, count in zip(needed, impressions, strict=False):
        if not count:
            first, last = (moment(ms) for ms in (log.extent.first_ms, log.extent.last_impression_ms))
            raise ConfigError(
                f"split: leaves no impression to {name}; the log runs from {first} to {last}; "
                "set split.validation and split.test inside it, as days or moments such as 2026-03-01T18:00"
            )


def rows_of(session: Session, log: Log, *, seed: int) -> Rows:
    """Vocabularies: every user, every video of the catalogue, surfaces and markets of training events."""
    dataset = log.dataset
    users = distinct(session, dataset, "user_id")
    if dataset.has("users"):
        listed = column(dataset.scan("users").to_table(columns=["user_id"]), "user_id")
        users = Vocabulary.build(pa.concat_arrays([users.known, listed.cast(users.type)]))
    if dataset.has("videos"):
        catalogue = Vocabulary.build(dataset.scan("videos").to_table(columns=["video_id"])["video_id"])
    else:
        catalogue = distinct(session, dataset, "video_id")
    surfaces = distinct(session, dataset, "surface", train_of=log.split)
    markets = distinct(session, dataset, "market", train_of=log.split)
    return Rows(users, catalogue, surfaces, markets, seed)


def write_sequences(
    session: Session, log: Log, rows: Rows, out: Path, *, shard_steps: int
) -> tuple[Tally, list[dict[str, Any]]]:
    """Stream the log into ``out/sequences``; returns what was counted on the way, and the parts."""
    tally = Tally.empty(users=len(rows.users), videos=len(rows.catalogue))
    total = log.extent.impressions + log.extent.actions
    with (
        progress("prepare", total, "records") as advance,
        ShardWriter(out / "sequences", shard_steps=shard_steps) as writer,
    ):
        # sorting and labelling, counting, and writing go on side by side
        blocks = ahead(stream(session, log, rows, block_records=BLOCK_RECORDS))
        for block in ahead(_counted(blocks, tally)):
            writer.write(block)
            advance(tally.records)
    return tally, writer.parts


def _counted(blocks: Iterator[Block], tally: Tally) -> Iterator[Block]:
    for block in blocks:
        tally.add(block)
        yield block


def build_features(
    dataset: Dataset, rows: Rows, tally: Tally, config: PrepareConfig
) -> tuple[BuiltFeatures, dict[str, Any]]:
    """Feature spec and encoded tables; a leaking column raises :class:`ContractError`."""
    videos = _aligned(dataset, "videos", "video_id", rows.catalogue)
    users = _aligned(dataset, "users", "user_id", rows.users)
    products = dataset.read("products") if dataset.has("products") else None
    lists = {name: tuple(getattr(config.features, name)) for name in ("exclude", "managed")}
    settings = FeatureSettings(**{**asdict(config.features), **lists})
    built = build_spec(
        videos, users, products, video_trained=tally.video_train_count[1:] > 0,
        user_trained=tally.user_trained[1:], settings=settings,
    )  # fmt: skip
    encoded = {
        Side.video: encode(built.spec, Side.video, videos, products, built.vocabularies),
        Side.user: encode(built.spec, Side.user, users, None, built.vocabularies),
    }
    if config.leak_check:
        _refuse_leaks(find_leaks(tally.sample(), built.spec, encoded, {Side.video: videos, Side.user: users}))
    return built, {
        "spec": built.spec,
        "indexes": {name: getattr(rows, name) for name in INDEXES},
        "vocabularies": built.vocabularies,
        "video_table": encoded[Side.video],
        "user_table": encoded[Side.user],
        "video_train_count": tally.video_train_count,
        "video_train_true": tally.video_train_true,
        "video_raw": {
            "duration_ms": _raw(column(videos, "duration_ms")),
            "publish_time_ms": _raw(column(videos, "publish_time")),
        },
    }  # fmt: skip


def _refuse_leaks(leaks: list[Leak]) -> None:
    if leaks:
        worst = leaks[0]
        columns = ",".join(dict.fromkeys(f"{leak.table}.{leak.column}" for leak in leaks))
        raise ContractError(
            f"{worst.table}, column {worst.column}: tells {worst.label} by itself (AUC {worst.auc:.3f}), so "
            f"it was computed from outcomes; set features.exclude=[{columns}], or leak_check=false if it was "
            "really known beforehand"
        )


def _aligned(dataset: Dataset, table: str, key: str, rows: Vocabulary) -> pa.Table:
    """The table with one row per id of ``rows``, in their order; null where it has no such id."""
    if not dataset.has(table):
        return pa.table({key: rows.known})
    return align(dataset.read(table), key, rows)


def unread(dataset: Dataset) -> list[str]:
    """Columns of the log that the contract does not know, with the one that may have been meant."""
    notes = []
    for table in ("events", "actions"):
        if dataset.has(table):
            known = TABLES[table]
            for name in dataset.scan(table).schema.names:
                if name not in known:
                    spelt = name.lower().removeprefix("is_")
                    close = difflib.get_close_matches(spelt, [*known, *LABELS], n=1, cutoff=0.75)
                    notes.append(f"{table}.{name}" + (f" (is it {close[0]}?)" if close else ""))
    return notes


def _raw(array: pa.Array) -> I64:
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("ms", array.type.tz), safe=False)
    values = array.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    return np.concatenate([[-1], values]).astype(np.int64)


def _manifest(
    config: PrepareConfig, log: Log, tally: Tally, parts: list[dict[str, Any]], built: BuiltFeatures
) -> dict[str, Any]:
    info = log.dataset.info
    return {
        "dataset": {
            "name": info.name, "path": str(log.dataset.path), "fingerprint": fingerprint(log.dataset),
            "ordered": info.ordered, "real_time": info.real_time, "time_zone": info.time_zone,
        },
        "split": log.split.to_json(),
        "tasks": tally.tasks(),
        "counts": tally.to_json(log),
        "settings": {
            "seed": config.seed, "attribution_window_ms": dict(log.attribution.window_ms),
            "label_horizon": config.attribution.horizon.value, "features": asdict(config.features),
            "max_unknown_share": config.max_unknown_share,
            "new_steps": NEW_STEPS, "context_steps": CONTEXT_STEPS,
        },
        "feature_notes": built.notes,
        "shards": parts,
    }  # fmt: skip
