"""The hard rules: which videos this user may be shown at all. They never relax.

Axis: K candidate rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from serving.catalogue import CatalogueFacts
from serving.exact import NO_ROWS, Mask, Rows
from serving.state.protocol import Id, Mark


class Rule(Enum):
    """Why a candidate was refused."""

    market = "market"  # not for this market, or none of its products can be bought there
    language = "language"
    hidden_video = "hidden_video"
    hidden_creator = "hidden_creator"
    hidden_merchant = "hidden_merchant"
    already_shown = "already_shown"  # in this session, lately, or seen in the last months


@dataclass(frozen=True, slots=True)
class Audience:
    """Who asks, in the codes of one bundle's catalogue.

    ``market`` None and ``language`` None forbid nothing.
    """

    market: str | None = None
    language: str | None = None
    shown: Rows = field(default_factory=lambda: NO_ROWS)
    hidden_videos: Rows = field(default_factory=lambda: NO_ROWS)
    hidden_creators: Rows = field(default_factory=lambda: NO_ROWS)
    hidden_merchants: Rows = field(default_factory=lambda: NO_ROWS)

    @property
    def excluded(self) -> Rows:
        """Rows that need not be retrieved, because a rule names them one by one."""
        return np.concatenate([self.shown, self.hidden_videos])


def hidden_codes(facts: CatalogueFacts, marks: dict[Mark, list[Id]]) -> tuple[Rows, Rows]:
    """Codes of the creators and of the merchants that a user has hidden."""
    creators = facts.creator.codes_of(marks.get(Mark.hidden_creator, []))
    merchants = facts.products.merchant.codes_of(marks.get(Mark.hidden_merchant, []))
    return creators, merchants


def refusals(rows_K: Rows, facts: CatalogueFacts, audience: Audience) -> dict[Rule, Mask]:
    """Where each rule fires, bool[K]; the rules that fire nowhere are left out."""
    fired = {
        Rule.market: ~facts.eligible(audience.market)[rows_K],
        Rule.already_shown: np.isin(rows_K, audience.shown),
    }
    if audience.language is not None:
        code_K = facts.language.code[rows_K]
        fired[Rule.language] = (code_K != 0) & (code_K != facts.language.code_of(audience.language))
    if len(audience.hidden_videos):
        fired[Rule.hidden_video] = np.isin(rows_K, audience.hidden_videos)
    if len(audience.hidden_creators):
        fired[Rule.hidden_creator] = np.isin(facts.creator.code[rows_K], audience.hidden_creators)
    if len(audience.hidden_merchants):
        fired[Rule.hidden_merchant] = _sells_for(rows_K, facts, audience.hidden_merchants)
    return {rule: mask for rule, mask in fired.items() if mask.any()}


def admitted(rows_K: Rows, fired: dict[Rule, Mask]) -> Mask:
    """bool[K]: the candidates that no rule refuses."""
    allowed = np.ones(len(rows_K), bool)
    for mask in fired.values():
        allowed &= ~mask
    return allowed


def names_of(fired: dict[Rule, Mask], place: int) -> Sequence[str]:
    """The rules that refuse one candidate."""
    return [rule.value for rule, mask in fired.items() if mask[place]]


def _sells_for(rows_K: Rows, facts: CatalogueFacts, merchants: Rows) -> Mask:
    tags, merchant = facts.product_rows, facts.products.merchant.code
    return np.array([bool(np.isin(merchant[tags.of(row)], merchants).any()) for row in rows_K], bool)
