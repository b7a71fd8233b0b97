"""Everything a served log with assignments says: uplifts per arm and slice, and whether to believe them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.errors import ConfigError
from data.schema import LABELS
from evaluation.arrays import Bools, Floats
from evaluation.comparison import Correction, p_text
from evaluation.experiment import MISMATCH_LEVEL, Uplift, sample_ratio_p, uplift
from evaluation.experiment_log import UserTotals, read_totals
from evaluation.significance import ALPHA
from evaluation.slices import simpson

#: A slice needs this many users in either arm to be shown.
MIN_SLICE_USERS = 50
#: Columns of the log that ``slices=auto`` takes.
AUTOMATIC_LOG_SLICES = ("market", "surface")


@dataclass(kw_only=True, slots=True)
class ExperimentConfig:
    """The arguments under ``experiment.``; see configs/evaluate.yaml."""

    arm: str
    control: str | None
    start: str | None
    planned_users: int
    split: Any

    def __post_init__(self) -> None:
        if self.planned_users < 2:
            raise ValueError("experiment.planned_users must be at least 2")
        if self.split is not None and (
            not isinstance(self.split, dict) or any(float(share) <= 0 for share in self.split.values())
        ):
            raise ValueError("experiment.split must be {arm: share}, such as {control: 0.9, new: 0.1}")


@dataclass(slots=True)
class ExperimentStudy:
    """``uplifts`` per arm; ``adjusted`` its p-values after correction, by metric; ``slices`` of the first
    metric per arm, column and label; ``verdicts`` one line per arm.
    """

    control: str
    users: dict[str, int]
    sample_ratio_p: float
    uplifts: dict[str, list[Uplift]] = field(default_factory=dict)
    adjusted: dict[str, dict[str, float]] = field(default_factory=dict)
    slices: dict[str, dict[str, dict[str, Uplift]]] = field(default_factory=dict)
    verdicts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def study_experiment(
    path: str, config: ExperimentConfig, correction: Correction, slices: list[str]
) -> ExperimentStudy:
    """Compare every arm with control on every label and amount of the log."""
    totals = read_totals(path, config.arm, config.control, config.start, slices)
    users_A = np.bincount(totals.arm_U, minlength=len(totals.arms))
    study = ExperimentStudy(
        control=totals.arms[0],
        users=dict(zip(totals.arms, users_A.tolist(), strict=True)),
        sample_ratio_p=sample_ratio_p(users_A, _shares(config, totals.arms)),
    )
    if study.sample_ratio_p < MISMATCH_LEVEL:
        counts = ", ".join(f"{name} {count:,}" for name, count in study.users.items())
        study.warnings.append(
            f"sample ratio mismatch: {counts} users (p {p_text(study.sample_ratio_p)}); the assignment or "
            "its logging is broken, do not believe the uplifts"
        )
    if totals.in_two_arms:
        study.warnings.append(f"{totals.in_two_arms:,} users were seen in two arms and were left out")
    if totals.before_UM is None:
        study.warnings.append("no pre-period (rows without an arm or before experiment.start): CUPED is off")
    for arm in range(1, len(totals.arms)):
        _arm(study, totals, arm, config, correction)
    return study


def _arm(
    study: ExperimentStudy, totals: UserTotals, arm: int, config: ExperimentConfig, correction: Correction
) -> None:
    name = totals.arms[arm]
    everyone = (totals.arm_U == 0) | (totals.arm_U == arm)
    found = _uplifts(totals, everyone, arm, config.planned_users)
    study.uplifts[name] = found
    adjusted = correction.adjust(np.array([each.p for each in found]))
    study.adjusted[name] = dict(zip((each.metric for each in found), adjusted.tolist(), strict=True))
    study.verdicts.append(_verdict(study, name))
    study.slices[name] = {}
    for column, (labels, value_U) in totals.slices.items():
        parts = {}
        for code, label in enumerate(labels):
            inside = everyone & (value_U == code)
            if min(np.bincount((totals.arm_U[inside] == arm).astype(int), minlength=2)) >= MIN_SLICE_USERS:
                parts[label] = _uplifts(totals, inside, arm, config.planned_users)[0]
        study.slices[name][column] = parts
        if simpson(found[0].difference, {column: [part.difference for part in parts.values()]}):
            study.warnings.append(
                f"Simpson's paradox: {name} moves {found[0].metric} one way overall and the other way in "
                f"every slice of {column}; the arms have different users"
            )


def _uplifts(totals: UserTotals, inside: Bools, arm: int, planned: int) -> list[Uplift]:
    """Per label its count per user and its rate per known impression; per amount its sum per user."""
    treated_U = (totals.arm_U[inside] == arm).astype(np.int64)
    found = []
    for m, metric in enumerate(totals.metrics):
        total_U, known_U = totals.total_UM[inside, m], totals.known_UM[inside, m]
        before_U = totals.before_UM[inside, m] if totals.before_UM is not None else None
        found.append(
            uplift(f"{metric}_per_user", total_U, np.ones(len(total_U)), before_U, treated_U, planned)
        )
        if metric in LABELS:
            found.append(uplift(f"{metric}_rate", total_U, known_U, None, treated_U, planned))
    return found


def _verdict(study: ExperimentStudy, arm: str) -> str:
    moved = [u for u in study.uplifts[arm] if study.adjusted[arm][u.metric] < ALPHA]
    early = [u.metric for u in study.uplifts[arm] if u.p_always < ALPHA]
    if not moved:
        first = study.uplifts[arm][0]
        line = (
            f"{arm} is not shown to differ from {study.control} on any of {len(study.uplifts[arm])} metrics; "
            f"smallest visible change of {first.metric}: {first.detectable:.4g}"
        )
    else:
        parts = [
            f"{u.metric} {u.control:.4g} → {u.treatment:.4g} ({u.relative:+.1%}, 95 % CI of the difference "
            f"{u.low:+.3g} … {u.high:+.3g})"
            for u in moved[:4]
        ]
        more = f" and {len(moved) - 4} more" if len(moved) > 4 else ""
        line = f"{arm} against {study.control}: " + ", ".join(parts) + more
    return line + (
        f"; may be stopped early on {', '.join(early)}" if early else "; if peeked at, keep running"
    )


def _shares(config: ExperimentConfig, arms: list[str]) -> Floats:
    if config.split is None:
        return np.ones(len(arms))
    missing = [arm for arm in arms if arm not in config.split]
    if missing:
        raise ConfigError(f"experiment.split has no share for the arm {missing[0]}; it must name every arm")
    return np.array([float(config.split[arm]) for arm in arms])
