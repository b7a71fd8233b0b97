"""What the two-tower score would bring the ranker: LightGBM on its inputs, with and without it.

    python benchmarks/ranker_tower_score.py PREPARED EARLIER TOWERS [seeds=3] [click long_view …]

EARLIER is the same dataset prepared with a test split that begins days before the validation of PREPARED,
TOWERS a two-tower run trained on it, which has seen nothing from that moment on. Only impressions since then
are read, by both: those of PREPARED's training split train, validation stops, and validation and test are
judged (test with histories up to its start too). A score is of the history strictly before its impression.
With EARLIER the same as PREPARED the towers, trained with ``model.refit_epochs=0``, are as fresh as can be:
four fifths of the users of validation train then, and the others stop.

Columns: the inner product of the learnt dimensions, that of co-engagement, all of it with the trend as of the
day the towers' knowledge ends (as they would be served), and the share of the catalogue that it outscores.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ranker_features import AtSplitStart, label, open_features, tabulate
from ranker_kuairand import gauc
from ranker_peers import Tabulated, lightgbm

from data.atomic import read_json
from data.counters import DAY_MS
from data.prepared import Prepared
from data.ranking_loader import RankingBatch
from data.trend import has_trend, training_trend
from models.embeddings import FeatureBatch
from models.inference import embed_catalogue, final_vectors
from models.portable import load_two_tower
from models.sequence import Steps
from training.ranking_validation import auc

COLUMNS = ("tower.learnt", "tower.co_engagement", "tower.served", "tower.outscored")
#: Impressions whose user is compared with the whole catalogue at once.
BLOCK = 512


class Towers:
    """Scores of a tower run for batches of another preparation of the same dataset."""

    def __init__(self, prepared: Prepared, earlier: Prepared, run: Path, splits: int) -> None:
        """``splits``: how many of those of ``earlier`` the towers have seen."""
        self.model = load_two_tower(run / "model")
        rows = np.arange(len(earlier.catalogue))
        trend = training_trend(earlier, splits).at(0, rows) if has_trend(earlier) else None
        learnt_ND = embed_catalogue(self.model, earlier.video_table)
        final_NW = final_vectors(self.model, earlier.video_table, learnt_ND, trend)
        self.final_NW, self.learnt_ND = torch.from_numpy(final_NW), torch.from_numpy(learnt_ND)
        self.user_table = earlier.user_table
        pairs = [(prepared.catalogue, earlier.catalogue), (prepared.users, earlier.users),
                 (prepared.surfaces, earlier.surfaces)]  # fmt: skip
        self.video_row, self.user_row, self.surface_row = (
            np.r_[0, theirs.rows(ours.known)] for ours, theirs in pairs
        )

    @torch.inference_mode()
    def columns(self, batch: RankingBatch) -> np.ndarray:
        """``COLUMNS`` of each impression, float32 ``[B, 4]``."""
        shape, requests = self.model.shape, batch.requests.newest(self.model.shape.max_steps)
        parts = (self.video_row[requests.video], requests.actions, requests.known, requests.watch_ms,
                 self.surface_row[requests.step_surface], requests.step_time_ms, requests.length)  # fmt: skip
        steps = Steps(*map(torch.from_numpy, parts))
        features = FeatureBatch.of(self.user_table.take(self.user_row[requests.user_row]))
        user_BW = self.model.encode_users(steps, self.learnt_ND, features, torch.from_numpy(requests.time_ms))
        if self.model.co_engagement is not None:
            linear_NC = self.final_NW[:, -shape.co_engagement :]
            user_BW = torch.cat([user_BW, self.model.co_engagement.users(steps, linear_NC)], dim=1)
        row_B = torch.from_numpy(self.video_row[batch.video_B])
        product_BW = user_BW * self.final_NW[row_B]
        served_B = product_BW.sum(1)
        outscored_B = torch.cat(
            [
                (users @ self.final_NW[1:].T < served[:, None]).float().mean(1)
                for users, served in zip(
                    torch.split(user_BW, BLOCK), torch.split(served_B, BLOCK), strict=True
                )
            ]
        )
        learnt_B, linear_B = (
            product_BW[:, : shape.dim].sum(1),
            product_BW[:, shape.dim + shape.trend :].sum(1),
        )
        return torch.stack([learnt_B, linear_B, served_B, outscored_B], 1).numpy()


def without(table: Tabulated) -> Tabulated:
    """The same rows without the towers' columns, which are the first."""
    values, names, categories, labels = table
    wide = len(COLUMNS)
    return values[:, wide:], names[wide:], [place - wide for place in categories], labels


def taken(table: Tabulated, rows: np.ndarray) -> Tabulated:
    """Some of the rows."""
    values, names, categories, labels = table
    return values[rows], names, categories, {name: column[rows] for name, column in labels.items()}


def main(prepared_path: str, earlier_path: str, run: str, *words: str) -> None:
    """Print AUC / GAUC of every task with and without the score, mean of the seeds (each in brackets)."""
    prepared, earlier = Prepared.open(prepared_path), Prepared.open(earlier_path)
    seeds = next((int(word.removeprefix("seeds=")) for word in words if word.startswith("seeds=")), 3)
    tasks = [word for word in words if not word.startswith("seeds=")] or ["click", "long_view"]
    fresh = earlier.manifest["hash"] == prepared.manifest["hash"]
    splits, days = 1, 0
    if not fresh:
        begin_ms, end_ms = earlier.manifest["split"]["test_ms"], prepared.manifest["split"]["validation_ms"]
        splits, days = 2, (end_ms - begin_ms) // DAY_MS
        if days < 1:
            sys.exit(f"{earlier_path}: its test split must begin days before {prepared_path}'s validation")
    elif read_json(Path(run) / "run.json")["config"]["model"]["refit_epochs"]:
        sys.exit(f"{run}: refitted on validation; train it with model.refit_epochs=0")
    towers = Towers(prepared, earlier, Path(run), splits)
    features = open_features(prepared)
    table = partial(tabulate, prepared, features, train_days=days, more=(COLUMNS, towers.columns))
    held = table(1)
    if fresh:
        stops_N = held[3]["user_row"] % 5 == 0
        train, held = taken(held, ~stops_N), taken(held, stops_N)
    else:
        train = table(0)
    judged = {"validation": held, "test": table(2), "test, frozen": table(2, loading=AtSplitStart)}
    print(f"towers know nothing from {days} days before validation on; {len(train[0]):,} impressions train")
    for place, name in enumerate(COLUMNS):
        alone = [f"{task} {judge(held, held[0][:, place], task)[0]:.4f}" for task in tasks]
        print(f"{name} alone, validation AUC: {', '.join(alone)}")
    for what, cut in (("without", without), ("with", lambda part: part)):
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for seed in range(1, seeds + 1):
            scores = lightgbm(cut(train), cut(held), [cut(part) for part in judged.values()], tasks, seed)
            for (where, part), said in zip(judged.items(), scores, strict=True):
                for task in tasks:
                    found.setdefault((task, where), []).append(judge(part, said[task], task))
        for (task, where), each in found.items():
            mean = np.mean(each, axis=0)
            spread = ", ".join(f"{one:.4f}/{other:.4f}" for one, other in each)
            print(f"{what} {task}, {where}: {mean[0]:.4f}/{mean[1]:.4f} ({spread})", flush=True)


def judge(part: Tabulated, score: np.ndarray, task: str) -> tuple[float, float]:
    """AUC and GAUC of the rows whose label is known."""
    true, known = label(part[3], task)
    said = score[known].astype(np.float64)
    return auc(said, true[known]), gauc(part[3]["user_row"][known], said, true[known])


if __name__ == "__main__":
    main(*sys.argv[1:])
