"""The arguments under ``off_policy.`` of ``shopreel evaluate``; see configs/evaluate.yaml."""

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Unit(Enum):
    """What is resampled for intervals: what behaves independently of the next."""

    user = "user"
    request = "request"
    row = "row"


@dataclass(kw_only=True, slots=True)
class OffPolicyConfig:
    """How to read the log and when to refuse."""

    reward: str
    target: str | None
    logging_policy: str | None
    target_policy: str | None
    where: Any
    unit: Unit
    min_effective_rows: float
    min_effective_rewards: float
    max_unsupported: float

    def __post_init__(self) -> None:
        if self.target_policy is not None and self.logging_policy is None:
            raise ValueError(
                "off_policy.target_policy needs off_policy.logging_policy, the one whose rows to use"
            )
        if self.target_policy is not None and self.target is not None:
            raise ValueError("give off_policy.target or off_policy.target_policy, not both")
        if self.min_effective_rows < 0 or self.min_effective_rewards < 0:
            raise ValueError("off_policy.min_effective_rows and min_effective_rewards must not be negative")
        if not 0 <= self.max_unsupported <= 1:
            raise ValueError("off_policy.max_unsupported is a share, from 0 to 1")
        if self.where is not None and not isinstance(self.where, dict):
            raise ValueError("off_policy.where must be {column: value}, such as {surface: men}")

    def rows(self, policy: str | None) -> dict[str, str]:
        """The filter of the rows of ``policy``."""
        found = {str(name): str(value) for name, value in (self.where or {}).items()}
        return found if policy is None else {**found, "policy": policy}
