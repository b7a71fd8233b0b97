"""``fail_under``: conditions on metrics that a CI job can be stopped by."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data.errors import ConfigError
from evaluation.bootstrap import Estimate

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """``metric`` ``comparison`` ``bound``, for instance ``ndcg@20 >= 0.1``."""

    metric: str
    comparison: str
    bound: float

    def holds(self, value: float) -> bool:
        """Whether ``value`` satisfies the condition; NaN never does."""
        return OPERATORS[self.comparison](value, self.bound)

    def __str__(self) -> str:
        return f"{self.metric}{self.comparison}{self.bound:g}"


def parse_conditions(text: str) -> list[Condition]:
    """``'ndcg@20>=0.1, ne/click<1'`` → conditions. Raises ValueError showing the form."""
    conditions = []
    for part in filter(None, (word.strip() for word in text.split(","))):
        match = re.fullmatch(r"([^\s<>=]+)\s*(>=|<=|>|<)\s*([-+.\deE]+)", part)
        try:
            bound = float(match[3]) if match else None
        except ValueError:
            bound = None
        if match is None or bound is None:
            raise ValueError(f"fail_under={part!r} is not of the form ndcg@20>=0.1")
        conditions.append(Condition(match[1], match[2], bound))
    return conditions


def failures(conditions: list[Condition], metrics: Mapping[str, Estimate]) -> list[str]:
    """One line per condition that does not hold; an unmeasured metric is the user's mistake."""
    lines = []
    for condition in conditions:
        if condition.metric not in metrics:
            have = ", ".join(list(metrics)[:8])
            raise ConfigError(f"fail_under: no metric {condition.metric!r} in this report; it has {have}, …")
        value = metrics[condition.metric].value
        if not condition.holds(value):
            lines.append(f"{condition} does not hold: {condition.metric} is {value:.4f}")
    return lines
