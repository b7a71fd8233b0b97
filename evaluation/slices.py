"""For whom? Metrics per slice, the worst slices, what a change did to each, and Simpson's paradox."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluation.arrays import Bools, Floats
from evaluation.bootstrap import Estimate, UserSums, bca, replicate, user_sums
from evaluation.significance import ALPHA, benjamini_hochberg, normal_test
from evaluation.slicing import SliceColumn
from evaluation.truth import Truth

#: Slices of fewer requests are shown, and never called worst.
MIN_REQUESTS = 20


@dataclass(frozen=True, slots=True)
class SliceValue:
    """A metric within one slice: its estimate, how far from the whole, and how sure of that.

    ``share`` is the slice's part of all requests, ``gap`` its value minus the value over everything (for
    a difference of two systems, ``estimate`` is the difference), ``p`` is adjusted by Benjamini-Hochberg
    over all slices tested together.
    """

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
    def worse(self) -> bool:
        """Whether the slice is surely below the whole."""
        return self.gap < 0 and self.p < ALPHA and self.estimate.n >= MIN_REQUESTS

    @property
    def weight(self) -> float:
        """How much the whole loses through this slice: share · gap."""
        return self.share * self.gap


def slice_sums(
    score: Callable[[Bools], Floats], truth: Truth, columns: list[SliceColumn], kept_T: Bools, *, seed: int
) -> UserSums:
    """Sums of ``score(kept_T)`` [R, P] for every value of every column within ``kept_T``: [U, S · P].

    In a slice only its own right videos count, over the requests that have one; NaN elsewhere. For a
    column that is constant within a request this is the metric of those requests; for a column of the
    video (new, of a small merchant, …) it asks whether *those* videos were found.
    """
    parts = [
        user_sums(score(kept_T & (column.code_T == code)), truth.user_R, seed)
        for column in columns
        for code in range(len(column.labels))
    ]
    return UserSums(
        np.concatenate([part.sum_UM for part in parts], axis=1),
        np.concatenate([part.count_UM for part in parts], axis=1),
        np.concatenate([part.users_M for part in parts]),
    )


def slice_values(
    slices: UserSums,
    whole: UserSums,
    requests: int,
    columns: list[SliceColumn],
    *,
    replicates: int,
    seed: int,
) -> list[list[SliceValue]]:
    """Estimates of every slice beside the whole, one list per measured column ``P`` of ``whole``.

    Pass differences of two systems, or steps of the waterfall, to slice those. The gap is tested with
    the standard error of (slice − whole) over shared resamples of the users, corrected by
    Benjamini-Hochberg over all slices of one ``P``.
    """
    names = [(column.name, label) for column in columns for label in column.labels]
    measured = whole.sum_UM.shape[1]
    both = UserSums(
        np.concatenate([slices.sum_UM, whole.sum_UM], axis=1),
        np.concatenate([slices.count_UM, whole.count_UM], axis=1),
        np.concatenate([slices.users_M, whole.users_M]),
    )
    draws_BX = replicate(both, replicates, seed)
    low_X, high_X = bca(both, draws_BX, 0.95)
    value_X, counted_X = both.value(), both.count_UM.sum(axis=0)
    result = []
    for p in range(measured):
        at_S, at_whole = np.arange(len(names)) * measured + p, len(names) * measured + p
        gap_S = value_X[at_S] - value_X[at_whole]
        error_S = np.array([_deviation(draws_BX[:, at] - draws_BX[:, at_whole]) for at in at_S])
        tested_S = both.users_M[at_S] >= MIN_REQUESTS
        p_S = benjamini_hochberg(np.where(tested_S, normal_test(gap_S, error_S), np.nan))
        result.append(
            [
                SliceValue(
                    column=column,
                    label=label,
                    share=float(counted_X[at_S[s]]) / max(requests, 1),
                    estimate=Estimate(
                        float(value_X[at_S[s]]),
                        float(low_X[at_S[s]]),
                        float(high_X[at_S[s]]),
                        int(both.users_M[at_S[s]]),
                    ),
                    gap=float(gap_S[s]),
                    p=float(p_S[s]),
                )
                for s, (column, label) in enumerate(names)
            ]
        )
    return result


def worst(values: list[SliceValue]) -> SliceValue | None:
    """The slice surely below the whole through which most is lost, or None."""
    return min((value for value in values if value.worse), key=lambda value: value.weight, default=None)


def worst_in_turn(
    values: list[SliceValue],
    without: Callable[[Bools], list[SliceValue]],
    columns: list[SliceColumn],
    count: int,
) -> list[SliceValue]:
    """The worst slice, then the worst of what remains without it, and so on: no slice is named twice.

    A slice that is low only because it overlaps with a named one (a surface used mostly in the bad
    market) is then not named. ``values`` are the slices of everything, ``without(kept_T)`` those of a
    part of the truth.
    """
    codes = {column.name: column for column in columns}
    kept_T = np.ones(len(columns[0].code_T), np.bool_) if columns else np.zeros(0, np.bool_)
    found: list[SliceValue] = []
    while len(found) < count and (value := worst(values)) is not None:
        found.append(value)
        column = codes[value.column]
        kept_T &= column.code_T != column.labels.index(value.label)
        if len(found) == count or not kept_T.any():
            break
        values = without(kept_T)
    return found


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
