"""What a sweep searches: dimensions written in Hydra's sweep grammar, as distributions of Optuna.

Hydra's released Optuna plugin (hydra-optuna-sweeper 1.3.0) is not used: it needs optuna < 3, starts counting
its trials anew on a stored study (hydra-ecosystem/hydra#1679) and runs past the end of ``range``.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from data.errors import ConfigError

#: A number of an interval or a range, or a choice as it stands in an override.
Value = float | int | str
Point = Mapping[str, Value]

FUNCTIONS = ("interval(", "range(", "choice(", "tag(", "shuffle(", "sort(", "glob(", "int(", "float(")
MAX_VALUES = 10_000
#: Significant digits of a drawn number: enough to tell trials apart, few enough to read.
DIGITS = 4


@dataclass(frozen=True, slots=True)
class Dimension:
    """One searched key. ``values`` are all of a finite dimension, in order; empty for an interval."""

    key: str
    text: str
    distribution: BaseDistribution
    values: tuple[Value, ...] = ()

    def override(self, value: Value) -> str:
        """The word that gives the key this value."""
        return f"{self.key}={value}"

    def ends(self) -> tuple[Value, ...]:
        """Values to try a config with: every choice, or both ends."""
        match self.distribution:
            case CategoricalDistribution():
                return self.values
            case IntDistribution(low=low, high=high) | FloatDistribution(low=low, high=high):
                return (low, high)
        raise TypeError(type(self.distribution))

    def nearest(self, value: Value) -> Value:
        """A drawn value as it is trained with: on the range's grid, or with few digits and inside."""
        match self.distribution:
            case FloatDistribution() if self.values:
                return min(self.values, key=lambda each: abs(float(each) - float(value)))
            case FloatDistribution(low=low, high=high):
                return min(max(float(f"{value:.{DIGITS}g}"), low), high)
        return value

    def holding(self, value: object) -> Value | None:
        """The dimension's value that equals a config's ``value``; None where it lies outside."""
        match self.distribution:
            case CategoricalDistribution():
                return next((each for each in self.values if _same(str(each), value)), None)
            case _ if isinstance(value, bool) or not isinstance(value, int | float):
                return None
            case _ if self.values:
                return next((each for each in self.values if math.isclose(float(each), value)), None)
            case IntDistribution(low=low, high=high) | FloatDistribution(low=low, high=high):
                return value if low <= value <= high else None
        return None


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The dimensions in the order in which they were given."""

    dimensions: tuple[Dimension, ...]

    def distributions(self) -> dict[str, BaseDistribution]:
        """For Optuna."""
        return {each.key: each.distribution for each in self.dimensions}

    def overrides(self, point: Point) -> list[str]:
        """``point`` as words of ``shopreel train``."""
        return [each.override(point[each.key]) for each in self.dimensions]

    def nearest(self, point: Point) -> dict[str, Value]:
        """Each value by :meth:`Dimension.nearest`."""
        return {each.key: each.nearest(point[each.key]) for each in self.dimensions}

    def size(self) -> int | None:
        """How many points there are; None where a dimension is an interval."""
        if not all(each.values for each in self.dimensions):
            return None
        return math.prod(len(each.values) for each in self.dimensions)

    def grid(self) -> "itertools.product[tuple[Value, ...]]":
        """All values of a finite space, the last dimension changing fastest."""
        return itertools.product(*(each.values for each in self.dimensions))


def split_words(words: Sequence[str]) -> tuple[list[str], list[Override]]:
    """The words with one value, and the parsed ones that are searched; refuses a key that is in both."""
    fixed: list[str] = []
    searched: dict[str, Override] = {}
    parser = OverridesParser.create()
    for word in words:
        key, _, value = word.partition("=")
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            if value.startswith(FUNCTIONS):
                raise ConfigError(f"{word!r}: {str(error).splitlines()[0]}") from None
            fixed.append(word)  # a text that misses its quotes; compose gives it them, or its own message
            continue
        if not override.is_sweep_override():
            fixed.append(word)
        elif key in searched:
            raise ConfigError(f"{key} is searched twice; give it one {value.partition('(')[0]}(…)")
        elif not key or not (key[0].isalpha() or key[0] == "_") or "@" in key:
            raise ConfigError(f"{word!r}: write the searched key alone, without + ~ or @")
        else:
            searched[key] = override
    both = [word for word in fixed if word.partition("=")[0].lstrip("+") in searched]
    if both:
        key = both[0].partition("=")[0].lstrip("+")
        raise ConfigError(f"{key} is both fixed ({both[0]}) and searched; leave one of them out")
    return fixed, list(searched.values())


def first_word(override: Override) -> str:
    """A word with one value of a searched override: enough to ask whether the key exists."""
    value = override.value()
    if isinstance(value, IntervalSweep | RangeSweep):
        return f"{override.key_or_group}={value.start}"
    return f"{override.key_or_group}={_texts(override)[0]}"


def dimension(override: Override, default: object) -> Dimension:
    """One searched override; ``default`` is the key's value in the config, whose type decides."""
    key, text, value = override.key_or_group, override.get_value_string(), override.value()
    word = f"{key}={text}"
    whole = isinstance(default, int) and not isinstance(default, bool)
    tags = set(getattr(value, "tags", ()))
    if tags - {"log"} or (tags and not isinstance(value, IntervalSweep)):
        raise ConfigError(f"{word}: the only tag is log, of an interval: tag(log,interval(1e-4,1e-2))")
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        return Dimension(key, text, _interval(word, value.start, value.end, "log" in tags, whole, default))
    if isinstance(value, RangeSweep):
        numbers, step = _numbers(word, value), abs(float(value.step))
        if not whole:
            steps = None if len(numbers) == 1 else step
            return Dimension(
                key, text, FloatDistribution(numbers[0], numbers[-1], step=steps), tuple(numbers)
            )
        if not all(number.is_integer() for number in [*numbers, step]):
            raise ConfigError(f"{word}: {key} is a whole number; leave the fractions out")
        counts = tuple(int(number) for number in numbers)
        return Dimension(key, text, IntDistribution(counts[0], counts[-1], step=int(step)), counts)
    texts = tuple(dict.fromkeys(_texts(override)))
    return Dimension(key, text, CategoricalDistribution(texts), texts)


def _same(text: str, value: object) -> bool:
    """Whether a choice's text stands for a config's value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text.lower() == str(value).lower()
    try:
        return float(text) == value
    except ValueError:
        return False


def _interval(
    word: str, low: float, high: float, log: bool, whole: bool, default: object
) -> BaseDistribution:
    key = word.partition("=")[0]
    if isinstance(default, bool) or not isinstance(default, int | float):
        raise ConfigError(f"{word}: {key} is no number; write its values as {key}=choice(…)")
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        raise ConfigError(f"{word}: the interval is empty; write the smaller end first, both finite")
    if log and low <= 0:
        raise ConfigError(f"{word}: a logarithmic interval begins above 0")
    if not whole:
        return FloatDistribution(low, high, log=log)
    if low != int(low) or high != int(high):
        raise ConfigError(f"{word}: {key} is a whole number; so must both ends be")
    return IntDistribution(int(low), int(high), log=log)


def _numbers(word: str, value: RangeSweep) -> list[float]:
    """The numbers of a range, the smallest first; its end, but for rounding, is none of them."""
    assert value.start is not None
    assert value.stop is not None
    start, stop, step = float(value.start), float(value.stop), float(value.step)
    if step == 0:
        raise ConfigError(f"{word}: a range's step is not 0")
    count = math.ceil((stop - start) / step - 1e-9)
    if count < 1:
        raise ConfigError(f"{word}: the range is empty; write range(from,up to but without,step)")
    if count > MAX_VALUES:
        raise ConfigError(f"{word}: more than {MAX_VALUES:,} values; take an interval or a larger step")
    return sorted(float(f"{start + index * step:.12g}") for index in range(count))


def _texts(override: Override) -> list[str]:
    """The choices as Hydra writes them."""
    try:
        return list(override.sweep_string_iterator())
    except HydraException as error:
        word = f"{override.key_or_group}={override.get_value_string()}"
        raise ConfigError(f"{word}: {str(error).splitlines()[0]}") from None
