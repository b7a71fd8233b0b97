"""From scored candidates to a page: hard rules → campaigns → slate → exploration → page.

Pure: nothing here knows a store, a model or a clock; randomness is passed in. The server and ``replay``
both build pages here.

Axis: K candidates, best first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from serving.catalogue import CatalogueFacts
from serving.exact import NO_ROWS, Mask, Rows, Vectors
from serving.exploration import ExplorationPreferences, draw, split_pool
from serving.rules import Audience, admitted, names_of, refusals
from serving.slate import Deck, PageCount, Relaxation, SlatePreferences, traits_of

#: The source of candidates that campaigns brought in, and of the slots that they have.
CAMPAIGN = "campaign"
#: Why a newcomer has an exploration slot: it was promised one.
FIRST_SHOWING = "first_showing"


@dataclass(frozen=True, slots=True)
class Candidates:
    """K scored videos, distinct, best first: by ``score``, or as diversity put them.

    ``retrieval_score`` found them.

    A video whose source is ``CAMPAIGN`` is there for its campaign alone, and has no other place on a page.
    """

    row: Rows
    score: Vectors
    source: tuple[str, ...]
    retrieval_score: Vectors | None = None
    probabilities: Mapping[str, Vectors] = field(default_factory=dict)
    watch_ms: Vectors | None = None

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
            None if self.watch_ms is None else self.watch_ms[which],
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """A campaign that may have one slot, with any of its videos: ``choices`` are places among the
    candidates, best first.
    """

    campaign_id: str
    label: str
    choices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a campaign's slot took from the page: ``row`` is the video that would have stood on it instead.

    ``watch_ms`` and ``orders`` are that video's prediction less the campaign's own; negative where the
    campaign's is better, None without the head. ``row`` is None, and the cost 0, where the campaign's
    video would have stood there anyway or nothing else could have.
    """

    row: int | None
    watch_ms: float | None
    orders: float | None


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
    watch_ms: float | None = None
    campaign_id: str | None = None
    label: str | None = None
    cost: Cost | None = None
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
    claims: Sequence[Claim] = (),
    campaign_positions: Sequence[int] = (),
    promised: Rows = NO_ROWS,
) -> Page:
    """Build a page of ``size`` videos, shorter only when admitted candidates run out.

    ``claims`` get the ``campaign_positions`` in their order, one slot each, where one of their videos keeps
    every hard rule and every preference: for a campaign nothing gives way. While any of the ``promised``
    rows may stand on the page, its first exploration slot is drawn from them alone.
    """
    fired = refusals(candidates.row, facts, audience)
    allowed = admitted(candidates.row, fired)
    organic_only = np.array([source != CAMPAIGN for source in candidates.source], bool)
    refused: Counter[str] = Counter()
    for refusal in np.flatnonzero(~allowed & organic_only).tolist():
        refused.update(names_of(fired, refusal))
    count = PageCount(slate, size)
    paid = _place_claims(candidates, allowed, claims, campaign_positions, count, facts)
    usable = candidates.take(np.flatnonzero(allowed & organic_only))
    ranks = {int(row): rank for rank, row in enumerate(usable.row)}
    fixed = {
        place: _slot(
            candidates, index, CAMPAIGN, 1.0, ("campaign",), ranks.get(int(candidates.row[index])), claim
        )
        for place, (claim, index) in paid.items()
    }
    taken = {slot.row for slot in fixed.values()}
    deck = Deck(usable.row, facts, without=taken)
    owed = np.isin(usable.row, promised)
    wanted = [place for place in exploration.positions if place < size and place not in fixed]
    organic = [
        _organic(usable, index, relaxed)
        for index, relaxed in deck.fill(size - len(fixed) - len(wanted), count)
    ]
    if fixed:
        undisturbed = Deck(usable.row, facts).fill(size - len(wanted), PageCount(slate, size))
        standing = taken | {slot.row for slot in organic}
        displaced = iter([at for at, _ in undisturbed if int(usable.row[at]) not in standing])
        would_have = {int(usable.row[at]) for at, _ in undisturbed}
        for place in sorted(fixed):
            slot = fixed[place]
            instead = None if slot.row in would_have else next(displaced, None)
            fixed[place] = replace(slot, cost=_cost(slot, usable, instead))
    pools: list[list[int]] = []
    while wanted:
        pools = _pools(deck, count, exploration, len(wanted), owed)
        if all(pools):
            break
        # what cannot explore is filled by score, before anything is drawn: nothing then depends on a draw
        wanted.pop()
        organic += [_organic(usable, index, relaxed) for index, relaxed in deck.fill(1, count)]
    for place, pool in zip(wanted, pools, strict=False):
        chosen = draw(pool, [float(usable.score[index]) for index in pool], exploration, random)
        index = chosen.candidate
        why = ("exploration", FIRST_SHOWING) if owed[index] else ("exploration",)
        fixed[place] = _slot(usable, index, "exploration", chosen.propensity, why, index)

    slots = _merge(organic, fixed, size)
    relaxed_kinds = {kind for slot in slots for kind in slot.rules if kind in _RELAXATIONS}
    return Page(slots, refused, [kind for kind in _RELAXATIONS if kind in relaxed_kinds], len(usable))


_RELAXATIONS = tuple(kind.value for kind in Relaxation)


def _pools(
    deck: Deck, count: PageCount, exploration: ExplorationPreferences, slots: int, owed: Mask
) -> list[list[int]]:
    """One sub-pool per exploration slot: any draw from each keeps every preference.

    The first is of those ``owed`` alone, where any of them may have it; what they have in common with
    others keeps these out of the other sub-pools.
    """
    missing = max(0, count.least_shopping - count.shopping)
    room = count.most_shopping - count.shopping
    wants = [True if slot < missing else None if room >= slots else False for slot in range(slots)]
    newcomers: list[tuple[int, bool, list[tuple[Relaxation, int]]]] = []
    others = newcomers.copy()
    for place, index in enumerate(deck.left):
        if place >= exploration.pool and not owed[index]:
            continue
        traits = deck.traits(index)
        caps_broken = count.breaks(traits) - {Relaxation.min_shopping_share, Relaxation.max_shopping_share}
        if not caps_broken:
            candidate = index, traits.shopping, count.tight_keys(traits, slots)
            fits = owed[index] and wants[0] in (None, traits.shopping)
            (newcomers if fits else others).append(candidate)
    if not newcomers:
        return split_pool(others, wants)
    keys = {key for _, _, tight in newcomers for key in tight}
    apart = [candidate for candidate in others if keys.isdisjoint(candidate[2])]
    return [[index for index, _, _ in newcomers], *split_pool(apart, wants[1:])]


def _place_claims(
    candidates: Candidates, allowed: Mask, claims: Sequence[Claim], positions: Sequence[int],
    count: PageCount, facts: CatalogueFacts,
) -> dict[int, tuple[Claim, int]]:  # fmt: skip
    """Claims at their positions with the candidate that each shows; they are counted in."""
    paid: dict[int, tuple[Claim, int]] = {}
    open_positions = [place for place in positions if place < count.size]
    shown: set[int] = set()
    for claim in claims:
        if not open_positions:
            break
        for index in claim.choices:
            row = int(candidates.row[index])
            if not allowed[index] or row in shown:
                continue
            traits = traits_of(row, facts)
            if not count.breaks(traits):
                count.add(traits)
                shown.add(row)
                paid[open_positions.pop(0)] = claim, index
                break
    return paid


def _cost(slot: Slot, usable: Candidates, instead: int | None) -> Cost:
    """The prediction of the candidate at ``instead`` less the slot's own."""
    if instead is None:
        has_orders = "purchase" in usable.probabilities
        return Cost(None, None if usable.watch_ms is None else 0.0, 0.0 if has_orders else None)
    watch_ms = orders = None
    if usable.watch_ms is not None and slot.watch_ms is not None:
        watch_ms = float(usable.watch_ms[instead]) - slot.watch_ms
    if "purchase" in usable.probabilities:
        orders = float(usable.probabilities["purchase"][instead]) - slot.probabilities["purchase"]
    return Cost(int(usable.row[instead]), watch_ms, orders)


def _organic(candidates: Candidates, index: int, relaxed: tuple[Relaxation, ...]) -> Slot:
    rules = tuple(kind.value for kind in relaxed)
    return _slot(candidates, index, candidates.source[index], 1.0, rules, index)


def _slot(
    candidates: Candidates, index: int, source: str, propensity: float, rules: tuple[str, ...],
    rank: int | None, claim: Claim | None = None,
) -> Slot:  # fmt: skip
    found_by, watch_ms = candidates.retrieval_score, candidates.watch_ms
    return Slot(
        row=int(candidates.row[index]),
        score=float(candidates.score[index]),
        source=source,
        propensity=propensity,
        rank=rank,
        retrieval_score=None if found_by is None else float(found_by[index]),
        probabilities={task: float(values[index]) for task, values in candidates.probabilities.items()},
        watch_ms=None if watch_ms is None else float(watch_ms[index]),
        campaign_id=None if claim is None else claim.campaign_id,
        label=None if claim is None else claim.label,
        rules=rules,
    )


def _merge(organic: list[Slot], fixed: Mapping[int, Slot], size: int) -> list[Slot]:
    """Fixed slots at their places, the others around them; a short page closes its gaps."""
    rest = iter(organic)
    slots = (fixed.get(place) or next(rest, None) for place in range(size))
    return [slot for slot in slots if slot is not None]
