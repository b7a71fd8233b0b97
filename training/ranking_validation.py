"""A ranker on a held-out split: AUC of every head, and its calibration.

Axes: E impressions, T tasks.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from data.atomic import write_json
from data.prepared import Prepared
from data.ranking_loader import RankingLoader
from data.schema import LABEL_BIT
from data.sequences import Sequences
from models.calibration import Calibration, calibration_error, normalised_entropy
from models.ranker_inference import RankerScorer
from models.ranker_portable import RankerParts, load_ranker
from training.ranking_objective import labels_of

#: Validation positives (and negatives) that a task needs to take part in choosing the epoch.
MIN_OUTCOMES = 100


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Uncalibrated probabilities of a split's impressions with their labels and markets."""

    p_ET: npt.NDArray[np.float64]
    true_ET: npt.NDArray[np.bool_]
    known_ET: npt.NDArray[np.bool_]
    market_E: npt.NDArray[np.int64]


def score_split(parts: RankerParts, prepared: Prepared, held: RankingLoader, device: str) -> HeldOutScores:
    """Score every impression of a split by the inference path."""
    was_training = parts.model.training
    parts.model.eval()
    scorer = RankerScorer(parts, prepared.video_table, prepared.user_table, device)
    found: list[tuple[np.ndarray, ...]] = []
    for batch in held.epoch():
        true, known = labels_of(batch, scorer.tasks)
        found.append((scorer.raw(batch), true, known, batch.requests.market))
    parts.model.train(was_training)
    return HeldOutScores(*(np.concatenate(column) for column in zip(*found, strict=True)))


def validate(parts: RankerParts, prepared: Prepared, held: RankingLoader, device: str) -> dict[str, float]:
    """``auc``: the mean over tasks with enough outcomes; then each task's own."""
    scores = score_split(parts, prepared, held, device)
    each, trusted = {}, []
    for place, task in enumerate(parts.features.spec.tasks):
        known = scores.known_ET[:, place]
        true = scores.true_ET[known, place]
        if 0 < true.sum() < len(true):
            each[f"auc/{task}"] = auc(scores.p_ET[known, place], true)
            if min(true.sum(), (~true).sum()) >= MIN_OUTCOMES:
                trusted.append(each[f"auc/{task}"])
    mean = float(np.mean(trusted or list(each.values()) or [0.5]))
    return {"auc": mean, **each}


def auc(score_E: npt.NDArray[np.float64], true_E: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve; equal scores count half. Both classes must be there."""
    values, place = np.unique(score_E, return_inverse=True)
    positives, everything = (np.bincount(x, minlength=len(values)) for x in (place[true_E], place))
    negatives = everything - positives
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / (positives.sum() * negatives.sum()))


class PurchaseLoader(RankingLoader):
    """Purchases with an order value, of ``split`` and those before it: too few for validation alone."""

    def chosen(self, sequences: Sequences) -> npt.NDArray[np.int64]:
        """Places of the purchases."""
        examples = sequences.examples
        bought = (examples["example_true"] & examples["example_known"] & LABEL_BIT["purchase"]) > 0
        paid = bought & (examples["example_order_value_minor"] > 0) & (examples["example_video"] > 0)
        return np.flatnonzero(paid & (examples["example_split"] <= self.split))


def calibrate(
    out: Path, prepared: Prepared, held: RankingLoader, device: str, *, isotonic: bool = False
) -> None:
    """Fit calibration of the best model on validation, store it, and print NE and ECE before and after."""
    purchases = PurchaseLoader(
        prepared, held.features, split=1, batch_size=held.batch_size, seed=0, shuffle=False
    )
    parts = load_ranker(
        out / "model", prepared.video_table, prepared.video_raw, spec_hash=prepared.spec.hash,
        user_table=prepared.user_table, device=device,
    )  # fmt: skip
    # the run keeps counts from the first held-out day on, which is all that these splits read
    held.features = parts.features
    scores = score_split(parts, prepared, held, device)
    calibration = Calibration.fit(
        scores.p_ET, scores.true_ET, scores.known_ET, scores.market_E, parts.model.shape.markets,
        isotonic=isotonic,
    )  # fmt: skip
    if parts.model.shape.order_value:
        scorer = RankerScorer(parts, prepared.video_table, prepared.user_table, device)
        paid = [
            (scorer.raw_order_value(batch), batch.order_value_B, batch.requests.market)
            for batch in purchases.epoch()
        ]
        calibration = calibration.with_order_values(*map(np.concatenate, zip(*paid, strict=True)))
    write_json(out / "model" / "calibration.json", calibration.to_json())
    after_ET = calibration.apply(scores.p_ET, scores.market_E, parts.model.shape.parents)
    table = Table("head", "auc", "ne before", "ne after", "ece before", "ece after", title="validation")
    for place, task in enumerate(parts.features.spec.tasks):
        known = scores.known_ET[:, place]
        true = scores.true_ET[known, place]
        if not 0 < true.sum() < len(true):
            continue
        columns = [auc(scores.p_ET[known, place], true)]
        for measure in (normalised_entropy, calibration_error):
            columns += [measure(p_ET[known, place], true) for p_ET in (scores.p_ET, after_ET)]
        table.add_row(task, *(f"{number:.4f}" for number in columns))
    Console().print(table)
