"""``shopreel sweep``: its own keys, and the words of ``shopreel train`` that come with them."""

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from data.compose import compose, expand, text_word
from data.errors import ConfigError
from data.locations import local_path, only_local
from training.config import TrainConfig, TwoTowerConfig
from training.run_directory import plain
from training.search_space import SearchSpace, Value, dimension, first_word, split_words
from training.study import Sampler

#: What the sweep sets itself, or what would change what is compared.
NOT_SEARCHED = ("model", "prepared", "out", "resume", "overwrite", "model.validation", "model.name")
#: How many combinations of the other dimensions a value is tried with before it is refused.
COMBINATIONS = 16


class Keep(Enum):
    """Whose model files stay."""

    best = "best"
    all = "all"


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """Keys of ``configs/sweep.yaml``; those of the trainings are words of their own, see :class:`Sweep`."""

    prepared: str = MISSING
    out: str = MISSING
    trials: int = MISSING
    sampler: Sampler = MISSING
    sampler_seed: int = MISSING
    random_trials: int = MISSING
    defaults_first: bool = MISSING
    keep: Keep = MISSING
    resume: bool = MISSING
    overwrite: bool = MISSING

    def __post_init__(self) -> None:
        for key in ("trials", "random_trials"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")
        if self.sampler_seed < 0:
            raise ValueError(f"sampler_seed={self.sampler_seed} must be at least 0")
        if self.resume and self.overwrite:
            raise ValueError("resume=true goes on with a sweep, overwrite=true replaces it; choose one")


@dataclass(frozen=True, slots=True)
class Sweep:
    """What to run. ``fixed`` are words of train that all trials share, ``only_here`` those that a training
    with the best settings is not to have; ``defaults`` is the point of ``space`` that train has by itself.
    """

    config: SweepConfig
    fixed: tuple[str, ...]
    only_here: tuple[str, ...]
    space: SearchSpace
    defaults: dict[str, Value] | None


def configure(words: Sequence[str]) -> Sweep:
    """The sweep that the command line asks for. Refuses what can be known to fail before any training."""
    words = expand(words)
    own = {field.name for field in fields(SweepConfig)}
    config = compose("sweep", [word for word in words if _key(word) in own], SweepConfig)
    config.out = str(only_local("out", config.out))
    local = local_path(config.prepared)
    fixed, searched = split_words([word for word in words if _key(word) not in own])
    fixed = [text_word("prepared", config.prepared if local is None else str(local.absolute())), *fixed]
    for word in [*fixed, *(override.input_line or "" for override in searched)]:
        _refuse_stranger(_key(word), own)
    if not searched:
        example = "'model.dropout=interval(0,0.5)' (shopreel sweep --help)"
        raise ConfigError(f"nothing to search: no key has several values; give one, as {example}")
    base = _train_config(fixed)
    for override in searched:
        key = override.key_or_group
        if key in NOT_SEARCHED or key.startswith("model.validation."):
            raise ConfigError(f"{key} cannot be searched: trials with different ones are not comparable")
        _refuse_unknown([*fixed, first_word(override)])
    space = SearchSpace(tuple(dimension(each, _at(base, each.key_or_group)) for each in searched))
    endless = [each for each in space.dimensions if not each.values]
    if config.sampler is Sampler.grid and endless:
        raise ConfigError(
            f"{endless[0].key}={endless[0].text}: sampler=grid cannot try all of an interval; give range(…) "
            "or choice(…), or sampler=tpe"
        )
    _refuse_impossible(fixed, space)
    refits = any(_key(word) == "model.refit_epochs" for word in words)
    only_here = ("model.refit_epochs=0",) if isinstance(base.model, TwoTowerConfig) and not refits else ()
    held = {each.key: each.holding(plain(_at(base, each.key))) for each in space.dimensions}
    defaults = {key: value for key, value in held.items() if value is not None}
    first = defaults if config.defaults_first and len(defaults) == len(held) else None
    return Sweep(config, tuple(fixed), only_here, space, first)


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _refuse_stranger(key: str, own: set[str]) -> None:
    """Name the close keys of sweep too, where train's own message would know those of train alone."""
    known = {field.name for field in fields(TrainConfig)} | own
    if key.isidentifier() and key not in known:
        close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else "see shopreel sweep --help"
        raise ConfigError(f"unknown key {key!r}; {hint}")


def _train_config(words: Sequence[str]) -> TrainConfig:
    """The config of one training."""
    return compose("train", [*words, "out=TRIAL"], TrainConfig)


def _refuse_unknown(words: Sequence[str]) -> None:
    """Refuse a key that train does not know; what else may be wrong with ``words`` is not looked at."""
    try:
        _train_config(words)
    except ConfigError as error:
        if str(error).startswith("unknown key"):
            raise


def _at(config: object, key: str) -> Any:
    """The value of a dotted key of a config."""
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part) if is_dataclass(node) else node[part]
    return node


def _refuse_impossible(fixed: Sequence[str], space: SearchSpace) -> None:
    """Every choice and both ends of every number must make a config, with the others at some of theirs."""
    for each in space.dimensions:
        others = [other for other in space.dimensions if other.key != each.key]
        combinations = itertools.product(*([other.override(v) for v in other.ends()] for other in others))
        for value in each.ends():
            reason: ConfigError | None = None
            for rest in itertools.chain([()], itertools.islice(combinations, COMBINATIONS)):
                try:
                    _train_config([*fixed, each.override(value), *rest])
                except ConfigError as error:
                    reason = reason or error
                else:
                    break
            else:
                assert reason is not None
                raise ConfigError(f"{each.key}={each.text} holds {value}: {reason}")
