"""A plan at work: in which cohorts and arms a user is, and what those change.

Assignment is a pure function of the plan, the user's id and the market (:mod:`data.assignment`), so that
every replica and whoever looks at a log later agree on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import msgspec

from data.assignment import choose, within
from data.errors import ConfigError
from serving.campaigns import Campaign
from serving.pacing import Traffic
from serving.paging import FeedSettings
from serving.plan import HOLDOUT, NO_PLAN, Arm, Experiment, Patch, Plan
from serving.state.protocol import Id

#: Arms of the built-in experiment ``holdout``.
HELD_OUT, OPEN = "held_out", "open"
#: Keys of the section ``feed`` that an arm may change.
_FEED = ("page_size", "candidates")
P = TypeVar("P")
Arms = Mapping[str, str]


class Rollout:
    """Assigns users and settings by one plan. Immutable; safe to use from several threads."""

    def __init__(self, plan: Plan, settings: FeedSettings) -> None:
        """``settings`` are those of a user in no arm. Raises :class:`ConfigError` for a wrong arm."""
        self.plan = plan
        self._settings = settings
        self._listed = {name: frozenset(map(str, cohort.users)) for name, cohort in plan.cohorts.items()}
        for name, experiment in plan.experiments.items():
            for arm in experiment.arms:
                self.settings({name: arm})

    def in_cohort(self, name: str, user_id: Id, market: str | None) -> bool:
        """Whether a user, asking in ``market``, is in a cohort of the plan."""
        cohort = self.plan.cohorts[name]
        if str(user_id) in self._listed[name]:
            return True
        if cohort.markets is None and cohort.percent is None:
            return False
        if cohort.markets is not None and market not in cohort.markets:
            return False
        share = 1.0 if cohort.percent is None else cohort.percent / 100
        return within(f"{self.plan.salt}/cohort/{name}", user_id, share)

    def held_out(self, user_id: Id) -> bool:
        """Whether a user takes part in no experiment."""
        holdout = self.plan.holdout
        return holdout is not None and within(f"{self.plan.salt}/{HOLDOUT}", user_id, holdout.percent / 100)

    def arms(self, user_id: Id, market: str | None) -> dict[str, str]:
        """Experiment → arm, of those that the user takes part in; ``holdout`` where the plan has one."""
        found: dict[str, str] = {}
        if self.plan.holdout is not None:
            held_out = self.held_out(user_id)
            found[HOLDOUT] = HELD_OUT if held_out else OPEN
            if held_out:
                return found
        for name, experiment in self.plan.experiments.items():
            if experiment.cohort is None or self.in_cohort(experiment.cohort, user_id, market):
                weights = [(arm, spec.weight) for arm, spec in experiment.arms.items()]
                found[name] = choose(self._salt(name, experiment), user_id, weights)
        return found

    def campaigns(self, user_id: Id, market: str | None) -> dict[str, Campaign]:
        """The campaigns whose audience a user belongs to, in flight or not."""
        holdout = self.plan.holdout
        if holdout is not None and not holdout.campaigns and self.held_out(user_id):
            return {}
        return {
            name: campaign
            for name, campaign in self.plan.campaigns.items()
            if campaign.cohort is None or self.in_cohort(campaign.cohort, user_id, market)
        }

    @property
    def traffic(self) -> Traffic | None:
        """The traffic that budgets are paced by; None where it is learned."""
        return None if self.plan.traffic is None else Traffic(tuple(self.plan.traffic))

    def bundles(self, arms: Arms) -> str | None:
        """The folder of bundles that serves these arms; None is the server's own."""
        return next((spec.bundles for _, spec in self._specs(arms) if spec.bundles is not None), None)

    def settings(self, arms: Arms) -> FeedSettings:
        """How pages are made for these arms."""
        settings = self._settings
        for where, arm in self._specs(arms):
            settings = patched_settings(settings, arm, where)
        return settings

    def _specs(self, arms: Arms) -> Sequence[tuple[str, Arm]]:
        experiments = self.plan.experiments
        return [
            (f"experiments.{name}.arms.{arm}", experiments[name].arms[arm])
            for name, arm in arms.items()
            if name in experiments
        ]

    def _salt(self, name: str, experiment: Experiment) -> str:
        own = name if experiment.salt is None else experiment.salt
        return f"{self.plan.salt}/experiment/{own}"


def no_rollout(settings: FeedSettings) -> Rollout:
    """Everybody gets the same."""
    return Rollout(NO_PLAN, settings)


def policy_name(bundle: str, arms: Arms) -> str:
    """What decided a page, for the log: ``bundle`` or ``bundle|experiment=arm|…``, in the plan's order."""
    return "|".join([bundle, *(f"{name}={arm}" for name, arm in arms.items())])


def patched_settings(settings: FeedSettings, arm: Arm, where: str) -> FeedSettings:
    """Settings with an arm's changes; ``where`` is the arm's path in the plan.

    Raises :class:`ConfigError` for a key that does not exist and for a value out of range.
    """
    if unknown := sorted(set(arm.feed) - set(_FEED)):
        raise ConfigError(f"{where}.feed: no key {unknown[0]}; an arm may change {', '.join(_FEED)}")
    changed: dict[str, Any] = {
        section: _patched(getattr(settings, section), patch, f"{where}.{section}")
        for section, patch in arm.patches().items()
        if patch and section != "feed"
    }
    if arm.value is not None:
        changed["value"] = arm.value
    try:
        settings = replace(settings, **changed)
    except ValueError as error:  # of sections that do not go together
        raise ConfigError(f"{where}: {error}") from None
    return _patched(settings, arm.feed, f"{where}.feed") if arm.feed else settings


def _patched(preferences: P, patch: Patch, where: str) -> P:
    names = [field.name for field in fields(preferences)]  # type: ignore[arg-type]
    if unknown := sorted(set(patch) - set(names)):
        raise ConfigError(f"{where}: no key {unknown[0]}; there are {', '.join(names)}")
    types = {name: getattr(preferences, name) for name in names}
    try:
        values = msgspec.convert({**types, **patch}, type(preferences))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
    return values
