"""``shopreel demo``: every command of the pipeline on a simulated market, as a newcomer would type it."""

import shlex
import shutil
import time
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.atomic import write_json
from data.dataset import Dataset, read_info
from data.errors import ConfigError
from data.simulator.market import Market
from data.simulator.oracle import Question, expected_ndcg
from shopreel import run_command
from training.config import Device

MARKER = "demo.json"


@dataclass(kw_only=True, slots=True)
class DemoConfig:
    """Keys of ``configs/demo.yaml``."""

    out: str
    seed: int
    device: Device
    users: int
    videos: int
    products: int
    start: str
    days: int
    max_minutes: float
    gain: str
    serve: bool
    host: str
    port: int

    def __post_init__(self) -> None:
        if self.days < 4:
            raise ConfigError(f"days={self.days}: the last two are validation and test; take at least 4")
        try:
            date.fromisoformat(self.start)
        except ValueError:
            raise ConfigError(f"start={self.start} is no date; write it as 2026-03-02") from None


CONFIG = DemoConfig


def run(config: DemoConfig) -> None:
    """Run the commands one after another in this process; the first mistake ends the demo."""
    out = Path(config.out)
    _clear(out)
    write_json(out / MARKER, {**asdict(config), "device": config.device.name})
    begun = time.monotonic()
    for name, words in commands(config):
        print(f"\n$ {shlex.join(['shopreel', name, *words])}", flush=True)
        started = time.monotonic()
        run_command(name, words)
        print(f"({time.monotonic() - started:.0f} s)", flush=True)
    _show_true_quality(config)
    print(f"\nDone in {(time.monotonic() - begun) / 60:.1f} minutes; everything is in {out}/", flush=True)
    words = serving(config)
    line = shlex.join(["shopreel", "serve", *words])
    if not config.serve:
        print(f"The feed page: {line}")
        return
    print(f"\n$ {line}\nThe feed page: http://{config.host}:{config.port}/   (Ctrl-C ends it)", flush=True)
    run_command("serve", words)


def commands(config: DemoConfig) -> list[tuple[str, list[str]]]:
    """Each command with its arguments, from the market to the evaluation."""
    out = Path(config.out)
    end = date.fromisoformat(config.start) + timedelta(days=config.days)
    market, prepared, tower = out / "market", out / "prepared", out / "two_tower"
    bundles, replayed, report = out / "bundles", out / "replay", out / "report"
    split = [
        f"split.validation={end - timedelta(days=2)}",
        f"split.test={end - timedelta(days=1)}",
        f"split.end={end}",
    ]
    sizes = [
        f"{key}={getattr(config, key)}" for key in ("users", "videos", "products", "days", "start", "seed")
    ]
    training = [f"max_minutes={config.max_minutes:g}", f"seed={config.seed}", f"device={config.device.name}"]
    return [
        ("simulate", [f"out={market}", *sizes]),
        ("prepare", [f"dataset={market}", f"out={prepared}", *split]),
        ("train", ["model=two_tower", f"prepared={prepared}", f"out={tower}", *training]),
        ("publish", [f"two_tower={tower}", f"dataset={market}", f"out={bundles}"]),
        (
            "replay",
            [f"bundle={bundles}/CURRENT", f"dataset={market}", f"gain={config.gain}", f"out={replayed}"],
        ),
        ("evaluate", [f"run={replayed}", f"out={report}"]),
    ]


def serving(config: DemoConfig) -> list[str]:
    """Arguments of ``shopreel serve`` for the published bundle."""
    out = Path(config.out)
    knowledge = [f"store=sqlite:///{out / 'store.db'}", f"warm_from={out / 'market'}", "as_of=log"]
    place = [f"host={config.host}", f"port={config.port}", f"device={config.device.name}"]
    return [f"bundles={out / 'bundles'}", *knowledge, *place]


def true_quality(
    market_folder: Path, replayed: Path, begin: datetime, gain: str, k: int = 20
) -> dict[str, float]:
    """How near each replayed run comes to the best ranking there is, by name, each in [0, 1].

    A log judges only what its policy chose to show; the simulator knows the true expectation of ``gain``
    for every user and video. The measure is true expected DCG@k over that of the best ranking (seen
    videos left out), averaged over the users of the truth table. ``begin`` is the moment of the requests.
    """
    market = Market.load(market_folder)
    truth = pq.read_table(replayed / "truth.parquet", columns=["request_id", "user_id"])
    first = truth.group_by("request_id", use_threads=False).aggregate([("user_id", "first")])
    request_ids, user_ids = first["request_id"], first["user_id_first"].to_numpy()
    events = Dataset(market_folder, read_info(market_folder)).scan("events")
    before = events.to_table(columns=["user_id", "video_id"], filter=pc.field("event_time") < begin)
    shown = before.group_by("user_id").aggregate([("video_id", "distinct")])
    seen = {row["user_id"]: np.array(row["video_id_distinct"]) for row in shown.to_pylist()}
    question = Question(time=begin, quantity=gain, seen=seen)
    result = {}
    for file in sorted(replayed.glob("run_*.parquet")):
        run = pq.read_table(file, filters=pc.field("rank") <= k)
        request = pc.index_in(run["request_id"], request_ids).to_numpy()
        ranked_UK = np.full((len(user_ids), k), -1, dtype=np.int64)
        ranked_UK[request, run["rank"].to_numpy() - 1] = run["video_id"].to_numpy()
        quality_U = expected_ndcg(market, user_ids, ranked_UK, question, k)
        result[file.stem.removeprefix("run_")] = float(np.nanmean(quality_U))
    return result


def _show_true_quality(config: DemoConfig) -> None:
    out = Path(config.out)
    end = datetime.fromisoformat(config.start).replace(tzinfo=UTC) + timedelta(days=config.days)
    quality = true_quality(out / "market", out / "replay", end - timedelta(days=1), config.gain)
    print("\nAgainst the market's truth, which the model has never seen: expected ndcg@20 of every ranking")
    for name, value in quality.items():
        print(f"  {name:<12}{value:.4f}")
    print(f"  {'best possible':<12} 1.0000")


def _clear(out: Path) -> None:
    """Remove an earlier demo; refuse to touch a folder that no demo has made."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={out} is a file; choose a directory")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise ConfigError(
                f"out={out} holds something else than an earlier demo; choose another directory"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
