"""Everything a log with propensities says about another policy: estimates beside their diagnostics."""

from dataclasses import dataclass, field

import numpy as np

from data.errors import ConfigError
from evaluation.arrays import Floats, Ints
from evaluation.bootstrap import Estimate, estimates, sum_estimates, user_sums
from evaluation.logged import Logged, Target, read_logged, target_from_frequencies, target_from_table
from evaluation.off_policy import MODEL_BASED, MODEL_FREE, LoggedRows
from evaluation.policy_config import OffPolicyConfig, Unit
from evaluation.reward_model import RewardModel, fitted_rewards, given_rewards
from evaluation.slate_policy import (
    LoggedSlates,
    cascade_doubly_robust,
    independent_ips,
    padded,
    reward_interaction_ips,
)
from evaluation.weights import (
    PropensityCheck,
    WeightReport,
    check_propensities,
    doubts,
    refusals,
    weight_report,
)


@dataclass(slots=True)
class OffPolicyStudy:
    """``estimates`` per estimator (``refused`` says why one is missing), beside the logging policy's mean.

    ``on_policy`` is the target's own mean where its rows are in the log. Values are the mean reward of
    an impression; for slate estimators the mean sum over a request.
    """

    reward: str
    logging: Estimate
    on_policy: Estimate | None = None
    estimates: dict[str, Estimate] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    weights: dict[str, WeightReport] = field(default_factory=dict)
    propensities: PropensityCheck | None = None
    warnings: list[str] = field(default_factory=list)


def study_policy(path: str, config: OffPolicyConfig, *, replicates: int, seed: int) -> OffPolicyStudy:
    """Estimate the target policy's mean reward from the log at ``path``."""
    logged = read_logged(path, config.reward, config.rows(config.logging_policy))
    draw = {"replicates": replicates, "seed": seed}
    unit_N = _units(logged, config.unit)
    study = OffPolicyStudy(config.reward, estimates(logged.reward_N[:, None], unit_N, **draw)[0])
    target: Target | None = None
    if config.target is not None:
        target = target_from_table(logged, config.target)
    elif config.target_policy is not None:
        other = read_logged(path, config.reward, config.rows(config.target_policy))
        target = target_from_frequencies(logged, other)
        study.on_policy = estimates(other.reward_N[:, None], _units(other, config.unit), **draw)[0]
    elif np.isnan(logged.target_N).any():
        raise ConfigError(
            f"log={path}: what would the target do? It needs a column target_propensity, or set "
            "off_policy.target=TABLE, or off_policy.logging_policy= and target_policy="
        )
    if logged.dropped:
        study.warnings.append(f"{logged.dropped:,} rows of unknown {config.reward} were left out")
    target_N = logged.target_N if target is None else target.table.lookup(target.context_N, target.video_N)
    _check_propensities(study, logged, target)
    _impressions(study, logged, target, target_N, unit_N, config, **draw)
    if logged.request_N is not None and logged.place_N.max() > 0:
        _slates(study, logged, target_N, unit_N, config, **draw)
    return study


def _impressions(
    study: OffPolicyStudy,
    logged: Logged,
    target: Target | None,
    target_N: Floats,
    unit_N: Ints,
    config: OffPolicyConfig,
    *,
    replicates: int,
    seed: int,
) -> None:
    """Estimators that take every impression by itself.

    The interval of a model-based one resamples what each row gives to the mean, its part in the fit of
    the model included, so that it is as wide as refitting would make it.
    """  # fmt: skip
    weight_N = target_N / logged.propensity_N
    unsupported = float("nan")
    if target is not None:
        unsupported = target.table.unsupported(target.context_N, target.video_N)
    report = weight_report(weight_N, logged.reward_N, unsupported)
    model = _model(logged, target, unit_N, seed)
    rows = LoggedRows(logged.reward_N, weight_N, model.q_N, model.q_target_N)
    reasons = _judge(study, "impression", report, config)
    if reasons:
        study.refused |= dict.fromkeys([*MODEL_FREE, *MODEL_BASED], "; ".join(reasons))
        return
    terms = [make(rows) for make in MODEL_FREE.values()]
    sums = user_sums(
        np.stack([top_N for top_N, _ in terms], axis=1), unit_N, seed,
        count_RM=np.stack([bottom_N for _, bottom_N in terms], axis=1),
    )  # fmt: skip
    found = sum_estimates(sums, replicates=replicates, seed=seed)
    study.estimates |= dict(zip(MODEL_FREE, found, strict=True))
    if not rows.modelled:
        why = "no reward model: give the target's distribution (off_policy.target) or baseline columns"
        study.refused |= dict.fromkeys(MODEL_BASED, why)
        return
    used = [make(rows) for make in MODEL_BASED.values()]
    noise = [rows.corrected(v_N) + model.leverage(v_N) * (rows.reward_N - rows.q_N) for v_N in used]
    found = estimates(np.stack(noise, axis=1), unit_N, replicates=replicates, seed=seed)
    for name, v_N, noisy in zip(MODEL_BASED, used, found, strict=True):
        value = float(rows.corrected(v_N).mean())
        shift = value - noisy.value
        study.estimates[name] = Estimate(value, noisy.low + shift, noisy.high + shift, noisy.n)


def _slates(
    study: OffPolicyStudy,
    logged: Logged,
    target_N: Floats,
    unit_N: Ints,
    config: OffPolicyConfig,
    *,
    replicates: int,
    seed: int,
) -> None:
    """Estimators of the sum of rewards over a request's positions."""  # fmt: skip
    assert logged.request_N is not None
    request_N, place_N, extra = logged.request_N, logged.place_N, logged.extra

    def grid(value_N: Floats, fill: float) -> Floats:
        return padded(request_N, place_N, value_N, fill)

    weight_RL = grid(target_N / logged.propensity_N, 1.0)
    marginal_RL = weight_RL
    if "propensity_marginal" in extra and "target_propensity_marginal" in extra:
        marginal_RL = grid(extra["target_propensity_marginal"] / extra["propensity_marginal"], 1.0)
    else:
        study.warnings.append(
            "iips: the log has no marginal propensities, those given the positions above were used"
        )
    unknown_N = np.full(len(target_N), np.nan)
    slates = LoggedSlates(
        grid(logged.reward_N, 0.0), weight_RL, marginal_RL,
        grid(extra.get("baseline_to_go", unknown_N), 0.0),
        grid(extra.get("baseline_to_go_target", unknown_N), 0.0),
    )  # fmt: skip
    unit_R = np.zeros(len(weight_RL), np.int64)
    unit_R[request_N] = unit_N
    kinds = {"slate position": marginal_RL.ravel(), "slate": np.prod(weight_RL, axis=1)}
    reward = {"slate position": slates.reward_RL.ravel(), "slate": slates.reward_RL.sum(axis=1)}
    reasons = {kind: _judge(study, kind, weight_report(w, reward[kind]), config) for kind, w in kinds.items()}
    makers = {
        "iips": ("slate position", independent_ips),
        "rips": ("slate", reward_interaction_ips),
        "cascade_dr": ("slate", cascade_doubly_robust),
    }
    if not slates.modelled:
        study.refused["cascade_dr"] = "the log has no baseline_to_go and baseline_to_go_target columns"
    for name, (kind, _) in makers.items():
        if reasons[kind]:
            study.refused[name] = "; ".join(reasons[kind])
    named = [name for name in makers if name not in study.refused]
    if named:
        value_RM = np.stack([makers[name][1](slates) for name in named], axis=1)
        found = estimates(value_RM, unit_R, replicates=replicates, seed=seed)
        study.estimates |= dict(zip(named, found, strict=True))


def _model(logged: Logged, target: Target | None, unit_N: Ints, seed: int) -> RewardModel:
    """Modelled rewards: the log's own baseline columns, else a fit where the target's table allows one."""
    if "baseline" in logged.extra and "baseline_target" in logged.extra:
        return given_rewards(logged.extra["baseline"], logged.extra["baseline_target"])
    if target is None:
        return given_rewards(np.zeros(len(unit_N)), np.full(len(unit_N), np.nan))
    return fitted_rewards(target.table, target.context_N, target.video_N, logged.reward_N, unit_N, seed)


def _judge(study: OffPolicyStudy, kind: str, report: WeightReport, config: OffPolicyConfig) -> list[str]:
    """Record the diagnostics of one kind of weight; the reasons to refuse, if any."""
    study.weights[kind] = report
    reasons = refusals(
        report,
        min_rows=config.min_effective_rows,
        min_rewards=config.min_effective_rewards,
        max_unsupported=config.max_unsupported,
    )
    study.warnings += [f"{kind} weights: {line}" for line in ([] if reasons else doubts(report))]
    return reasons


def _check_propensities(study: OffPolicyStudy, logged: Logged, target: Target | None) -> None:
    context_N = np.zeros(len(logged.video_N), np.int64) if target is None else target.context_N
    if target is None and "position" in logged.table.schema.names and not logged.table["position"].null_count:
        context_N = logged.table["position"].to_numpy().astype(np.int64)
        context_N = context_N - context_N.min()
    check = check_propensities(context_N, logged.video_N, logged.propensity_N)
    study.propensities = check
    if check.wrong:
        study.warnings.append(
            f"propensity check: {check.wrong} of {check.cells} (context, video) frequencies disagree with "
            f"the logged propensity, by up to a factor of {check.worst:.2f}"
        )


def _units(logged: Logged, unit: Unit) -> Ints:
    match unit:
        case Unit.user:
            return logged.user_N
        case Unit.row:
            return np.arange(len(logged.user_N))
        case Unit.request:
            if logged.request_N is None:
                raise ConfigError(
                    f"log={logged.path}: off_policy.unit=request needs a request_id in every row"
                )
            return logged.request_N
