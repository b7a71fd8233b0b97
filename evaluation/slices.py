"""For whom? Metrics per slice, the worst slices, what a change did to each, and Simpson's paradox."""

from dataclasses import dataclass

import numpy as np

from evaluation.arrays import Bools, Floats, Ints, sum_by
from evaluation.bootstrap import Estimate, UserSums, bca, replicate, resampling_units
from evaluation.significance import ALPHA, benjamini_hochberg, normal_test
from evaluation.slicing import SliceColumn

#: Slices of fewer users are shown, and never called worst.
MIN_USERS = 20
#: Nor are slices of a larger share: then it is the rest that stands out.
MOST = 2 / 3


@dataclass(frozen=True, slots=True)
class SliceValue:
    """A metric within one slice: its estimate, how far from the whole, and how sure of that.

    ``share`` is the slice's part of the whole (of requests, of right videos, or of what reached a
    stage), ``gap`` its value minus the whole's, ``p`` is adjusted by Benjamini-Hochberg over all slices
    tested together.
    """

    metric: str
    column: str
    label: str
    share: float
    estimate: Estimate
    gap: float
    p: float

    @property
    def name(self) -> str:
        """``column = label``."""
        return f"{self.column} = {self.label}"

    @property
    def elsewhere(self) -> float:
        """The metric outside the slice; NaN for a slice that is everything."""
        whole = self.estimate.value - self.gap
        return (
            (whole - self.share * self.estimate.value) / (1 - self.share) if self.share < 1 else float("nan")
        )

    @property
    def worse(self) -> bool:
        """Whether the slice is surely below the whole, and not nearly all of it."""
        return self.gap < 0 and self.p < ALPHA and self.estimate.n >= MIN_USERS and not self.share > MOST

    @property
    def weight(self) -> float:
        """How much the whole loses through this slice: share · gap."""
        return self.share * self.gap


@dataclass(frozen=True, slots=True)
class Sliceable:
    """Rows ``X`` to cut: ``top_X / bottom_X`` is the metric when summed; ``user_X`` who is resampled.

    Rows are requests for columns that are constant within one, and right videos for columns of videos,
    where each video counts by itself, so that the whole is the weighted mean of the slices.
    ``families`` is how many such cuts one report looks at together: p-values are multiplied by it, so
    that nothing is found by looking often.
    """

    metric: str
    top_X: Floats
    bottom_X: Floats
    user_X: Ints
    columns: list[SliceColumn]
    families: int = 1

    def cut(self, kept_X: Bools, *, replicates: int, seed: int) -> list[SliceValue]:
        """Every slice of the kept rows beside their whole.

        The gap is tested with the standard error of (slice − whole) over shared resamples of users.
        """
        sums = self._sums(kept_X, seed)
        draws_BS = replicate(sums, replicates, seed)
        low_S, high_S = bca(sums, draws_BS, 0.95)
        value_S, counted_S = sums.value(), sums.count_UM.sum(axis=0)
        gap_S = value_S - value_S[-1]
        error_S = np.array([_deviation(draw_B - draws_BS[:, -1]) for draw_B in draws_BS.T])
        tested_S = sums.users_M >= MIN_USERS
        single_S = np.where(tested_S, normal_test(gap_S, error_S), np.nan)[:-1]
        p_S = np.minimum(benjamini_hochberg(single_S) * self.families, 1.0)
        names = [(column.name, label) for column in self.columns for label in column.labels]
        return [
            SliceValue(
                metric=self.metric,
                column=column,
                label=label,
                share=float(counted_S[s] / max(counted_S[-1], 1e-300)),
                estimate=Estimate(float(value_S[s]), float(low_S[s]), float(high_S[s]), int(sums.users_M[s])),
                gap=float(gap_S[s]),
                p=float(p_S[s]),
            )
            for s, (column, label) in enumerate(names)
        ]

    def worst_in_turn(
        self, values: list[SliceValue], kept_X: Bools, count: int, *, replicates: int, seed: int
    ) -> tuple[list[SliceValue], Bools]:
        """The worst slice, then the worst of what remains without it, and so on, and the rows left over.

        A slice that is low only because it overlaps with a named one (a surface used mostly in the bad
        market) is then not named. ``values`` are the slices of ``kept_X``.
        """
        columns = {column.name: column for column in self.columns}
        found: list[SliceValue] = []
        while (value := worst(values)) is not None:
            found.append(value)
            column = columns[value.column]
            kept_X = kept_X & (column.code_X != column.labels.index(value.label))
            if len(found) == count or not kept_X.any():
                break
            values = self.cut(kept_X, replicates=replicates, seed=seed)
        return found, kept_X

    def _sums(self, kept_X: Bools, seed: int) -> UserSums:
        """Sums per resampling unit of every slice, and of the whole in the last column."""
        users = int(self.user_X.max()) + 1 if len(self.user_X) else 0
        unit_X, units = resampling_units(self.user_X, users, seed)
        known_X = kept_X & ~np.isnan(self.top_X) & ~np.isnan(self.bottom_X)
        whole = SliceColumn("", [""], np.zeros(len(unit_X), np.int64))
        tops, bottoms, counts = [], [], []
        for column in (*self.columns, whole):
            width = len(column.labels)
            code_X = column.code_X[known_X]
            cell_X = unit_X[known_X] * width + code_X
            tops.append(sum_by(cell_X, self.top_X[known_X], units * width).reshape(units, width))
            bottoms.append(sum_by(cell_X, self.bottom_X[known_X], units * width).reshape(units, width))
            pairs = np.unique(self.user_X[known_X] * width + code_X)
            counts.append(np.bincount(pairs % width, minlength=width))
        return UserSums(np.hstack(tops), np.hstack(bottoms), np.concatenate(counts))


def worst(values: list[SliceValue]) -> SliceValue | None:
    """The slice surely below the whole through which most is lost, or None."""
    return min((value for value in values if value.worse), key=lambda value: value.weight, default=None)


def simpson(whole: float, parts: dict[str, list[float]]) -> list[str]:
    """Names of the columns along which *every* slice moved against the whole: Simpson's paradox.

    ``whole`` is the overall difference, ``parts`` the differences per slice of each column. It cannot
    happen to a mean over the same requests; it does happen to AUC, to slices that requests share, and
    to arms of an experiment with different users. Source: Simpson, JRSS B 1951.
    """
    return [
        column
        for column, differences in parts.items()
        if len(differences) > 1 and whole != 0 and all(np.sign(d) == -np.sign(whole) for d in differences)
    ]


def _deviation(draw_B: Floats) -> float:
    known_B = draw_B[~np.isnan(draw_B)]
    return float(known_B.std(ddof=1)) if len(known_B) > 1 else float("nan")
