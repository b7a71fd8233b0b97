"""Which of the admitted candidates stand on a page, in which order: caps, shopping share, lookahead.

A page is filled from the top. Every slot takes the best candidate left among the next ``lookahead`` that
keeps all preferences. Where none does, preferences give way one after the other, always in the order of
:class:`Relaxation`, until one does: a page never runs short while candidates are left.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import ceil, floor
from typing import NamedTuple

from serving.catalogue import CatalogueFacts
from serving.exact import Rows


class Relaxation(Enum):
    """What gives way when a slot would stay empty, first to last; each keeps those before it relaxed."""

    lookahead = "lookahead"
    min_shopping_share = "min_shopping_share"
    brand_cap = "brand_cap"
    merchant_cap = "merchant_cap"
    product_cap = "product_cap"
    creator_cap = "creator_cap"
    max_shopping_share = "max_shopping_share"

    # looked up thousands of times a page; Enum's own hash is not written in C
    __hash__ = object.__hash__


_ORDER = tuple(Relaxation)
_CAPS = (Relaxation.creator_cap, Relaxation.merchant_cap, Relaxation.brand_cap, Relaxation.product_cap)


@dataclass(frozen=True, slots=True)
class SlatePreferences:
    """How many videos of one kind a page may hold (0: any number), and the share of shopping videos.

    The shares count the whole page: at least ``ceil(min · page)`` and at most ``floor(max · page)``.
    ``diversity`` in [0, 1) puts unlike videos first (:mod:`serving.diversity`), before all other preferences.
    """

    creator_cap: int
    merchant_cap: int
    brand_cap: int
    product_cap: int
    min_shopping_share: float
    max_shopping_share: float
    lookahead: int
    diversity: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.diversity < 1:
            raise ValueError(f"diversity {self.diversity} must be in [0, 1)")
        if not 0 <= self.min_shopping_share <= self.max_shopping_share <= 1:
            raise ValueError("needs 0 <= min_shopping_share <= max_shopping_share <= 1")
        if min(self.creator_cap, self.merchant_cap, self.brand_cap, self.product_cap) < 0:
            raise ValueError("a cap is a number of videos per page, or 0 for none")
        if self.lookahead < 1:
            raise ValueError(f"lookahead {self.lookahead} must be at least 1")

    def caps(self) -> dict[Relaxation, int]:
        """The cap of each kind."""
        values = (self.creator_cap, self.merchant_cap, self.brand_cap, self.product_cap)
        return dict(zip(_CAPS, values, strict=True))


#: Pages in order of score alone.
NO_PREFERENCES = SlatePreferences(0, 0, 0, 0, 0.0, 1.0, 1)


class Traits(NamedTuple):
    """What caps and shares see of a video: codes of its creator, merchants, brands and products."""

    shopping: bool
    keys: Mapping[Relaxation, frozenset[int]]


def traits_of(row: int, facts: CatalogueFacts) -> Traits:
    """Traits of a catalogue row; unknown creators, merchants and brands have no key and no cap."""
    products = facts.product_rows.of(row)
    known = products[products > 0]
    keys = {
        Relaxation.creator_cap: frozenset((int(facts.creator.code[row]),)) - {0},
        Relaxation.merchant_cap: frozenset(facts.products.merchant.code[known].tolist()) - {0},
        Relaxation.brand_cap: frozenset(facts.products.brand.code[known].tolist()) - {0},
        Relaxation.product_cap: frozenset(known.tolist()),
    }
    return Traits(len(products) > 0, keys)


@dataclass(slots=True)
class PageCount:
    """What stands on a page so far, and whether one more video would break a preference."""

    preferences: SlatePreferences
    size: int
    used: dict[Relaxation, Counter[int]] = field(default_factory=lambda: {cap: Counter() for cap in _CAPS})
    shopping: int = 0
    filled: int = 0
    #: The most shopping videos of a full page, and the fewest; on a page too small for both shares, the most.
    most_shopping: int = field(init=False)
    least_shopping: int = field(init=False)
    _limits: list[tuple[Relaxation, int]] = field(init=False)

    def __post_init__(self) -> None:
        shares = self.preferences
        self.most_shopping = floor(shares.max_shopping_share * self.size + 1e-9)
        self.least_shopping = min(ceil(shares.min_shopping_share * self.size - 1e-9), self.most_shopping)
        self._limits = [(cap, limit) for cap, limit in shares.caps().items() if limit]

    def add(self, traits: Traits) -> None:
        """Count a video in."""
        self.filled += 1
        self.shopping += traits.shopping
        for cap, keys in traits.keys.items():
            self.used[cap].update(keys)

    def breaks(self, traits: Traits) -> set[Relaxation]:
        """The preferences that this video as the next one would break."""
        broken = set()
        for cap, limit in self._limits:
            used = self.used[cap].get
            for key in traits.keys[cap]:
                if used(key, 0) >= limit:
                    broken.add(cap)
                    break
        if traits.shopping:
            if self.shopping >= self.most_shopping:
                broken.add(Relaxation.max_shopping_share)
        elif self.size - self.filled <= self.least_shopping - self.shopping:
            broken.add(Relaxation.min_shopping_share)
        return broken

    def tight_keys(self, traits: Traits, more: int) -> list[tuple[Relaxation, int]]:
        """The keys of a video of which ``more`` further videos together could break a cap."""
        caps = self.preferences.caps()
        return [
            (cap, key)
            for cap, keys in traits.keys.items()
            for key in keys
            if caps[cap] and self.used[cap][key] + more > caps[cap]
        ]


class Placed(NamedTuple):
    """A candidate, by its place among the candidates, and the preferences that gave way for it."""

    candidate: int
    relaxed: tuple[Relaxation, ...]


class Deck:
    """The candidates of one page, best first, and their traits as they are looked at."""

    def __init__(self, rows_K: Rows, facts: CatalogueFacts, without: Collection[int] = ()) -> None:
        """``without`` are rows that are taken already."""
        self._rows_K = rows_K
        self._facts = facts
        self._traits: dict[int, Traits] = {}
        self.left = [index for index, row in enumerate(rows_K.tolist()) if row not in without]

    def traits(self, index: int) -> Traits:
        """Traits of the candidate at ``index``."""
        found = self._traits.get(index)
        if found is None:
            found = self._traits[index] = traits_of(int(self._rows_K[index]), self._facts)
        return found

    def fill(self, slots: int, count: PageCount) -> list[Placed]:
        """Take up to ``slots`` candidates off the deck; fewer only when it runs out.

        ``count`` holds what is on the page already, and is added to.
        """
        placed: list[Placed] = []
        while self.left and len(placed) < slots:
            choice = _choose(self, count)
            self.take(choice.candidate, count)
            placed.append(choice)
        return placed

    def take(self, index: int, count: PageCount) -> None:
        """Take one candidate off the deck and count it in."""
        self.left.remove(index)
        count.add(self.traits(index))


def _choose(deck: Deck, count: PageCount) -> Placed:
    """The best candidate at the first stage of relaxation that has any."""
    best: tuple[int, int, set[Relaxation]] | None = None
    for place, index in enumerate(deck.left):
        broken = count.breaks(deck.traits(index))
        if place >= count.preferences.lookahead:
            broken.add(Relaxation.lookahead)
        stage = max((_ORDER.index(kind) + 1 for kind in broken), default=0)
        if best is None or stage < best[0]:
            best = (stage, index, broken)
        if best[0] <= (1 if place + 1 >= count.preferences.lookahead else 0):
            break
    assert best is not None
    return Placed(best[1], tuple(kind for kind in _ORDER if kind in best[2]))
