"""What a trained ranker loses when it may not read one of its inputs: validation AUC, nothing retrained.

    python benchmarks/ranker_blanking.py PREPARED RUN

Statistics are set to their training mean, attention to zero, values of large features to unknown. A model
that was trained without the part could lean on others instead: ``benchmarks/ranker_ablation.py`` does that.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from ranker_kuairand import TASKS

from data.prepared import Prepared
from data.ranking_loader import RankingBatch, RankingLoader
from models.ranker_inference import RankerScorer
from models.ranker_portable import load_ranker
from training.ranking_objective import labels_of
from training.ranking_validation import auc


def main(prepared_path: str, run: str) -> None:
    """Print one line per part."""
    prepared = Prepared.open(prepared_path)
    parts = load_ranker(
        Path(run) / "model", prepared.video_table, prepared.video_raw, spec_hash=prepared.spec.hash,
        user_table=prepared.user_table,
    )  # fmt: skip
    scorer = RankerScorer(parts, prepared.video_table, prepared.user_table)
    loader = RankingLoader(prepared, parts.features, split=1, batch_size=4096, seed=0, shuffle=False)
    batches = list(loader.epoch())
    spec, model = parts.features.spec, parts.model
    counts = [f"{name}.{days:g}d." for name in spec.counted for days in spec.half_life_days]
    matches = [f"{name}." for name in (*spec.matched, "surface")]
    names = spec.candidate_names
    counted = [place for place, name in enumerate(names) if name.startswith(tuple(counts))]
    matched = [
        place for place, name in enumerate(names) if place not in counted and name.startswith(tuple(matches))
    ]
    said("everything", scorer, batches)
    candidate = model.candidate_mean.numpy()
    said("counts over all users", scorer, [blank(b, counted, candidate) for b in batches])
    said("matches with the user's steps", scorer, [blank(b, matched, candidate) for b in batches])
    own = model.user_mean.numpy()
    user = scorer.features.user
    scorer.features.user = lambda requests: (  # type: ignore[method-assign]
        user(requests)[0], np.repeat(own[None], len(requests.user_row), 0)
    )  # fmt: skip
    said("the user's own rates", scorer, batches)
    scorer.features.user = user  # type: ignore[method-assign]
    weight = model.attention.out.weight.data.clone()
    model.attention.out.weight.data.zero_()
    said("attention over the history", scorer, batches)
    model.attention.out.weight.data.copy_(weight)
    with torch.inference_mode():
        fields = scorer.video_ND.clone()
        scorer.video_ND[1:] = fields[0]
    said("the video's fields", scorer, batches)


def blank(batch: RankingBatch, places: list[int], mean: np.ndarray) -> RankingBatch:
    """The batch with some statistics of candidates at their mean."""
    statistics = batch.candidate_statistics_BG.copy()
    statistics[:, places] = mean[places]
    return RankingBatch(
        batch.requests, batch.video_B, batch.user_statistics_BF, statistics, batch.true_B, batch.known_B,
        batch.watch_ms_B, batch.order_value_B, batch.position_B,
    )  # fmt: skip


def said(without: str, scorer: RankerScorer, batches: list[RankingBatch]) -> None:
    """AUC of the main tasks."""
    p_ET = np.concatenate([scorer.raw(batch) for batch in batches])
    pairs = [labels_of(batch, scorer.tasks) for batch in batches]
    true_ET, known_ET = (np.concatenate(part) for part in zip(*pairs, strict=True))
    found = []
    for task in TASKS:
        place = scorer.tasks.index(task)
        known = known_ET[:, place]
        found.append(f"{task} {auc(p_ET[known, place], true_ET[known, place]):.4f}")
    print(f"without {without}: " + " · ".join(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
