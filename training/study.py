"""The trials of a sweep in ``study.journal``: what to try next, and what came of what was tried.

The file is an Optuna study (a journal storage), which Optuna's dashboard and plots read too.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from training.search_space import Point, SearchSpace, Value
from training.trial import Outcome

NAME = "sweep"
#: How often to draw anew when a proposal was tried before.
DRAWS = 20


class Sampler(Enum):
    """What proposes the next trial: see ``configs/sweep.yaml``."""

    tpe = "tpe"
    random = "random"
    grid = "grid"


class State(Enum):
    """What became of a trial. A failed one counts, an interrupted one is repeated."""

    running = "running"
    complete = "complete"
    failed = "failed"
    interrupted = "interrupted"


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial; ``best_epoch`` counts from 1, ``seconds`` is all of its time."""

    number: int
    state: State
    point: dict[str, Value]
    outcome: Outcome
    started: datetime | None


class NoLock(JournalFileOpenLock):
    """The journal's lock, for a file that one process has alone anyway: none is left behind by a kill."""

    def acquire(self) -> bool:
        """Have it."""
        return True

    def release(self) -> None:
        """Nothing to let go of."""


class Study:
    """The study in ``file``, made where there is none. One process at a time may have it open.

    A proposal depends on the seed and on the trials before it alone, so that a sweep that was broken off
    and resumed proposes what it would have proposed otherwise. ``first`` is tried before all others.
    """

    def __init__(
        self, file: Path, space: SearchSpace, sampler: Sampler, seed: int, random_trials: int = 10,
        first: Point | None = None,
    ) -> None:  # fmt: skip
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.sampler, self.seed = space, sampler, seed
        self.random_trials, self.first = random_trials, first
        self.live: optuna.Trial | None = None
        if file.exists():
            _end_at_a_line(file)
        storage = JournalStorage(JournalFileBackend(str(file), lock_obj=NoLock(str(file))))
        self.study = optuna.create_study(
            study_name=NAME, storage=storage, direction="maximize", load_if_exists=True
        )

    def trials(self) -> list[Trial]:
        """All trials, the oldest first."""
        return [_trial(each) for each in self._all() if each.state is not TrialState.WAITING]

    def best(self) -> Trial | None:
        """The complete trial with the highest value, the oldest of equals."""
        done = [each for each in self.trials() if each.state is State.complete]
        return max(done, key=lambda each: (each.outcome.value, -each.number), default=None)

    def counted(self) -> int:
        """How many trials have ended by themselves."""
        return sum(each.state in (State.complete, State.failed) for each in self.trials())

    def interrupt_running(self) -> list[Trial]:
        """Mark the trials that an earlier process left running; returns them."""
        left = [each.number for each in self.trials() if each.state is State.running]
        for number in left:
            self.interrupt(number)
        return [each for each in self.trials() if each.number in left]

    def interrupt(self, number: int) -> None:
        """A running trial was broken off: it has failed, and its settings are to be tried again."""
        self.study.tell(number, state=TrialState.FAIL)

    def begin(self) -> Trial | None:
        """Start the next trial; None where a finite space has no untried point left."""
        if not any(each.state is TrialState.WAITING for each in self._all()):
            again = self._to_repeat()
            point = self._propose() if again is None else _point(again)
            if point is None:
                return None
            self.study.enqueue_trial(
                dict(point), user_attrs={} if again is None else {"repeats": again.number}
            )
        self.live = self.study.ask(self.space.distributions())
        return _trial(self._all()[self.live.number])

    def finish(self, outcome: Outcome) -> Trial:
        """Record what the trial that was begun gave."""
        assert self.live is not None
        trial, self.live = self.live, None
        trial.set_user_attr("metric", outcome.metric)
        trial.set_user_attr("best_epoch", outcome.best_epoch)
        trial.set_user_attr("seconds", outcome.seconds)
        if outcome.value is not None and math.isfinite(outcome.value):
            self.study.tell(trial, outcome.value)
        else:
            trial.set_user_attr("error", outcome.error or f"its {outcome.metric} is {outcome.value}")
            self.study.tell(trial, state=TrialState.FAIL)
        return _trial(self._all()[trial.number])

    def _all(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _to_repeat(self) -> FrozenTrial | None:
        """The oldest interrupted trial that no later one has repeated."""
        trials = self._all()
        repeated = {each.user_attrs.get("repeats") for each in trials}
        broken = (each for each in trials if _state(each) is State.interrupted)
        return next((each for each in broken if each.number not in repeated), None)

    def _propose(self) -> Point | None:
        trials = self._all()
        proposed = [each for each in trials if "repeats" not in each.user_attrs]
        tried = {_key(_point(each)) for each in trials}
        if self.sampler is Sampler.grid:
            return next(self._untried(tried), None)
        if not proposed and self.first is not None:
            return self.first
        size = self.space.size()
        if size is not None and len(tried) >= size:
            return None
        for draw in range(DRAWS):
            seed = int(np.random.SeedSequence([self.seed, len(proposed), draw]).generate_state(1)[0])
            scratch = optuna.create_study(direction="maximize", sampler=self._sampler(seed))
            scratch.add_trials(each for each in trials if each.state is TrialState.COMPLETE)
            point = self.space.nearest(scratch.ask(self.space.distributions()).params)
            if _key(point) not in tried:
                return point
        return next(self._untried(tried)) if size is not None else point

    def _sampler(self, seed: int) -> BaseSampler:
        if self.sampler is Sampler.random:
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, n_startup_trials=self.random_trials)

    def _untried(self, tried: set[tuple[tuple[str, Value], ...]]) -> Iterator[Point]:
        keys = [each.key for each in self.space.dimensions]
        points = (dict(zip(keys, values, strict=True)) for values in self.space.grid())
        return (point for point in points if _key(point) not in tried)


def _end_at_a_line(file: Path) -> None:
    """Cut off a line that a killed process did not finish, which the next one would be glued to."""
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)


def _point(trial: FrozenTrial) -> dict[str, Value]:
    """A trial's settings, as they were enqueued: ``params`` lack some if the process died just then."""
    point: dict[str, Value] = trial.system_attrs["fixed_params"]
    return dict(point)


def _key(point: Point) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(point.items()))


def _state(trial: FrozenTrial) -> State:
    if trial.state is TrialState.FAIL:
        return State.failed if "error" in trial.user_attrs else State.interrupted
    return State.complete if trial.state is TrialState.COMPLETE else State.running


def _trial(trial: FrozenTrial) -> Trial:
    attributes = trial.user_attrs
    outcome = Outcome(
        value=trial.value,
        metric=attributes.get("metric", ""),
        best_epoch=attributes.get("best_epoch"),
        error=attributes.get("error", ""),
        seconds=attributes.get("seconds", 0.0),
    )
    started = trial.datetime_start and trial.datetime_start.astimezone(UTC)
    return Trial(trial.number, _state(trial), _point(trial), outcome, started)
