"""The plan: who is let in to what. One YAML or JSON file of cohorts, experiments, a holdout and campaigns.

See docs/serving.md for an example. Whatever makes no sense is refused with the path of the field.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta, Struct
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.errors import ConfigError
from models.value import ValueFormula
from serving.campaigns import Campaign
from serving.campaigns import mistakes as mistakes_of
from serving.pacing import Traffic
from serving.schema import Id, Name

#: Names that become columns of the served log and labels of metrics.
Word = Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,39}$")]
Percent = Annotated[float, Meta(ge=0, le=100)]
#: The built-in experiment that tells those held out from everyone else.
HOLDOUT = "holdout"
#: What an arm may change: the sections of configs/serve.yaml with the keys to be changed.
Patch = dict[str, Any]


class Cohort(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some of the users: those listed, and of those in one of ``markets`` (None: any) a ``percent``.

    Where only users are listed, nobody else is in.
    """

    users: list[Id] = []
    markets: list[Name] | None = None
    percent: Percent | None = None


class ValuePatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights in the place of those of the bundle's value formula; the others stay."""

    watch_s: float | None = None
    gmv: float | None = None
    tasks: dict[str, float] = {}


class Arm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One arm: its share among the arms by ``weight``, and what is different for the users in it.

    ``bundles`` is a folder of bundles, whose CURRENT is followed, or one bundle.
    """

    weight: Annotated[float, Meta(ge=0)]
    bundles: str | None = None
    value: ValuePatch | None = None
    feed: Patch = {}
    slate: Patch = {}
    exploration: Patch = {}
    campaigns: Patch = {}
    sources: Patch = {}

    def changes(self) -> Iterator[str]:
        """The settings that differ, by path, such as ``slate.creator_cap``."""
        if self.bundles is not None:
            yield "bundles"
        if self.value is not None:
            yield "value"
        for section, patch in self.patches().items():
            for key in patch:
                yield f"{section}.{key}"

    def patches(self) -> Mapping[str, Patch]:
        """The changed keys by section."""
        return {
            "feed": self.feed,
            "slate": self.slate,
            "exploration": self.exploration,
            "campaigns": self.campaigns,
            "sources": self.sources,
        }


class Experiment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Users of ``cohort`` (None: all) split over ``arms``. A new ``salt`` deals them anew."""

    arms: dict[Word, Arm]
    cohort: Word | None = None
    salt: str | None = None


class Holdout(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``percent`` of the users who take part in no experiment and, unless ``campaigns``, see no campaign."""

    percent: Percent
    campaigns: bool = True


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. ``salt`` goes into every assignment: another one deals all users anew.

    ``traffic`` are 24 weights, the pages of the hours of a UTC day, by which budgets are paced; None learns
    them from the last week.
    """

    salt: Annotated[str, Meta(min_length=1)] = "shopreel"
    cohorts: dict[Word, Cohort] = {}
    experiments: dict[Word, Experiment] = {}
    holdout: Holdout | None = None
    campaigns: dict[Word, Campaign] = {}
    traffic: list[float] | None = None


NO_PLAN = Plan()
_WHERE = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")


def patched_value(formula: ValueFormula, patch: ValuePatch, version: str) -> ValueFormula:
    """A bundle's formula with an arm's weights, under a version of its own."""
    return ValueFormula(
        version=version,
        watch_s=formula.watch_s if patch.watch_s is None else patch.watch_s,
        gmv=formula.gmv if patch.gmv is None else patch.gmv,
        tasks={**formula.tasks, **patch.tasks},
    )


def read_plan(path: str | Path) -> Plan:
    """Read and check a plan. Raises :class:`ConfigError` naming file, field and mend."""
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"plan={path}: {message}; give a YAML or JSON file") from None
    said = _refusal(raw)
    if said is not None:
        raise ConfigError(f"plan={path}: {_named(raw, said)}")
    plan = msgspec.convert(raw, Plan)
    for field, mistake in _mistakes(plan):
        raise ConfigError(f"plan={path}: {field}: {mistake}")
    return plan


def _refusal(raw: object) -> str | None:
    """What the types refuse, None where they refuse nothing: ``path: message``."""
    try:
        msgspec.convert(raw, Plan)
    except msgspec.ValidationError as error:
        where = _WHERE.search(str(error))
        message = _WHERE.sub("", str(error))
        return f"{where[1]}: {message}" if where and where[1] else message
    return None


def _named(raw: Any, said: str) -> str:
    """A refusal with the names in its path, which the parser writes as ``[...]``.

    The name is that of the entry that, left alone, is refused in the same way.
    """
    while "[...]" in said:
        before, _, after = said.partition("[...]")
        path = before.split(".")
        entries = raw
        for step in path:
            entries = entries[step]
        for name in entries:
            alone: Any = {name: entries[name]}
            for step in reversed(path):
                alone = {step: alone}
            again = _refusal(alone)
            if again is not None and again.endswith(after):
                raw, said = alone, f"{before}.{name}{after}"
                break
        else:
            return said
    return said


def _mistakes(plan: Plan) -> Iterator[tuple[str, str]]:
    """What the types alone could not tell: (field, message)."""
    for name, cohort in plan.cohorts.items():
        if not cohort.users and cohort.markets is None and cohort.percent is None:
            yield f"cohorts.{name}", "give users, markets or percent; it would be empty"
    changed: dict[str, str] = {}
    for name, experiment in plan.experiments.items():
        where = f"experiments.{name}"
        if name == HOLDOUT:
            yield where, "is the name of the built-in one; choose another"
        if experiment.cohort is not None and experiment.cohort not in plan.cohorts:
            yield f"{where}.cohort", _no_such_cohort(experiment.cohort, plan)
        if len(experiment.arms) < 2:
            yield f"{where}.arms", "an experiment needs two arms or more"
        elif not any(arm.weight for arm in experiment.arms.values()):
            yield f"{where}.arms", "every weight is 0"
        for path in sorted({path for arm in experiment.arms.values() for path in arm.changes()}):
            if path in changed:
                yield where, f"changes {path}, and so does {changed[path]}; make them arms of one experiment"
            changed[path] = name
    yield from _campaign_mistakes(plan)


def _campaign_mistakes(plan: Plan) -> Iterator[tuple[str, str]]:
    currencies: dict[str, str] = {}
    for name, campaign in plan.campaigns.items():
        where = f"campaigns.{name}"
        yield from ((f"{where}.{field}", message) for field, message in mistakes_of(campaign))
        if campaign.cohort is not None and campaign.cohort not in plan.cohorts:
            yield f"{where}.cohort", _no_such_cohort(campaign.cohort, plan)
        if campaign.currency is not None:
            other = currencies.setdefault("one", campaign.currency)
            if campaign.currency != other:
                yield f"{where}.currency", f"bids are compared as numbers: give all of them {other}"
    if plan.traffic is not None:
        try:
            Traffic(tuple(plan.traffic))
        except ValueError as error:
            yield "traffic", str(error)


def _no_such_cohort(name: str, plan: Plan) -> str:
    return f"no cohort {name}; there are {', '.join(sorted(plan.cohorts)) or 'none'}"
