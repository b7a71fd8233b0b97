"""The one place that knows the order: user vector → retrieve within the hard rules → rank by value.

The server, ``replay`` and ``recommend`` all call :meth:`Pipeline.rank`; so do the golden requests.

Axes: B requests, D dimensions, K videos.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np

from data.history import UserRequest
from models.bundle import EVERYWHERE, Bundle
from models.ranker_inference import Predictions
from models.value import ValueFormula
from serving.catalogue import CatalogueFacts
from serving.exact import NO_HITS, NO_ROWS, Hits, Mask, Rows, Vectors, best_first, pair_scores
from serving.index import open_index
from serving.retriever import Retriever
from serving.time_budget import StepCost

Search = Callable[..., list[Hits]]
LOG = logging.getLogger("shopreel.pipeline")
#: Sources of a video in a ranked list.
TWO_TOWER, POPULARITY = "two_tower", "popularity"


#: Videos that the ranker looks at, at least, for a request.
CANDIDATES = 500


class Stage(Enum):
    """The points at which a ranked list can be looked at.

    ``exact``: brute force over the whole catalogue; ``index``: what retrieval found; ``ranker``: after
    the ranking model; ``feed``: the answer, after the hard rules.
    """

    exact = "exact"
    index = "index"
    ranker = "ranker"
    feed = "feed"


@dataclass(frozen=True, slots=True)
class RankRequest:
    """One user who wants the best ``k`` videos.

    ``exclude_rows`` (seen, served, hidden) never return. ``rules`` applies the hard rules: eligible in
    ``market`` (None: in any) and in stock. ``allowed_rows`` limits the candidates to some catalogue rows
    (None: the whole catalogue). ``value`` takes the place of the pipeline's own formula. Where ranking would
    not end by ``deadline``, on the clock of :func:`time.monotonic`, the tower's order is the answer. The
    ranker looks at ``candidates`` videos, and never at fewer than ``k``; None leaves that to the pipeline.

    ``extra`` names further candidates by source, scored beside those that are retrieved; rows that are
    excluded, not eligible, unknown or found anyway are dropped.
    """

    user: UserRequest
    k: int
    exclude_rows: Rows = field(default_factory=lambda: NO_ROWS)
    market: str | None = None
    rules: bool = True
    allowed_rows: Rows | None = None
    value: ValueFormula | None = None
    deadline: float = float("inf")
    candidates: int | None = None
    extra: Mapping[str, Rows] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RankedList:
    """The answer to one request, best first, equal scores by row; shorter than ``k`` only for want of videos.

    It is longer than ``k`` by those that ``extra`` alone brought in.
    ``source[i]`` says where ``video_row[i]`` came from. ``degraded`` names what failed on the way; empty
    when all went well. With a ranker ``score`` is the value, ``probabilities`` hold float32[K] per task and
    ``retrieval_score`` the tower's, ``watch_ms`` the predicted watch time, where it has that head.
    ``stages`` is filled only when asked for.
    """

    video_row: Rows
    score: Vectors
    source: tuple[str, ...]
    degraded: tuple[str, ...] = ()
    stages: Mapping[Stage, Hits] = field(default_factory=dict)
    probabilities: Mapping[str, Vectors] = field(default_factory=dict)
    retrieval_score: Vectors | None = None
    watch_ms: Vectors | None = None


class Pipeline:
    """Ranks requests against one bundle; safe to call from several threads.

    ``facts`` are what the hard rules know. ``retriever`` may be changed while it serves: added and
    removed videos count from the next request. A bundle with a ranker scores at least ``candidates``
    retrieved videos and orders them by ``value`` (None: the bundle's own formula). ``threads`` (0: all
    cores) search the index together; ``stage(name)`` is entered around ``encode``, ``retrieve``, ``ranker``.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        candidates: int = CANDIDATES,
        value: ValueFormula | None = None,
        threads: int = 0,
        stage: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
    ) -> None:
        self.bundle = bundle
        self.candidates = candidates
        self.value = value
        self._stage = stage
        self._ranking = StepCost()
        index = open_index(bundle, threads=threads)
        self.retriever = Retriever(bundle.video_vectors, index, device=str(bundle.encoder.device))
        self.facts = CatalogueFacts.of(bundle.videos, bundle.products)

    def rank(self, requests: Sequence[RankRequest], *, stages: bool = False) -> list[RankedList]:
        """Rank every request; the answers are in the order of ``requests``.

        A user encoder or a search that fails degrades the request to popularity in its market and says
        so in ``degraded`` (``user_encoder``, ``retrieval``); a ranker that fails, to the tower's order
        (``ranker``), and so does one that would not end by the first deadline of all (``ranker_time``).
        """
        answers: list[RankedList | None] = [None] * len(requests)
        with self._stage("encode"):
            user_BD, encoded = self._encode([request.user for request in requests])
        groups: dict[tuple[bool, str | None], list[int]] = {}
        for place in encoded:
            groups.setdefault((requests[place].rules, requests[place].market), []).append(place)
        for group in groups.values():
            eligible = self._eligible(requests[group[0]])
            try:
                found = self._retrieve([requests[p] for p in group], user_BD[group], eligible, stages)
            except Exception:
                LOG.exception("retrieval failed for %d requests; falling back to popularity", len(group))
                continue
            for place, answer in zip(group, found, strict=True):
                answers[place] = answer
        was_encoded = set(encoded)
        return [
            answer or self.popular(request, "retrieval" if place in was_encoded else "user_encoder")
            for place, (request, answer) in enumerate(zip(requests, answers, strict=True))
        ]

    def score(self, user: UserRequest, rows: Rows, market: str | None = None) -> Vectors:
        """Final scores float32[K] of any catalogue rows, order kept; row 0 scores the unknown video.

        Raises whatever the models raise, and ``ValueError`` for a score that is not finite.
        """
        if self.bundle.ranker is not None:
            return self.predict(user, rows, market).value
        user_BD = self.bundle.encoder.encode([user])
        if not np.isfinite(user_BD).all():
            raise ValueError("the user encoder returned a vector that is not finite")
        return pair_scores(self.retriever.vectors_of(np.asarray(rows, np.int64)), user_BD[0])

    def vectors_of(self, rows: Rows) -> Vectors:
        """The towers' vectors float32[K, D] of catalogue rows."""
        return self.retriever.vectors_of(rows)

    @property
    def formula(self) -> ValueFormula | None:
        """The value formula of requests that bring none; None without a ranker."""
        ranker = self.bundle.ranker
        return None if ranker is None else self.value or ranker.value

    def predict(
        self, user: UserRequest, rows: Rows, market: str | None = None, value: ValueFormula | None = None
    ) -> Predictions:
        """What the ranker says of any catalogue rows, order kept; only for a bundle that has one.

        ``value`` takes the place of the pipeline's own formula.
        Raises whatever the ranker raises, and ``ValueError`` for a value that is not finite.
        """
        ranker = self.bundle.ranker
        assert ranker is not None
        prepared = ranker.prepare_user(user, int(self.bundle.markets.rows([market])[0]) if market else 0)
        said = ranker.score(prepared, np.asarray(rows, np.int64))
        formula = value or self.value
        if formula is not None:
            worth = formula.of(said.probabilities, said.watch_ms, said.order_value_minor, len(rows))
            said = replace(said, value=worth)
        if not np.isfinite(said.value).all():
            raise ValueError("the ranker returned a value that is not finite")
        return said

    def _eligible(self, request: RankRequest) -> Mask | None:
        """The hard rules as a mask over catalogue rows; None where they forbid nothing."""
        if not request.rules:
            return None
        mask = self.facts.eligible(request.market)
        return None if mask[1:].all() else mask

    def _encode(self, users: Sequence[UserRequest]) -> tuple[Vectors, list[int]]:
        """User vectors [B, D], and the places of those that could be computed."""
        user_BD = np.zeros((len(users), self.bundle.video_vectors.shape[1]), np.float32)
        try:
            user_BD[:] = self.bundle.encoder.encode(users)
        except Exception:
            if len(users) == 1:
                LOG.exception("the user encoder failed; falling back to popularity")
                return user_BD, []
            one_by_one = [self._encode([user]) for user in users]
            vectors = np.concatenate([vector for vector, _ in one_by_one])
            return vectors, [place for place, (_, good) in enumerate(one_by_one) if good]
        finite = np.isfinite(user_BD).all(axis=1)
        if not finite.all():
            LOG.error("%d user vectors are not finite; falling back to popularity", int((~finite).sum()))
        return user_BD, np.flatnonzero(finite).tolist()

    def _retrieve(
        self, requests: Sequence[RankRequest], user_BD: Vectors, eligible: Mask | None, stages: bool
    ) -> list[RankedList]:
        search = self.retriever.search
        with self._stage("retrieve"):
            feed = self._candidates(search, requests, user_BD, eligible)
        seen: list[dict[Stage, Hits]] = [{} for _ in requests]
        if stages:
            exact = self._candidates(self.retriever.search_exact, requests, user_BD, None)
            index = feed if eligible is None else self._candidates(search, requests, user_BD, None)
            seen = [
                {Stage.exact: truth, Stage.index: found, Stage.feed: shown}
                for truth, found, shown in zip(exact, index, feed, strict=True)
            ]
        if self.bundle.ranker is None and not any(request.extra for request in requests):
            return [
                RankedList(hits.video_row, hits.score, (TWO_TOWER,) * len(hits.video_row), stages=looked_at)
                for hits, looked_at in zip(feed, seen, strict=True)
            ]
        answers = []
        deadline = min(request.deadline for request in requests)  # all of them are answered together
        for place, request in enumerate(requests):
            found, source = self._joined(request, feed[place], user_BD[place], eligible)
            answer = self._order(request, found, source, deadline)
            if stages and self.bundle.ranker is None:
                answer = replace(answer, stages=seen[place])
            elif stages:
                free = answer if eligible is None else self._order(request, index[place], {}, deadline)
                cut = {
                    stage: Hits(hits.video_row[: request.k], hits.score[: request.k])
                    for stage, hits in seen[place].items()
                }
                cut[Stage.ranker] = Hits(free.video_row, free.score)
                cut[Stage.feed] = Hits(answer.video_row, answer.score)
                answer = replace(answer, stages=cut)
            answers.append(answer)
        return answers

    def _joined(
        self, request: RankRequest, found: Hits, user_D: Vectors, eligible: Mask | None
    ) -> tuple[Hits, dict[int, str]]:
        """What was found together with the request's further candidates, and the sources of these."""
        source: dict[int, str] = {}
        for name, extra in request.extra.items():
            rows = extra[(extra > 0) & (extra < self.retriever.size)]
            rows = np.setdiff1d(rows, np.concatenate([found.video_row, request.exclude_rows]))
            if eligible is not None:
                rows = rows[(rows < len(eligible)) & eligible[np.minimum(rows, len(eligible) - 1)]]
            source |= {row: name for row in rows.tolist() if row not in source}
        if not source:
            return found, source
        further = np.array(list(source), np.int64)
        scores = pair_scores(self.retriever.vectors_of(further), user_D)
        rows = np.concatenate([found.video_row, further])
        return best_first(rows, np.concatenate([found.score, scores]), len(rows)), source

    def _order(
        self, request: RankRequest, found: Hits, source: Mapping[int, str], deadline: float
    ) -> RankedList:
        """The best of the candidates by the ranker's value; by the tower's without it, or where it fails or
        is late. ``source`` names the further candidates; they stay, however they score.
        """
        degraded: tuple[str, ...] = ()
        said = None
        if self.bundle.ranker is None:
            pass
        elif self._ranking.fits(deadline):
            try:
                with self._stage("ranker"), self._ranking.measured():
                    said = self.predict(request.user, found.video_row, request.market, request.value)
            except Exception:
                LOG.exception("the ranker failed; falling back to the order of retrieval")
                degraded = ("ranker",)
        else:
            degraded = ("ranker_time",)
        value = found.score if said is None else said.value
        best = np.lexsort((found.video_row, -value))
        if source:
            further = np.isin(found.video_row[best], np.array(list(source), np.int64))
            best = best[further | (np.cumsum(~further) <= request.k)]
        else:
            best = best[: request.k]
        rows = found.video_row[best]
        watch_ms = None if said is None else said.watch_ms
        return RankedList(
            rows, value[best], tuple(source.get(row, TWO_TOWER) for row in rows.tolist()), degraded,
            probabilities={} if said is None else {task: p[best] for task, p in said.probabilities.items()},
            retrieval_score=None if said is None else found.score[best],
            watch_ms=None if watch_ms is None else watch_ms[best],
        )  # fmt: skip

    def _depth(self, request: RankRequest) -> int:
        """How many videos to retrieve."""
        if self.bundle.ranker is None:
            return request.k
        return max(request.k, self.candidates if request.candidates is None else request.candidates)

    def _candidates(
        self, search: Search, requests: Sequence[RankRequest], user_BD: Vectors, eligible: Mask | None
    ) -> list[Hits]:
        """The nearest videos of every request, by ``search`` or, where candidates are given, among those."""
        hits = [NO_HITS] * len(requests)
        free = [place for place, request in enumerate(requests) if request.allowed_rows is None]
        if free:
            most = max(self._depth(requests[place]) for place in free)
            exclude = [requests[place].exclude_rows for place in free]
            found = search(user_BD[free], most, exclude=exclude, eligible=eligible)
            for place, answer in zip(free, found, strict=True):
                k = self._depth(requests[place])
                hits[place] = Hits(answer.video_row[:k], answer.score[:k])
        for place, request in enumerate(requests):
            if request.allowed_rows is not None:
                rows = _allowed(request, eligible)
                scores = pair_scores(self.retriever.vectors_of(rows), user_BD[place])
                hits[place] = best_first(rows, scores, self._depth(request))
        return hits

    def popular(self, request: RankRequest, reason: str) -> RankedList:
        """The most popular videos of the market, then of all markets, within the same hard rules.

        ``reason`` is what ``degraded`` will say.
        """
        everywhere = self.bundle.popularity[EVERYWHERE]
        market = self.bundle.popularity.get(request.market or EVERYWHERE, everywhere)
        eligible = self._eligible(request)
        most = max(len(market.video_row), len(everywhere.video_row))
        head = 2 * (request.k + len(request.exclude_rows))
        while True:  # the head of the market's list holds enough, unless the rules refuse much of it
            rows = np.concatenate([market.video_row[:head], everywhere.video_row[:head]])
            counts = np.concatenate([market.count[:head], everywhere.count[:head]])
            kept = ~np.isin(rows, request.exclude_rows)
            if eligible is not None:
                kept &= eligible[rows]
            if request.allowed_rows is not None:
                kept &= np.isin(rows, request.allowed_rows)
            if kept[: min(head, len(market.video_row))].sum() >= request.k or head >= most:
                rows, counts = rows[kept], counts[kept]
                first = np.sort(np.unique(rows, return_index=True)[1])[: request.k]
                score = counts[first].astype(np.float32)
                return RankedList(rows[first], score, (POPULARITY,) * len(first), (reason,))
            head *= 4


def _allowed(request: RankRequest, eligible: Mask | None) -> Rows:
    """The request's own candidates: distinct catalogue rows, without excluded and ineligible ones."""
    assert request.allowed_rows is not None
    rows = np.setdiff1d(request.allowed_rows, request.exclude_rows)
    rows = rows[rows > 0]
    return (
        rows
        if eligible is None
        else rows[(rows < len(eligible)) & eligible[np.minimum(rows, len(eligible) - 1)]]
    )
