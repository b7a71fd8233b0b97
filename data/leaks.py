"""A feature that gives a label away by itself was computed from it: found before it trains a model."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.columns import column, numbers
from data.features import Bag, BagFeature, DenseFeature, EncodedTable, Encoder, FeatureSpec, Side, take_bags
from data.schema import LABEL_BIT

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: No honest feature alone has been seen to reach this area under the ROC curve.
SUSPICIOUS_AUC = 0.99
#: A verdict needs at least this many positives and as many negatives.
MIN_EACH = 25
#: Values of a list or words of a text looked at, over all impressions of the sample.
MOST_VALUES = 5_000_000


@dataclass(slots=True)
class Impressions:
    """A sample of E training impressions: rows of user and video, masks of true and known labels."""

    user: I64
    video: I64
    true: npt.NDArray[np.int32]
    known: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Leak:
    """``table``.``column`` separates ``label`` with this AUC, in whichever direction is above .5."""

    table: str
    column: str
    label: str
    auc: float


def find_leaks(
    sample: Impressions,
    spec: FeatureSpec,
    encoded: dict[Side, EncodedTable],
    raw: dict[Side, pa.Table],
) -> list[Leak]:
    """Features whose AUC for some label is above ``SUSPICIOUS_AUC``, worst first.

    ``raw`` holds the tables of videos and users that ``encoded`` was made from (row r - 1 of the one is
    row r of the other). Numbers count by their value, with nulls lowest and again without them; a
    vector by each dimension; any other feature by the label's mean over the other half of the sample.
    Ids are left out: a video that everybody likes is no leak. A copy of a label has an AUC of 1.
    """
    rows = {Side.video: sample.video, Side.user: sample.user}
    leaks = []
    for feature in spec.features:
        if feature.column.endswith(("_id", "_ids")):
            continue
        fixed = list(_values(feature, encoded[feature.side], raw[feature.side], rows[feature.side]))
        for label, bit in LABEL_BIT.items():
            known, positive = (sample.known & bit) > 0, (sample.true & bit) > 0
            if min((known & positive).sum(), (known & ~positive).sum()) < MIN_EACH:
                continue
            if fixed:
                auc = max(_separation(score, positive, known) for score in fixed)
            else:
                bags = encoded[feature.side].bags[feature.name]
                some = _within(bags, rows[feature.side])
                positive, known = positive[some], known[some]
                score = _mean_on_other_half(take_bags(bags, rows[feature.side][some]), positive, known)
                auc = _separation(score, positive, known)
            if auc > SUSPICIOUS_AUC:
                leaks.append(Leak(feature.table, feature.column, label, auc))
    return sorted(leaks, key=lambda leak: -leak.auc)


def _values(
    feature: BagFeature | DenseFeature, encoded: EncodedTable, raw: pa.Table, rows: I64
) -> Iterator[F64]:
    """Scores that the feature has without any label; none for categories."""
    if isinstance(feature, DenseFeature):
        for dimension in encoded.dense[feature.name].T:
            yield dimension[rows].astype(np.float64)
    elif feature.encoder is Encoder.buckets and feature.table != "products":
        values = np.concatenate([[np.nan], numbers(column(raw, feature.column))])[rows]
        yield values
        yield np.nan_to_num(values, nan=-np.inf, neginf=-np.inf, posinf=np.inf)


def _within(bags: Bag, rows: I64) -> slice:
    """Every so many of ``rows`` that their bags have at most ``MOST_VALUES`` values: texts may be long."""
    values = int(np.diff(bags[1])[rows].sum())
    return slice(None, None, max(1, -(-values // MOST_VALUES)))


def _mean_on_other_half(bags: Bag, positive: Mask, known: Mask) -> F64:
    """Per impression the mean, over its bag, of the label's mean for that value; NaN for none."""
    values, offsets = bags
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    half = np.arange(len(lengths)) % 2
    score = np.full(len(lengths), np.nan)
    size = int(values.max(initial=0)) + 1
    for side in (0, 1):
        fit = (half != side)[owner] & known[owner]
        seen = np.bincount(values[fit], minlength=size)
        true = np.bincount(values[fit], weights=positive[owner[fit]], minlength=size)
        use = (half == side)[owner] & (seen[values] > 0)
        total = np.bincount(owner[use], weights=true[values[use]] / seen[values[use]], minlength=len(lengths))
        count = np.bincount(owner[use], minlength=len(lengths))
        mine = count > 0
        score[mine] = total[mine] / count[mine]
    return score


def _separation(score: F64, positive: Mask, known: Mask) -> float:
    """max(AUC, 1 - AUC) over known labels with a score; 0 where one class is too small to tell."""
    use = known & ~np.isnan(score)
    ones = positive[use]
    n_positive, n_negative = int(ones.sum()), int((~ones).sum())
    if min(n_positive, n_negative) < MIN_EACH:
        return 0.0
    _, tie, count = np.unique(score[use], return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2
    auc = (rank[tie][ones].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    return float(max(auc, 1 - auc))
