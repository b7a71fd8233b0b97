"""One page of a feed from request to hand-out: session, user, page, commit; durable before it leaves."""

from collections.abc import Callable, Sequence

from serving.live import LiveBundle
from serving.metrics import Metrics
from serving.paging import PageMaker, Visit
from serving.plan_follower import Plans
from serving.rollout import policy_name
from serving.rules import Audience, hidden_codes
from serving.schema import FeedRequest, encode
from serving.served import ServedPage, pack, response_of, served_slots
from serving.sessions import KeptPage, Sessions
from serving.state import Store
from serving.state.protocol import Id, Mark, PageRecord, UserState


class Feeder:
    """Hands pages out, each of them once. Safe to call from several threads."""

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        pages: PageMaker,
        metrics: Metrics,
        clock_ms: Callable[[], int],
        plans: Plans,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._pages = pages
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._plans = plans

    def close(self) -> None:
        """Answer what waits, then stop ranking."""
        self._pages.close()

    def page(self, request: FeedRequest, live: LiveBundle, deadline: float) -> KeptPage:
        """The page that the request asks for; one that was handed out before is given again as it was.

        ``live`` is the server's own bundle; arms of experiments may bring another.
        """
        now_ms, running = self._clock_ms(), self._plans.running
        user_id = live.user_id(request.user_id)
        with self._metrics.stage("session"):
            turn = self._sessions.turn(request.cursor, user_id)
        if turn.kept is not None:
            return turn.kept
        market = request.market or live.market_of(int(live.users.rows([user_id])[0]))
        arms = running.rollout.arms(user_id, market)
        live = running.live(arms) or live
        policy = policy_name(live.name, arms)
        with self._metrics.stage("state"):
            state = self._store.user(user_id, now_ms)
            user = live.user_request(user_id, state.steps, request.surface, now_ms)
        visit = Visit(
            user=user,
            audience=_audience(live, request, market, state, turn.served),
            place=turn.place,
            size=request.page_size,
            deadline=deadline,
            policy=policy,
        )
        made = self._pages.make(live, visit, running.rollout.settings(arms))

        rows = [slot.row for slot in made.page.slots]
        served = ServedPage(
            request_id=turn.request_id,
            user_id=user_id,
            time_ms=now_ms,
            bundle=live.name,
            policy=policy,
            slots=served_slots(live.catalogue.ids(rows).to_pylist(), made.page.slots),
            surface=request.surface,
            market=market,
            context=request.context or {},
            arms=arms,
            degraded=made.degraded,
            admitted=made.page.admitted,
            refused=dict(made.page.refused),
            history_steps=len(user.history),
        )
        answer = response_of(served, rows, live.facts, self._sessions.next_cursor(turn.place))
        record = PageRecord(
            session_id=turn.place.session_id,
            page=turn.place.page,
            user_id=user_id,
            time_ms=now_ms,
            video_ids=[slot.video_id for slot in served.slots],
            body=encode(answer),
            log=pack(served),
        )
        with self._metrics.stage("commit"):
            kept = self._sessions.commit(record)
        if kept.body is record.body:
            self._count(served)
        return kept

    def _count(self, served: ServedPage) -> None:
        for experiment, arm in served.arms.items():
            self._metrics.arms.labels(experiment, arm).inc()
        for reason in served.degraded:
            self._metrics.degraded.labels(reason).inc()
        for slot in served.slots:
            self._metrics.slots.labels(slot.source).inc()
        if not served.slots:
            self._metrics.empty_pages.inc()


def _audience(
    live: LiveBundle, request: FeedRequest, market: str | None, state: UserState, on_session: Sequence[Id]
) -> Audience:
    language = (request.context or {}).get("language")
    creators, merchants = hidden_codes(live.facts, state.marks)
    return Audience(
        market=market,
        language=language if isinstance(language, str) else None,
        shown=live.rows_of([*on_session, *state.served, *state.seen]),
        hidden_videos=live.rows_of(state.marks.get(Mark.hidden_video, [])),
        hidden_creators=creators,
        hidden_merchants=merchants,
    )
