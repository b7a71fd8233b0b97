"""From scored candidates to a page: hard rules → reserved slots → slate → exploration → page.

Pure: nothing here knows a store, a model or a clock; randomness is passed in. The server and ``replay``
both build pages here.

Axis: K candidates, best first.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from serving.catalogue import CatalogueFacts
from serving.exact import Rows, Vectors
from serving.exploration import ExplorationPreferences, draw, split_pool
from serving.rules import Audience, admitted, names_of, refusals
from serving.slate import Deck, PageCount, Relaxation, SlatePreferences, traits_of


@dataclass(frozen=True, slots=True)
class Candidates:
    """K scored videos, distinct, best first. ``score`` orders them; ``retrieval_score`` found them."""

    row: Rows
    score: Vectors
    source: tuple[str, ...]
    retrieval_score: Vectors | None = None
    probabilities: Mapping[str, Vectors] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: Rows) -> "Candidates":
        """The chosen candidates, in the order chosen."""
        return Candidates(
            self.row[which],
            self.score[which],
            tuple(self.source[place] for place in which),
            None if self.retrieval_score is None else self.retrieval_score[which],
            {task: values[which] for task, values in self.probabilities.items()},
        )


@dataclass(frozen=True, slots=True)
class Slot:
    """One place on the page. ``rank`` (from 0) is the video's place by score among the admitted ones.

    ``rules`` names the preferences that gave way for it, and what put it here if not its score.
    """

    row: int
    score: float
    source: str
    propensity: float
    rank: int | None
    retrieval_score: float | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    campaign_id: str | None = None
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Slots from the top. ``refused`` counts candidates by the hard rule that refused them.

    ``relaxed`` names the preferences that gave way; ``admitted`` says how many candidates there were.
    """

    slots: list[Slot]
    refused: Mapping[str, int]
    relaxed: list[str]
    admitted: int


def build_page(
    candidates: Candidates,
    size: int,
    facts: CatalogueFacts,
    audience: Audience,
    slate: SlatePreferences,
    exploration: ExplorationPreferences,
    random: np.random.Generator,
    reserved: Mapping[int, Slot] | None = None,
) -> Page:
    """Build a page of ``size`` videos, shorter only when admitted candidates run out.

    ``reserved`` slots (campaigns) stand at their positions and count towards caps and shares.
    """
    fired = refusals(candidates.row, facts, audience)
    allowed = admitted(candidates.row, fired)
    taken_rows = np.array([slot.row for slot in (reserved or {}).values()], np.int64)
    usable = candidates.take(np.flatnonzero(allowed & ~np.isin(candidates.row, taken_rows)))
    refused: Counter[str] = Counter()
    for refusal in np.flatnonzero(~allowed).tolist():
        refused.update(names_of(fired, refusal))

    count = PageCount(slate, size)
    fixed = {place: slot for place, slot in (reserved or {}).items() if place < size}
    for slot in fixed.values():
        count.add(traits_of(slot.row, facts))
    deck = Deck(usable.row, facts)
    wanted = [place for place in exploration.positions if place < size and place not in fixed]
    organic = [
        _organic(usable, index, relaxed)
        for index, relaxed in deck.fill(size - len(fixed) - len(wanted), count)
    ]
    pools: list[list[int]] = []
    while wanted:
        pools = _pools(deck, count, exploration, len(wanted))
        if all(pools):
            break
        # what cannot explore is filled by score, before anything is drawn: nothing then depends on a draw
        wanted.pop()
        organic += [_organic(usable, index, relaxed) for index, relaxed in deck.fill(1, count)]
    for place, pool in zip(wanted, pools, strict=False):
        chosen = draw(pool, [float(usable.score[index]) for index in pool], exploration, random)
        fixed[place] = _slot(usable, chosen.candidate, "exploration", chosen.propensity, ("exploration",))

    slots = _merge(organic, fixed, size)
    relaxed_kinds = {kind for slot in slots for kind in slot.rules if kind in _RELAXATIONS}
    return Page(slots, refused, [kind for kind in _RELAXATIONS if kind in relaxed_kinds], len(usable))


_RELAXATIONS = tuple(kind.value for kind in Relaxation)


def _pools(deck: Deck, count: PageCount, exploration: ExplorationPreferences, slots: int) -> list[list[int]]:
    """One sub-pool per exploration slot: any draw from each keeps every preference."""
    missing = max(0, count.least_shopping - count.shopping)
    room = count.most_shopping - count.shopping
    wants = [True if slot < missing else None if room >= slots else False for slot in range(slots)]
    free = []
    for index in deck.left[: exploration.pool]:
        traits = deck.traits(index)
        caps_broken = count.breaks(traits) - {Relaxation.min_shopping_share, Relaxation.max_shopping_share}
        if not caps_broken:
            free.append((index, traits.shopping, count.tight_keys(traits, slots)))
    return split_pool(free, wants)


def _organic(candidates: Candidates, index: int, relaxed: tuple[Relaxation, ...]) -> Slot:
    return _slot(candidates, index, candidates.source[index], 1.0, tuple(kind.value for kind in relaxed))


def _slot(candidates: Candidates, index: int, source: str, propensity: float, rules: tuple[str, ...]) -> Slot:
    found_by = candidates.retrieval_score
    return Slot(
        row=int(candidates.row[index]),
        score=float(candidates.score[index]),
        source=source,
        propensity=propensity,
        rank=index,
        retrieval_score=None if found_by is None else float(found_by[index]),
        probabilities={task: float(values[index]) for task, values in candidates.probabilities.items()},
        rules=rules,
    )


def _merge(organic: list[Slot], fixed: Mapping[int, Slot], size: int) -> list[Slot]:
    """Fixed slots at their places, the others around them; a short page closes its gaps."""
    rest = iter(organic)
    slots = (fixed.get(place) or next(rest, None) for place in range(size))
    return [slot for slot in slots if slot is not None]
