"""Sampling of negative videos and the exact correction it needs.

The candidates of one step are the batch's own positives (distributed as positives are in training)
and uniform draws from the videos that training ever showed: a video that came later was no choice at
that moment, and counting it as a negative would teach the tower to bury whatever is new.
Axes: C distinct candidates, N catalogue rows.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Candidates:
    """Distinct catalogue rows of one step.

    ``rows`` int64 ``[C]`` ascending; ``log_correction`` float32 ``[C]`` = log(times drawn / expected
    times drawn), −inf for rows that are present without having been drawn.
    """

    rows: np.ndarray
    log_correction: np.ndarray


class MixedSampler:
    """In-batch positives mixed with uniform draws (mixed negative sampling, Yang 2020).

    A step with ``P`` positives draws ``n_uniform`` rows uniformly from the ``population`` of M rows. With
    ``p`` the training frequency of positives, video v is expected ``P·p(v) + n_uniform / M`` times: the
    exact mixture, so that ``exp(score + log_correction)`` summed over candidates is an unbiased estimate
    of the sum over the population.
    """

    def __init__(self, positive_count: np.ndarray, population: np.ndarray, n_uniform: int) -> None:
        """``positive_count`` ``[N + 1]``: times each catalogue row is a training positive; every positive
        belongs to ``population`` (catalogue rows, distinct, without row 0).
        """
        if len(population) == 0:
            raise ValueError("there is no video to sample from")
        total = float(positive_count.sum())
        self.frequency = positive_count / total if total > 0 else np.zeros(len(positive_count))
        self.population = population
        self.n_uniform = n_uniform

    def draw(
        self, positive_rows: np.ndarray, present_rows: np.ndarray, generator: np.random.Generator
    ) -> Candidates:
        """Candidates of a step: its positives, fresh uniform rows, and ``present_rows`` (history)."""
        uniform = self.population[generator.integers(0, len(self.population), self.n_uniform)]
        rows = np.unique(np.concatenate([positive_rows, uniform, present_rows]))
        drawn = np.zeros(len(rows))
        np.add.at(drawn, np.searchsorted(rows, positive_rows), 1.0)
        np.add.at(drawn, np.searchsorted(rows, uniform), 1.0)
        expected = len(positive_rows) * self.frequency[rows] + self.n_uniform / len(self.population)
        drawn[rows == 0] = 0.0
        correction = np.full(len(rows), -np.inf)
        chosen = drawn > 0
        correction[chosen] = np.log(drawn[chosen] / expected[chosen])
        return Candidates(rows, correction.astype(np.float32))
