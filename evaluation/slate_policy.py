"""The same question for whole slates: the expected sum of rewards over the positions of a request.

Rows are [R, L] requests by positions, shorter slates padded with weight 1 and reward 0. The weight of a
position is P(video at this position | context, positions above) of the target over that of the log.
"""

from dataclasses import dataclass

import numpy as np

from evaluation.arrays import Floats, Ints


@dataclass(frozen=True, slots=True)
class LoggedSlates:
    """``reward_RL``, ``weight_RL`` as above; ``marginal_RL`` the ratio of *marginal* probabilities.

    ``to_go_RL`` is the modelled sum of this and all later rewards after what was shown here,
    ``to_go_target_RL`` its mean over the target's choice here; NaN without a model.
    """

    reward_RL: Floats
    weight_RL: Floats
    marginal_RL: Floats
    to_go_RL: Floats
    to_go_target_RL: Floats

    @property
    def modelled(self) -> bool:
        """Whether there is a model of the rewards to go."""
        return bool(self.to_go_RL.size) and not np.isnan(self.to_go_target_RL).any()


def padded(request_N: Ints, place_N: Ints, value_N: Floats, fill: float) -> Floats:
    """Rows as [R, L] with ``fill`` where a slate is shorter. ``place_N`` counts positions from 0."""
    grid = np.full((int(request_N.max()) + 1, int(place_N.max()) + 1), fill)
    grid[request_N, place_N] = value_N
    return grid


def independent_ips(slates: LoggedSlates) -> Floats:
    """IIPS, Σ over positions of marginal weight · reward [R]: right if positions do not affect each other.

    Source: Li et al., Offline evaluation of ranking policies with click models, KDD 2018.
    """
    total: Floats = (slates.marginal_RL * slates.reward_RL).sum(axis=1)
    return total


def reward_interaction_ips(slates: LoggedSlates) -> Floats:
    """RIPS, Σ (product of weights down to the position) · reward [R]: right if users look top-down.

    A position may depend on those above it, not on those below. Source: McInerney et al., Counterfactual
    evaluation of slate recommendations with sequential reward interactions, KDD 2020.
    """
    total: Floats = (np.cumprod(slates.weight_RL, axis=1) * slates.reward_RL).sum(axis=1)
    return total


def cascade_doubly_robust(slates: LoggedSlates) -> Floats:
    """Cascade-DR [R]: RIPS with the modelled reward to go as control at every position.

    Σ w₁…ₗ (rewardₗ − Q̂ₗ) + w₁…ₗ₋₁ E_target[Q̂ₗ]; unbiased like RIPS, with less variance for a fair model.
    Source: Kiyohara et al., Doubly robust off-policy evaluation for ranking policies, WSDM 2022.
    """
    upto_RL = np.cumprod(slates.weight_RL, axis=1)
    before_RL = np.concatenate([np.ones((len(upto_RL), 1)), upto_RL[:, :-1]], axis=1)
    total: Floats = (upto_RL * (slates.reward_RL - slates.to_go_RL) + before_RL * slates.to_go_target_RL).sum(
        axis=1
    )
    return total
