"""The two-tower model with one piece taken out or changed, trained again: what each brings, what it costs.

    python benchmarks/retrieval_ablation.py prepared=PREPARED out=RESULTS [pieces=…] [seeds=1] [key=value …]

``pieces=``: names of :data:`PIECES`, with commas; without it all that the log has. ``seeds=1,2,3``. Every
other word is an override of ``shopreel train model=two_tower`` for all runs alike. The towers alone: no
co-engagement, no refitting. Each run is a process of its own on one thread and leaves one JSON file in
``out``; what is there already is not run again, so that a broken-off table goes on and ``seeds=`` can grow.

The table: best validation ndcg by full ranking (the test split is never read), mean of the seeds and each;
its epoch; the difference from the default's mean over the same seeds; processor seconds of an epoch's
training, validation apart, as a median; examples per processor second.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.atomic import read_json, write_json
from data.compose import compose
from data.features import EncodedTable, FeatureSpec, Side, key_name
from data.prepared import Prepared
from data.trend import Trend, has_trend
from models.sequence import HistoryEncoder
from models.two_tower import VIDEO_ID, TwoTower
from training import loop, retrieval, two_tower
from training.config import TrainConfig, TwoTowerConfig
from training.distributed import ALONE

ROOT = Path(__file__).resolve().parent.parent
TOWERS_ALONE = (
    "model=two_tower", "model.co_engagement.rank=0", "model.refit_epochs=0", "threads=1", "device=cpu",
    "max_minutes=100000",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """``title`` as in the table. ``keys`` are overrides; ``patch`` changes the code of this process before
    the run, ``change`` the data that it trains on; ``has`` says whether a log has it at all.
    """

    title: str
    keys: tuple[str, ...] = ()
    patch: Callable[[], None] = lambda: None
    change: Callable[[Prepared], Prepared] = lambda prepared: prepared
    has: Callable[[Prepared], bool] = lambda prepared: True


class Nothing(nn.Module):
    """Stands where a layer was: adds zero, costs nothing."""

    zero: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self, *arguments: Any) -> Tensor:
        """Scalar zero."""
        return self.zero


def built_without(module: type[nn.Module], *layers: str, by: type[nn.Module] | None = Nothing) -> None:
    """Every new ``module`` has ``by`` (or None) in place of its ``layers``."""
    build = module.__init__

    def init(self: nn.Module, *arguments: Any, **settings: Any) -> None:
        build(self, *arguments, **settings)
        for layer in layers:
            setattr(self, layer, None if by is None else by())

    module.__init__ = init  # type: ignore[method-assign]


def without_mean() -> None:
    """The state is what the blocks make of the last steps."""
    built_without(HistoryEncoder, "bag_norm", by=nn.Identity)
    built_without(HistoryEncoder, "bag_out")


def without_outcomes() -> None:
    """The history does not say what the user did with a video."""
    built_without(HistoryEncoder, "outcome_in", "watch")
    built_without(HistoryEncoder, "taste", by=None)


def without_refining() -> None:
    """A video's vector is the sum of its features."""
    build = TwoTower.__init__

    def init(self: TwoTower, *arguments: Any, **settings: Any) -> None:
        build(self, *arguments, **settings)
        self.video_tower.refine = Nothing()  # type: ignore[assignment]

    TwoTower.__init__ = init  # type: ignore[method-assign]


def without_times() -> None:
    """Neither the time between steps nor the time since the last."""
    built_without(HistoryEncoder, "gap", by=None)
    built_without(TwoTower, "request_gap", by=None)


def fixed_temperature() -> None:
    """Scores are inner products as they come."""
    build = TwoTower.__init__

    def init(self: TwoTower, *arguments: Any, **settings: Any) -> None:
        build(self, *arguments, **settings)
        self.log_temperature.requires_grad_(False)

    TwoTower.__init__ = init  # type: ignore[method-assign]


def hiding_alike() -> None:
    """``model.id_dropout`` of all ids are hidden, however rare."""
    objective: Any = retrieval
    objective.hidden_share = lambda share, count_N: np.full(len(count_N), share, np.float32)


def without_trend() -> None:
    """No trend in the vectors; videos that came later compete, as nothing says which were out."""
    two_tower.has_trend = retrieval.has_trend = lambda prepared: False  # type: ignore[attr-defined]


def with_later_videos() -> None:
    """The trend stays, and every video of the log competes, out by then or not."""
    Trend.is_out = lambda self, day, rows: rows >= 0  # type: ignore[method-assign]


def with_seen_videos() -> None:
    """What the user had been shown competes with what came next."""
    hidden = retrieval.hidden_videos
    retrieval.hidden_videos = lambda batch: hidden(batch)[:, :1]


def without_correction() -> None:
    """The sample is taken for the catalogue; a video drawn as no negative stays out."""
    objective: Any = retrieval
    loss: Callable[..., Tensor] = objective.softmax_loss

    def uncorrected(
        user_QD: Tensor, video_CD: Tensor, targets: Any, temperature: Tensor, correction_C: Tensor,
        moving: Any,
    ) -> Tensor:  # fmt: skip
        flat_C = torch.where(correction_C.isinf(), correction_C, 0.0)
        return loss(user_QD, video_CD, targets, temperature, flat_C, moving)

    objective.softmax_loss = uncorrected


def keeping(wanted: Callable[[Side, str], bool]) -> Callable[[Prepared], Prepared]:
    """The data with only the features that are ``wanted``."""

    def table(side: Side, encoded: EncodedTable) -> EncodedTable:
        bags = {name: bag for name, bag in encoded.bags.items() if wanted(side, name)}
        dense = {name: matrix for name, matrix in encoded.dense.items() if wanted(side, name)}
        return EncodedTable(encoded.num_rows, bags, dense)

    def change(prepared: Prepared) -> Prepared:
        bags = tuple(bag for bag in prepared.spec.bags if wanted(bag.side, bag.name))
        dense = tuple(one for one in prepared.spec.dense if wanted(one.side, one.name))
        return replace(
            prepared, spec=FeatureSpec(bags, dense), video_table=table(Side.video, prepared.video_table),
            user_table=table(Side.user, prepared.user_table),
        )  # fmt: skip

    return change


IDS = (VIDEO_ID, key_name(VIDEO_ID))
DEFAULT = "default"

PIECES = {
    DEFAULT: Piece(title="the default"),
    "sasrec": Piece(title="SASRec blocks instead of gated (LiGR)", keys=("model.block=sasrec",)),
    "hstu": Piece(title="HSTU blocks instead", keys=("model.block=hstu",)),
    "one_block": Piece(title="one block instead of two", keys=("model.layers=1",)),
    "three_blocks": Piece(title="three blocks", keys=("model.layers=3",)),
    "attention": Piece(title="no attention: the last step and the mean", keys=("model.layers=0",)),
    "mean": Piece(title="no mean of the history", patch=without_mean),
    "taste": Piece(
        title="no taste path",
        patch=lambda: built_without(HistoryEncoder, "taste", by=None),
        has=retrieval.outcomes_differ,
    ),
    "outcomes": Piece(
        title="a history without outcomes and watch time",
        patch=without_outcomes,
        has=retrieval.outcomes_differ,
    ),
    "surface": Piece(
        title="steps without surface",
        patch=lambda: built_without(HistoryEncoder, "surface"),
        has=lambda prepared: len(prepared.surfaces) > 1,
    ),
    "times": Piece(
        title="no time between steps, none since the last", patch=without_times, has=has_trend
    ),
    "request_gap": Piece(
        title="no time since the last step",
        patch=lambda: built_without(TwoTower, "request_gap", by=None),
        has=has_trend,
    ),
    "users": Piece(
        title="no features of the user",
        change=keeping(lambda side, name: side is Side.video),
        has=lambda prepared: bool(prepared.spec.side(Side.user).features),
    ),
    "content": Piece(
        title="videos by id alone", change=keeping(lambda side, name: side is Side.user or name in IDS)
    ),
    "ids": Piece(
        title="videos by content alone", change=keeping(lambda side, name: name not in IDS)
    ),
    "rare": Piece(title="ids of rare videos hidden as seldom as others", patch=hiding_alike),
    "hiding": Piece(title="no id hidden in training", keys=("model.id_dropout=0",)),
    "refining": Piece(title="no MLP after the sum of features", patch=without_refining),
    "trend": Piece(title="no trend", patch=without_trend, has=has_trend),
    "later": Piece(
        title="videos that had not come out compete", patch=with_later_videos, has=has_trend
    ),
    "seen": Piece(title="videos that the user had been shown compete", patch=with_seen_videos),
    "full_softmax": Piece(
        title="full softmax instead of a sample", keys=("model.full_softmax_below=1000000000",)
    ),
    "correction": Piece(
        title="sampled softmax without correction", keys=("model.full_softmax_below=0",),
        patch=without_correction,
    ),
    "temperature": Piece(title="temperature fixed at 1", patch=fixed_temperature),
    "cosine": Piece(title="cosine instead of inner product", keys=("model.similarity=cosine",)),
    "label_weights": Piece(
        title="clicks at the weight of long views",
        keys=("model.target.weights.click=1",),
        has=lambda prepared: len(prepared.manifest["tasks"]) > 1,
    ),
    "impressions": Piece(
        title="impressions without a label as no targets",
        keys=("model.target.impression=0",),
        has=lambda prepared: len(prepared.manifest["tasks"]) > 1,
    ),
    "ignored": Piece(
        title="nothing learnt from what was ignored",
        patch=lambda: built_without(TwoTower, "ignored_bias", by=None),
        has=retrieval.outcomes_differ,
    ),
    "outcome_towers": Piece(
        title="no outcome towers", keys=("model.outcome.dim=0",), has=retrieval.outcomes_differ
    ),
    "outcome_decay": Piece(
        title="tables of the outcome towers do not decay",
        patch=lambda: setattr(two_tower, "OUTCOME_TABLE_DECAY", 0.0),
        has=retrieval.outcomes_differ,
    ),
    "average": Piece(title="the last weights instead of their average", keys=("model.average=0",)),
    "plateau": Piece(title="the rate is never lowered", keys=("model.plateau_factor=1",)),
}  # fmt: skip


def work(name: str, seed: str, source: str, overrides: list[str], result: Path) -> None:
    """Train with piece ``name`` out in this process; write what came of it."""
    piece = PIECES[name]
    epochs: list[dict[str, float]] = []
    stages: Any = loop
    epoch = loop._epoch

    def timed(parts: loop.Parts, *arguments: Any) -> bool:
        begin, wall = time.process_time(), time.perf_counter()
        late = epoch(parts, *arguments)
        epochs.append({"processor_s": time.process_time() - begin, "wall_s": time.perf_counter() - wall})
        return late

    stages._epoch = timed
    piece.patch()
    with tempfile.TemporaryDirectory() as folder:
        words = [*TOWERS_ALONE, f"prepared={source}", f"out={folder}/run", f"seed={seed}", *piece.keys]
        config = compose("train", [*words, *overrides], TrainConfig)
        recipe = config.model
        assert isinstance(recipe, TwoTowerConfig)
        prepared = Prepared.open(source)
        two_tower.train_two_tower(config, recipe, piece.change(prepared), ALONE)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        examples = retrieval.build_loader(retrieval.recipe_for(recipe, prepared), prepared, 0).queries_total
    metric = f"validation/ndcg@{recipe.validation.k}"
    values = [one[metric] for one in map(json.loads, lines) if metric in one]
    for one, value in zip(epochs, values, strict=True):
        one["ndcg"] = value
    facts = {"piece": name, "seed": int(seed), "data": prepared.manifest["hash"], "overrides": overrides}
    write_json(result, facts | {"metric": metric, "examples": examples, "epochs": epochs})


def main(arguments: dict[str, str]) -> None:
    """Run what is not there yet, then print the table of what is asked for."""
    source, out = arguments.pop("prepared"), Path(arguments.pop("out"))
    pieces, seeds = arguments.pop("pieces", ""), arguments.pop("seeds", "1").split(",")
    overrides = [f"{key}={value}" for key, value in arguments.items()]
    prepared = Prepared.open(source)
    names = pieces.split(",") if pieces else [name for name, one in PIECES.items() if one.has(prepared)]
    if unknown := sorted(set(names) - set(PIECES)):
        sys.exit(f"pieces={','.join(unknown)}: not among {', '.join(PIECES)}")
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for name in names:
            result = out / f"{name}-{seed}.json"
            if not result.exists():
                _run(name, seed, source, overrides, result)
            if result.exists():
                run = read_json(result)
                if (run["data"], run["overrides"]) != (prepared.manifest["hash"], overrides):
                    sys.exit(
                        f"{result}: of other data or overrides ({run['overrides']}); choose another out="
                    )
                found.setdefault(name, []).append(run)
    print("\n".join(table(found)))


def _run(name: str, seed: str, source: str, overrides: list[str], result: Path) -> None:
    command = [sys.executable, "-W", "ignore", __file__, f"worker={name}", seed, source, str(result)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *overrides], check=False, env=environment, stdout=sys.stderr)
    if done.returncode:
        print(f"{name}, seed {seed}: not measured, exit code {done.returncode}", flush=True)


def table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Lines of a Markdown table, one piece a row, as in the module's docstring."""
    base = {run["seed"]: run for run in found.get(DEFAULT, [])}
    lines = ["| | best ndcg | epoch | difference | s/epoch | examples/s |", "|---|---|---|---|---|---|"]
    for name, runs in found.items():
        bests = [_best(run) for run in runs]
        seconds = statistics.median(one["processor_s"] for run in runs for one in run["epochs"])
        same = [_best(base[run["seed"]])[0] for run in runs if run["seed"] in base]
        difference = ""
        if len(same) == len(runs) and name != DEFAULT:
            difference = f"{statistics.mean(value for value, _ in bests) - statistics.mean(same):+.4f}"
        each = f" ({', '.join(f'{value:.4f}' for value, _ in bests)})" if len(bests) > 1 else ""
        lines.append(
            f"| {PIECES[name].title} | {statistics.mean(value for value, _ in bests):.4f}{each} | "
            f"{', '.join(str(place) for _, place in bests)} | {difference} | {seconds:.1f} | "
            f"{runs[0]['examples'] / seconds:,.0f} |"
        )
    return lines


def _best(run: dict[str, Any]) -> tuple[float, int]:
    """Best ndcg of a run and its epoch, counted from 1."""
    values = [one["ndcg"] for one in run["epochs"]]
    return max(values), values.index(max(values)) + 1


if __name__ == "__main__":
    if sys.argv[1].startswith("worker="):
        name, seed, source, result = sys.argv[1].removeprefix("worker="), *sys.argv[2:5]
        work(name, seed, source, sys.argv[5:], Path(result))
    else:
        main(dict(word.split("=", 1) for word in sys.argv[1:]))
