"""Building a page: hard rules always hold, preferences hold or say so, propensities are exact."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.catalogue import CatalogueFacts
from serving.exploration import NO_EXPLORATION, ExplorationPreferences, distribution, split_pool
from serving.feed import CAMPAIGN, Candidates, Claim, Cost, Page, build_page
from serving.rules import Audience
from serving.slate import Relaxation, SlatePreferences, traits_of
from tests.serving.fake_world import PLAIN, products_table, videos_table

COUNT = 60
FACTS = CatalogueFacts.of(videos_table(range(1, COUNT + 1), markets=True), products_table(COUNT))
ANYBODY = Audience()


def candidates(rows: list[int]) -> Candidates:
    """Best first: the first has the highest score."""
    scores = -np.arange(len(rows), dtype=np.float32)
    return Candidates(np.array(rows, np.int64), scores, ("two_tower",) * len(rows), scores)


def page_of(
    rows: list[int],
    size: int,
    slate: SlatePreferences = PLAIN,
    exploration: ExplorationPreferences = NO_EXPLORATION,
    audience: Audience = ANYBODY,
    seed: int = 0,
    claims: Sequence[Claim] = (),
    positions: Sequence[int] = (),
) -> Page:
    dice = np.random.default_rng(seed)
    asked = candidates(rows)
    return build_page(asked, size, FACTS, audience, slate, exploration, dice, claims, positions)


def rows_of(page: Page) -> list[int]:
    return [slot.row for slot in page.slots]


ROWS = st.lists(st.integers(1, COUNT), unique=True, max_size=COUNT)
AUDIENCES = st.builds(
    Audience,
    market=st.sampled_from([None, "US", "DE"]),
    language=st.sampled_from([None, "en", "de", "fr"]),
    shown=ROWS.map(lambda rows: np.array(rows[:20], np.int64)),
    hidden_videos=ROWS.map(lambda rows: np.array(rows[:5], np.int64)),
    hidden_creators=st.lists(st.integers(1, 7), max_size=2).map(lambda codes: np.array(codes, np.int64)),
    hidden_merchants=st.lists(st.integers(1, 3), max_size=2).map(lambda codes: np.array(codes, np.int64)),
)
SLATES = st.builds(
    SlatePreferences,
    creator_cap=st.integers(0, 3),
    merchant_cap=st.integers(0, 3),
    brand_cap=st.integers(0, 3),
    product_cap=st.integers(0, 2),
    min_shopping_share=st.sampled_from([0.0, 0.2, 0.5]),
    max_shopping_share=st.sampled_from([0.5, 0.8, 1.0]),
    lookahead=st.integers(1, 30),
)
EXPLORATIONS = st.builds(
    ExplorationPreferences,
    positions=st.sampled_from([(), (0,), (3,), (1, 4), (2, 5, 7)]),
    pool=st.integers(1, 40),
    uniform_share=st.sampled_from([0.1, 1.0]),
    temperature=st.just(1.0),
)


def forbidden(row: int, audience: Audience) -> bool:
    """The hard rules, written down a second time and row by row."""
    language = "en" if row % 5 else "de"
    markets = ["US"] if row % 3 == 0 else None
    return (
        (row % 2 == 0 and row % 10 == 0)  # its only product is out of stock
        or (audience.market is not None and markets is not None and audience.market not in markets)
        or (audience.language is not None and language != audience.language)
        or row in audience.shown
        or row in audience.hidden_videos
        or row % 7 + 1 in audience.hidden_creators
        or (row % 2 == 0 and (row % 6) // 2 + 1 in audience.hidden_merchants)
    )


CLAIMS = st.lists(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=4), max_size=3)


@settings(max_examples=100)
@given(st.permutations(range(1, COUNT + 1)), st.integers(1, 6), SLATES, AUDIENCES, CLAIMS)
def test_nothing_gives_way_for_campaigns_whatever_they_claim(
    rows: list[int], size: int, slate: SlatePreferences, audience: Audience, claimed: list[list[int]]
) -> None:
    claims = [Claim(f"c{number}", "Ad", tuple(choices)) for number, choices in enumerate(claimed)]
    page = page_of(rows, size, slate, audience=audience, claims=claims, positions=(0, 1, 2))
    # laid out one by one, without anything else on the page: the first video that keeps all is the campaign's
    paid: list[tuple[str, int]] = []
    for one in claims:
        for row in (rows[at] for at in one.choices):
            if len(paid) < min(3, size) and _keeps_all(slate, size, [r for _, r in paid], row, audience):
                paid.append((one.campaign_id, row))
                break
    shown = [(slot.campaign_id, slot.row) for slot in page.slots if slot.campaign_id is not None]
    assert shown == paid


def _keeps_all(slate: SlatePreferences, size: int, others: list[int], row: int, audience: Audience) -> bool:
    """Whether ``row`` may join ``others`` on a page: hard rules, every cap and share, written down again."""
    if row in others or forbidden(row, audience):
        return False
    page = [*others, row]
    goods = [video for video in page if video % 2 == 0]
    kinds = [
        (slate.creator_cap, [video % 7 for video in page if row % 7 == video % 7]),
        (slate.merchant_cap, [video for video in goods if row % 2 == 0 and row % 6 == video % 6]),
        (slate.brand_cap, [video for video in goods if row % 2 == 0 and row % 10 == video % 10]),
    ]
    most = int(slate.max_shopping_share * size + 1e-9)
    least = min(-int(-(slate.min_shopping_share * size - 1e-9) // 1), most)
    return (
        all(len(same) <= cap for cap, same in kinds if cap)
        and (row % 2 == 1 or len(goods) <= most)
        and (row % 2 == 0 or size - len(page) >= least - len(goods))
    )


@settings(max_examples=150)
@given(ROWS, st.integers(1, 20), SLATES, EXPLORATIONS, AUDIENCES, st.integers(0, 9), CLAIMS)
def test_every_page_keeps_every_promise(
    rows: list[int],
    size: int,
    slate: SlatePreferences,
    exploration: ExplorationPreferences,
    audience: Audience,
    seed: int,
    claimed: list[list[int]],
) -> None:
    claims = [
        Claim(f"c{number}", "Ad", tuple(at for at in choices if at < len(rows)))
        for number, choices in enumerate(claimed)
    ]
    page = page_of(rows, size, slate, exploration, audience, seed, claims, (0, 6))
    shown = rows_of(page)
    allowed = [row for row in rows if not forbidden(row, audience)]
    # hard rules, always; and a page is short only when nothing is left
    assert len(set(shown)) == len(shown)
    assert set(shown) <= set(allowed)
    assert len(shown) == min(size, len(allowed))
    assert page.admitted == len(allowed)
    assert bool(page.refused) == (len(allowed) < len(rows))
    # preferences, or a word about which gave way
    relaxed = set(page.relaxed)
    assert relaxed == {rule for slot in page.slots for rule in slot.rules} - {"exploration", "campaign"}
    used: dict[Relaxation, Counter[int]] = {kind: Counter() for kind in slate.caps()}
    shopping = 0
    for row in shown:
        traits = traits_of(row, FACTS)
        shopping += traits.shopping
        for kind, keys in traits.keys.items():
            used[kind].update(keys)
    for kind, cap in slate.caps().items():
        if cap and max(used[kind].values(), default=0) > cap:
            assert kind.value in relaxed
    most = np.floor(slate.max_shopping_share * size + 1e-9)
    if shopping > most:
        assert Relaxation.max_shopping_share.value in relaxed
    if len(shown) == size and shopping < min(most, np.ceil(slate.min_shopping_share * size - 1e-9)):
        assert Relaxation.min_shopping_share.value in relaxed
    # campaigns: each once at most, with one of its own videos, and nothing gave way for it
    paid = [slot for slot in page.slots if slot.campaign_id is not None]
    assert len({slot.campaign_id for slot in paid}) == len(paid) <= 2
    for slot in paid:
        choices = next(claim.choices for claim in claims if claim.campaign_id == slot.campaign_id)
        assert slot.row in [rows[at] for at in choices]
        assert slot.rules == ("campaign",)
        assert slot.cost is not None
    # propensities: 1 for what was placed by score, a probability for what was drawn
    for position, slot in enumerate(page.slots):
        assert (slot.source == "exploration") == ("exploration" in slot.rules)
        assert slot.propensity == 1.0 or slot.source == "exploration"
        assert (slot.campaign_id is not None) == (slot.source == CAMPAIGN) == ("campaign" in slot.rules)
        assert 0.0 < slot.propensity <= 1.0
        if slot.source == "exploration" and len(shown) == size:
            assert position in exploration.positions


#: The documented order in which preferences give way.
ORDER = [
    "lookahead", "min_shopping_share", "brand_cap", "merchant_cap", "product_cap", "creator_cap",
    "max_shopping_share",
]  # fmt: skip


@settings(max_examples=100)
@given(ROWS, st.integers(1, 20), SLATES)
def test_preferences_give_way_in_the_documented_order_and_no_earlier_than_they_must(
    rows: list[int], size: int, slate: SlatePreferences
) -> None:
    """Slot by slot: whatever gave way, nothing left over could have stood there with less given up."""
    assert [kind.value for kind in Relaxation] == ORDER
    allowed = [row for row in rows if not forbidden(row, ANYBODY)]
    page = page_of(rows, size, slate)
    above: list[int] = []
    for slot in page.slots:
        left = [row for row in allowed if row not in above]
        stages = {row: stage_of(row, place, above, size, slate) for place, row in enumerate(left)}
        assert stages[slot.row] == min(stages.values())
        assert slot.row == next(row for row in left if stages[row] == stages[slot.row])  # the best of those
        assert max((ORDER.index(kind) + 1 for kind in slot.rules), default=0) == stages[slot.row]
        above.append(slot.row)
    assert set(page.relaxed) == {kind for slot in page.slots for kind in slot.rules}


def stage_of(row: int, place: int, above: list[int], size: int, slate: SlatePreferences) -> int:
    """How far preferences must give way for ``row`` to stand below ``above``: 0 … 7."""
    stage = 1 if place >= slate.lookahead else 0
    sells = [other for other in above if other % 2 == 0]
    most = int(np.floor(slate.max_shopping_share * size + 1e-9))
    least = min(most, int(np.ceil(slate.min_shopping_share * size - 1e-9)))
    if row % 2 and size - len(above) <= least - len(sells):
        stage = 2
    if row % 2 == 0:
        if slate.brand_cap and sum(other % 10 == row % 10 for other in sells) >= slate.brand_cap:
            stage = 3
        if slate.merchant_cap and sum(other % 6 == row % 6 for other in sells) >= slate.merchant_cap:
            stage = 4
    if slate.creator_cap and sum(other % 7 == row % 7 for other in above) >= slate.creator_cap:
        stage = 6
    if row % 2 == 0 and len(sells) >= most:
        stage = 7
    return stage


def test_without_preferences_a_page_is_the_best_in_order() -> None:
    rows = [7, 3, 9, 1, 5, 11]
    page = page_of(rows, 4)
    assert rows_of(page) == [7, 3, 9, 1]
    assert [slot.rank for slot in page.slots] == [0, 1, 2, 3]
    assert page.relaxed == []


def test_a_cap_moves_the_surplus_down_and_gives_way_only_at_the_end() -> None:
    same_creator = [1, 8, 15, 22, 29]  # 1 mod 7
    page = page_of([*same_creator, 2, 4], 7, replace(PLAIN, creator_cap=2, lookahead=60))
    assert rows_of(page) == [1, 8, 2, 4, 15, 22, 29]
    assert page.slots[4].rules == ("creator_cap",)
    assert page.relaxed == ["creator_cap"]


def test_lookahead_is_the_first_to_give_way() -> None:
    rows = [1, 8, 15, 22, 29, 3]
    page = page_of(rows, 3, replace(PLAIN, creator_cap=2, lookahead=2))
    assert rows_of(page) == [1, 8, 3]
    assert page.slots[2].rules == ("lookahead",)


@pytest.mark.parametrize(("least", "most", "expected"), [(0.5, 1.0, 3), (0.0, 0.2, 1), (0.4, 0.4, 2)])
def test_the_share_of_shopping_videos_is_kept(least: float, most: float, expected: int) -> None:
    social, shopping = [1, 3, 5, 7, 9, 11, 13], [2, 4, 6, 8, 12]
    rows = social + shopping if least else shopping + social
    slate = SlatePreferences(0, 0, 0, 0, least, most, 60)
    shown = rows_of(page_of(rows, 5, slate))
    assert sum(row % 2 == 0 for row in shown) == expected


def test_propensities_are_what_monte_carlo_finds() -> None:
    exploration = ExplorationPreferences((1, 3), 12, 0.4, 1.0)
    slate = SlatePreferences(2, 2, 2, 1, 0.2, 1.0, 60)
    draws = 4_000
    seen: Counter[tuple[int, int]] = Counter()
    stated: dict[tuple[int, int], float] = {}
    for seed in range(draws):
        page = page_of(list(range(1, 40)), 6, slate, exploration, seed=seed)
        for position, slot in enumerate(page.slots):
            seen[position, slot.row] += 1
            assert stated.setdefault((position, slot.row), slot.propensity) == slot.propensity
    for (position, row), count in seen.items():
        p = stated[position, row]
        assert abs(count / draws - p) < 4.5 * np.sqrt(p * (1 - p) / draws) + 1e-9, (position, row)
    for position in range(6):  # nothing was possible that was not seen: the rest has almost no probability
        total = sum(p for (at, _), p in stated.items() if at == position)
        assert total == pytest.approx(1.0, abs=0.01)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0.01, 1.0), st.floats(0.1, 10.0))
def test_a_distribution_sums_to_one_and_leaves_nobody_out(
    scores: list[float], share: float, temperature: float
) -> None:
    preferences = ExplorationPreferences((0,), 50, share, temperature)
    probabilities = distribution(scores, preferences)
    assert probabilities.sum() == pytest.approx(1.0)
    assert (probabilities >= share / len(scores) - 1e-12).all()
    best = int(np.argmax(scores))
    assert probabilities[best] >= probabilities.max() - 1e-12


@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 5), max_size=2)), max_size=30),
    st.lists(st.sampled_from([None, True, False]), min_size=1, max_size=4),
)
def test_sub_pools_share_nothing(videos: list[tuple[bool, list[int]]], wants: list[bool | None]) -> None:
    pools = split_pool([(index, *video) for index, video in enumerate(videos)], wants)
    dealt = [index for pool in pools for index in pool]
    assert len(set(dealt)) == len(dealt)
    keys = [{key for index in pool for key in videos[index][1]} for pool in pools]
    for place, own in enumerate(keys):
        for other in keys[place + 1 :]:
            assert not own & other
    for pool, want in zip(pools, wants, strict=True):
        assert want is None or all(videos[index][0] == want for index in pool)


def claim(name: str, *choices: int) -> Claim:
    return Claim(name, "Sponsored", choices)


def test_campaigns_stand_where_they_belong_and_count_towards_caps() -> None:
    rows = [1, 15, 8, 2, 3]
    capped = replace(PLAIN, creator_cap=2, lookahead=60)
    page = page_of(rows, 4, capped, claims=[claim("c1", 2)], positions=[1])
    assert rows_of(page) == [1, 8, 2, 3]  # 15 would be the third of creator 1
    slot = page.slots[1]
    assert (slot.campaign_id, slot.label, slot.source, slot.propensity) == ("c1", "Sponsored", CAMPAIGN, 1.0)
    assert [slot.rank for slot in page.slots] == [0, 2, 3, 4]
    # 1, 15, 2, 3 would have stood there: 15 had to go
    assert slot.cost == Cost(15, None, None)


def test_nothing_gives_way_for_a_campaign() -> None:
    hidden = Audience(hidden_creators=np.array([2]))  # creator 1 mod 7
    strict = replace(PLAIN, creator_cap=1, lookahead=60)
    # 8 is hidden, 2 and 9 share a creator: the second campaign has nothing that may stand beside the first
    claims = [claim("a", 1, 3), claim("b", 5)]
    page = page_of([1, 8, 15, 2, 3, 9], 3, strict, audience=hidden, claims=claims, positions=[0, 1])
    assert rows_of(page) == [2, 3, 9]
    assert [slot.campaign_id for slot in page.slots] == ["a", None, None]
    assert page.relaxed == ["creator_cap"]
    assert page.slots[2].rules == ("creator_cap",)  # for want of anything else, not for the campaign


def test_a_campaigns_own_videos_have_no_other_place() -> None:
    asked = candidates([7, 3, 9, 1])
    asked = replace(asked, source=("two_tower", CAMPAIGN, CAMPAIGN, "two_tower"))
    dice = np.random.default_rng(0)
    page = build_page(asked, 4, FACTS, ANYBODY, PLAIN, NO_EXPLORATION, dice, [claim("c", 2, 1)], [3])
    assert rows_of(page) == [7, 1, 9]  # 9 is what its campaign would rather show than 3
    assert page.admitted == 2
    assert page.slots[2].cost == Cost(None, None, None)  # nothing else could have stood there


def test_the_cost_of_a_slot_is_what_it_displaced() -> None:
    asked = replace(
        candidates([7, 3, 9, 1]),
        watch_ms=np.array([9_000, 8_000, 7_000, 500], np.float32),
        probabilities={"purchase": np.array([0.5, 0.25, 0.125, 0.0], np.float32)},
    )
    dice = np.random.default_rng(0)
    page = build_page(asked, 2, FACTS, ANYBODY, PLAIN, NO_EXPLORATION, dice, [claim("c", 3)], [0])
    assert rows_of(page) == [1, 7]
    assert page.slots[0].cost == Cost(3, 7_500.0, 0.25)
    same = build_page(asked, 2, FACTS, ANYBODY, PLAIN, NO_EXPLORATION, dice, [claim("c", 0)], [0])
    assert rows_of(same) == [7, 3]
    assert same.slots[0].cost == Cost(None, 0.0, 0.0)  # it would have stood there anyway


def test_propensities_are_exact_with_campaigns_on() -> None:
    exploration = ExplorationPreferences((1, 4), 12, 0.4, 1.0)
    slate = SlatePreferences(2, 2, 2, 1, 0.2, 1.0, 60)
    rows = list(range(1, 40))
    claims = [claim("a", 12, 3), claim("b", 20)]
    draws = 4_000
    seen: Counter[tuple[int, int]] = Counter()
    stated: dict[tuple[int, int], float] = {}
    for seed in range(draws):
        page = page_of(rows, 6, slate, exploration, seed=seed, claims=claims, positions=[2, 3])
        assert [slot.campaign_id for slot in page.slots] == [None, None, "a", "b", None, None]
        for position, slot in enumerate(page.slots):
            seen[position, slot.row] += 1
            assert stated.setdefault((position, slot.row), slot.propensity) == slot.propensity
    for (position, row), count in seen.items():
        p = stated[position, row]
        assert abs(count / draws - p) < 4.5 * np.sqrt(p * (1 - p) / draws) + 1e-9, (position, row)
    for position in range(6):
        total = sum(p for (at, _), p in stated.items() if at == position)
        assert total == pytest.approx(1.0, abs=0.01)
    assert len(seen) > 12
