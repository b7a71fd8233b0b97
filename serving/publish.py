"""``shopreel publish``: a trained run and its dataset → a bundle that passed its gates.

Reads like a story: open the run, compute the vectors, build and tune the index, look for collapse, record
golden requests, seal, play them back, move ``CURRENT``.
"""

import platform
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console

from data.contract import check_types
from data.dataset import Dataset
from data.engine import Engine, open_engine
from data.errors import ConfigError, ContractError
from data.fingerprint import fingerprint
from data.held_out import HeldOutRules
from data.history import UserHistory, UserRequest
from data.locations import only_local
from data.prepared import Prepared
from data.schema import SPLITS
from models.bundle import (
    CURRENT,
    Bundle,
    Popularity,
    current_name,
    feature_hashes,
    move_current,
    open_encoder,
    store,
    write_arrow,
    write_parts,
)
from models.inference import embed_catalogue, final_vectors
from models.manifest import MANIFEST, Manifest, is_bundle_name
from models.portable import load_two_tower
from serving.collapse import CollapseReport, collapse_report
from serving.exact import ExactSearch, Vectors
from serving.golden import GOLDEN_FILE, check_golden, record_golden
from serving.index_choice import build_index, choices
from serving.pipeline import Pipeline, RankRequest
from serving.popularity import count_positives, most_popular
from serving.publish_config import AsOf, PublishConfig
from serving.refresh import refreshed
from serving.sampling import SampledUsers, sample_users
from serving.trained_run import TrainedRun, open_run
from serving.trend import count_trend

CONFIG = PublishConfig
#: List length of the collapse report and of golden requests: about one page of a feed.
PAGE = 20


def run(config: PublishConfig) -> None:
    """Publish, and print what the bundle holds and the next command."""
    trained = open_run(config.two_tower, "two_tower")
    ranker = _ranker(config, trained)
    dataset = Dataset.open(config.dataset)
    check_types(dataset)
    bundles = only_local("out", config.out).absolute()
    with _draft(bundles) as draft:
        prepared = _tables(config, trained, dataset, draft)
        if ranker is not None and prepared is not trained.prepared:
            raise ConfigError(
                f"ranker={config.ranker}: its counts are of the catalogue it learnt on; publish for another "
                "dataset without it, or train it on that one"
            )
        _fill(draft / "bundle", config, trained, ranker, dataset, prepared)
        check_golden(Pipeline(Bundle.load(draft / "bundle", device=config.device.value)))
        target = store(draft / "bundle", bundles)
    if config.activate:
        move_current(bundles, target.name)
    _tell(config, target)


@contextmanager
def _draft(bundles: Path) -> Iterator[Path]:
    """A scratch directory inside ``bundles`` that is gone afterwards, and so is a ``bundles`` left empty."""
    if bundles.is_file():
        raise ConfigError(f"out={bundles} is a file; choose a folder for bundles")
    others = [path.name for path in bundles.iterdir()] if bundles.is_dir() else []
    others = [name for name in others if not name.startswith(".")]  # a killed publish leaves its draft
    if others and not any(name == CURRENT or is_bundle_name(name) for name in others):
        raise ConfigError(
            f"out={bundles}: holds {others[0]} and no bundle; choose an empty folder or one of bundles"
        )
    bundles.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=bundles))
    try:
        (draft / "bundle").mkdir()
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if not any(bundles.iterdir()):
            bundles.rmdir()


def _ranker(config: PublishConfig, trained: TrainedRun) -> TrainedRun | None:
    """The ranker's run, which must stem from the same prepared data as the towers'."""
    if config.ranker is None:
        return None
    ranker = open_run(config.ranker, "ranker")
    if ranker.prepared.hash != trained.prepared.hash:
        raise ConfigError(
            f"ranker={config.ranker}: trained on other prepared data than {config.two_tower}; use one"
        )
    return ranker


def _tables(config: PublishConfig, trained: TrainedRun, dataset: Dataset, draft: Path) -> Prepared:
    """The encoded catalogue: as trained on, or anew for another dataset where that is allowed."""
    if trained.dataset_fingerprint == fingerprint(dataset):
        return trained.prepared
    if not config.allow_other_dataset:
        raise ConfigError(
            f"dataset={config.dataset}: not the one that {config.two_tower} was trained on; give that one, "
            "or publish the model for this one's videos and users with allow_other_dataset=true"
        )
    with open_engine(Engine.duckdb, memory_limit_gb=config.memory_limit_gb) as session:
        return refreshed(session, trained.prepared, dataset, draft / "prepared")


def _fill(
    directory: Path, config: PublishConfig, trained: TrainedRun, ranker: TrainedRun | None, dataset: Dataset,
    prepared: Prepared,
) -> None:  # fmt: skip
    """Write a whole bundle into the empty ``directory``, manifest last; a gate not passed raises."""
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    device = config.device.value
    model = load_two_tower(trained.model, device)
    as_of = config.as_of if prepared is trained.prepared else AsOf.end
    trend_NK = _trend(config, dataset, prepared, as_of) if model.shape.trend else None
    learnt_ND = embed_catalogue(model, prepared.video_table)
    vectors_ND = final_vectors(model, prepared.video_table, learnt_ND, trend_NK)
    _refuse_broken(vectors_ND, "video", trained)
    say(f"publish: {len(vectors_ND) - 1:,} videos in {vectors_ND.shape[1]} dimensions")
    sample = sample_users(
        dataset, prepared, count=config.sample_users, max_steps=model.shape.max_steps,
        memory_limit_gb=config.memory_limit_gb,
    )  # fmt: skip
    user_UD = open_encoder(trained.model, prepared, vectors_ND, device=device).encode(sample.requests)
    _refuse_broken(user_UD, "user", trained)
    parameters, index = build_index(
        directory, vectors_ND, user_UD, choices(len(vectors_ND) - 1, config.k, config.index),
        recall_target=config.recall_target, seed=config.index.seed,
    )  # fmt: skip
    say(f"publish: {parameters.kind.value} search, recall@{parameters.k} {index['recall']:.4f}")
    collapse = _refuse_collapsed(config, vectors_ND, user_UD, sample)
    write_parts(
        directory, prepared=prepared, model=trained.model, vectors=vectors_ND,
        videos=_videos(dataset, prepared),
        products=dataset.read("products") if dataset.has("products") else None,
        popularity=_popularity(config, dataset, prepared, as_of),
        ranker=None if ranker is None else ranker.model,
    )  # fmt: skip
    info = dataset.info
    facts = {
        "models": {"two_tower": trained.facts(
            similarity=model.shape.similarity.value, dim=model.shape.dim, trend=model.shape.trend,
            co_engagement=model.shape.co_engagement, as_of=as_of.value,
        )}
        | ({} if ranker is None else {"ranker": ranker.facts()}),
        "features": feature_hashes(prepared),
        "catalogue": {"videos": len(prepared.catalogue) - 1, "users": len(prepared.users) - 1},
        "dataset": {
            "name": info.name, "fingerprint": fingerprint(dataset), "ordered": info.ordered,
            "real_time": info.real_time, "time_zone": info.time_zone, "tasks": prepared.tasks,
        },
        "split": prepared.manifest["split"],
        "index": {
            "parameters": parameters.to_json(), "recall_target": config.recall_target,
            "seed": config.index.seed,
        },
        "measured": {
            "index": index, "collapse": asdict(collapse), "versions": _versions(),
            "published": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }  # fmt: skip
    Manifest.of(directory, **facts).write(directory)
    pipeline = Pipeline(Bundle.load(directory, device=device))
    golden = record_golden(pipeline, _golden_requests(config, sample))
    write_arrow(directory / GOLDEN_FILE, golden)
    (directory / MANIFEST).unlink()
    Manifest.of(directory, **facts).write(directory)


def _videos(dataset: Dataset, prepared: Prepared) -> pa.Table:
    return (
        dataset.read("videos") if dataset.has("videos") else pa.table({"video_id": prepared.catalogue.known})
    )


def _refuse_broken(vectors_ND: Vectors, what: str, trained: TrainedRun) -> None:
    broken = int((~np.isfinite(vectors_ND).all(axis=1)).sum())
    if broken:
        raise ContractError(f"{trained.model}: {broken:,} {what} vectors are NaN or infinite; train again")


def _refuse_collapsed(
    config: PublishConfig, vectors_ND: Vectors, user_UD: Vectors, sample: SampledUsers
) -> CollapseReport:
    hits = ExactSearch(vectors_ND).search(user_UD, PAGE, exclude=sample.seen)
    report = collapse_report([answer.video_row for answer in hits], PAGE, vectors_ND, user_UD)
    if report.distinct_share < config.min_distinct_share or report.score_spread == 0.0:
        raise ConfigError(
            f"two_tower={config.two_tower}: collapsed: {report.distinct_videos:,} distinct videos in the top "
            f"{PAGE} of {report.users:,} users (share {report.distinct_share:.4f}, score spread "
            f"{report.score_spread:.2g}); train longer, or lower min_distinct_share="
            f"{config.min_distinct_share}"
        )
    return report


def _golden_requests(config: PublishConfig, sample: SampledUsers) -> list[RankRequest]:
    """A new user first, then users of the sample."""
    new = UserRequest(0, UserHistory.empty(), sample.requests[0].time_ms, 0)
    known = [
        RankRequest(user, PAGE, exclude_rows=seen, rules=False)
        for user, seen in zip(sample.requests, sample.seen, strict=True)
    ]
    return [RankRequest(new, PAGE, rules=False), *known][: config.golden_requests]


def _rank(as_of: AsOf) -> int:
    return len(SPLITS) if as_of is AsOf.end else SPLITS.index(as_of.value)


def _trend(config: PublishConfig, dataset: Dataset, prepared: Prepared, as_of: AsOf) -> Vectors:
    with open_engine(Engine.duckdb, memory_limit_gb=config.memory_limit_gb) as session:
        split = HeldOutRules.of(prepared.manifest).split
        return count_trend(session, dataset, prepared, split=split, rank=_rank(as_of))


def _popularity(
    config: PublishConfig, dataset: Dataset, prepared: Prepared, as_of: AsOf
) -> dict[str, Popularity]:
    """Most liked videos by market as far as the bundle's knowledge goes."""
    days = config.popularity_days
    with open_engine(Engine.duckdb, memory_limit_gb=config.memory_limit_gb) as session:
        counts = count_positives(
            session, dataset, prepared.catalogue, split=HeldOutRules.of(prepared.manifest).split,
            rank=_rank(as_of),
            labels=[task for task in prepared.tasks if task != "hide"], days=[days],
        )  # fmt: skip
    return {market: most_popular(count) for market, count in counts[days].items()}


def _versions() -> dict[str, str]:
    packages = ("torch", "faiss-cpu", "numpy", "pyarrow")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def _tell(config: PublishConfig, target: Path) -> None:
    manifest = Manifest.read(target)
    search, recall = manifest.index["parameters"], manifest.measured["index"]["recall"]
    collapse = manifest.measured["collapse"]
    live = current_name(target.parent) == target.name
    bundle = Path(config.out) / (CURRENT if live else target.name)
    Console(highlight=False, soft_wrap=True).print(
        f"{target.name}: {manifest.catalogue['videos']:,} videos, {search['kind']} search, "
        f"recall@{search['k']} {recall:.4f}; {collapse['distinct_videos']:,} distinct videos in the top "
        f"{collapse['k']} of {collapse['users']:,} users\n"
        f"{'live' if live else 'not live (activate=false)'}: {target}\n"
        f"next: shopreel replay bundle={shlex.quote(str(bundle))} dataset={shlex.quote(config.dataset)} "
        "out=REPLAY\n"
        f"      shopreel serve bundles={shlex.quote(config.out)}"
    )
