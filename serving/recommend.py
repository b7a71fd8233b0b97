"""``shopreel recommend``: the top-k of every user of a split, by the pipeline that also serves."""

import shlex
import tempfile
from pathlib import Path

from rich.console import Console

from data.errors import ConfigError
from data.locations import only_local
from models.bundle import Bundle
from serving.exact import Hits
from serving.golden import check_golden
from serving.held_out import open_log, rank_all, refuse_known_split, user_requests
from serving.pipeline import Pipeline, Stage
from serving.replay_config import RecommendConfig, Rules
from serving.replay_tables import TableWriter, run_rows, run_schema

CONFIG = RecommendConfig


def run(config: RecommendConfig) -> None:
    """Rank and write the run table; it appears whole or not at all."""
    out = only_local("out", config.out).absolute()
    if out.is_dir():
        raise ConfigError(f"out={config.out} is a directory; name a file, such as {config.out}/run.parquet")
    if out.exists() and not config.overwrite:
        raise ConfigError(f"out={config.out} exists; choose another file or add overwrite=true")
    bundle = Bundle.open(config.bundle, device=config.device.value)
    dataset = open_log(config.dataset)
    refuse_known_split(bundle, config.bundle, config.split.value)
    pipeline = Pipeline(bundle)
    check_golden(pipeline)
    out.parent.mkdir(parents=True, exist_ok=True)
    users = 0
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        file = Path(scratch) / out.name
        with TableWriter(file, run_schema(bundle)) as table:
            for batch in user_requests(
                bundle, dataset, config.split.value, gain=None, k=config.k, rules=config.rules is Rules.on,
                memory_limit_gb=config.memory_limit_gb,
            ):  # fmt: skip
                answers = rank_all(pipeline, batch.requests, size=config.users_per_batch)
                hits = [Hits(answer.video_row, answer.score) for answer in answers]
                table.write(run_rows(bundle, batch.request_ids, hits, Stage.feed.value))
                users += len(answers)
        if not users:
            raise ConfigError(
                f"split={config.split.value}: no user of {config.dataset} has an impression there"
            )
        file.replace(out)
    Console(highlight=False, soft_wrap=True).print(
        f"{users:,} users, {table.rows:,} videos, by {bundle.name}: {config.out}\n"
        f"next: shopreel evaluate run={shlex.quote(config.out)} truth=REPLAY/truth.parquet"
    )
