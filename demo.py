"""``shopreel demo``: every command of the pipeline on a simulated market, as a newcomer would type it."""

import shlex
import shutil
import time
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path

from data.atomic import write_json
from data.errors import ConfigError
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
    place = [f"host={config.host}", f"port={config.port}", f"device={config.device.name}"]
    return [f"bundles={out / 'bundles'}", f"store=sqlite:///{out / 'store.db'}", *place]


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
