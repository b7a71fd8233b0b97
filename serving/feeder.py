"""One page of a feed from request to hand-out: session, user, page, commit; durable before it leaves."""

from collections.abc import Callable, Sequence

from serving.campaign_desk import Keys
from serving.live import LiveBundle
from serving.metrics import Metrics
from serving.paging import MadePage, PageMaker, Visit
from serving.plan_follower import Plans
from serving.rollout import policy_name
from serving.rules import Audience, hidden_codes
from serving.schema import FeedRequest, encode
from serving.served import ServedPage, pack, response_of, served_slots
from serving.sessions import KeptPage, Sessions, Turn
from serving.shadow import Offers, ShadowRequest
from serving.state import Store
from serving.state.protocol import Id, Mark, PageRecord, TallyExceeded, UserState


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
        shadow: Offers,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._pages = pages
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._plans = plans
        self._shadow = shadow

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
            user_id=user_id,
            now_ms=now_ms,
            user=user,
            audience=_audience(live, request, market, state, turn.served),
            place=turn.place,
            size=request.page_size,
            deadline=deadline,
            policy=policy,
            followed=live.facts.creator.codes_of(state.marks.get(Mark.followed_creator, [])),
            traffic=running.rollout.traffic,
        )
        settings, campaigns = running.rollout.settings(arms), running.rollout.campaigns(user_id, market)
        while True:
            made = self._pages.make(live, visit, settings, campaigns)
            served = _served(live, request, turn, visit, made, arms)
            rows = [slot.row for slot in made.page.slots]
            answer = response_of(served, rows, live.facts, self._sessions.next_cursor(turn.place))
            record = PageRecord(
                session_id=turn.place.session_id,
                page=turn.place.page,
                user_id=user_id,
                time_ms=now_ms,
                video_ids=[slot.video_id for slot in served.slots],
                body=encode(answer),
                log=pack(served),
                tallies=made.tallies,
            )
            try:
                with self._metrics.stage("commit"):
                    kept = self._sessions.commit(record)
            except TallyExceeded as exceeded:  # another page had the campaign's last slot meanwhile
                late = Keys.campaign_of(exceeded.key)
                campaigns = {name: campaign for name, campaign in campaigns.items() if name != late}
                continue
            if kept.body is record.body:
                self._count(served)
                self._shadow.offer(
                    ShadowRequest(
                        request_id=turn.request_id,
                        user_id=user_id,
                        steps=state.steps,
                        surface=request.surface,
                        live=live,
                        audience=visit.audience,
                        now_ms=now_ms,
                        served=record.video_ids,
                    )
                )
            return kept

    def _count(self, served: ServedPage) -> None:
        for experiment, arm in served.arms.items():
            self._metrics.arms.labels(experiment, arm).inc()
        for reason in served.degraded:
            self._metrics.degraded.labels(reason).inc()
        for slot in served.slots:
            self._metrics.slots.labels(slot.source).inc()
            if slot.campaign_id is not None:
                self._metrics.campaign_slots.labels(slot.campaign_id).inc()
        if not served.slots:
            self._metrics.empty_pages.inc()


def _served(
    live: LiveBundle, request: FeedRequest, turn: Turn, visit: Visit, made: MadePage, arms: dict[str, str]
) -> ServedPage:
    """A page as the log keeps it."""
    return ServedPage(
        request_id=turn.request_id,
        user_id=visit.user_id,
        time_ms=visit.now_ms,
        bundle=live.name,
        policy=visit.policy,
        slots=served_slots(live.catalogue, made.page.slots),
        surface=request.surface,
        market=visit.audience.market,
        context=request.context or {},
        arms=arms,
        degraded=made.degraded,
        admitted=made.page.admitted,
        refused=dict(made.page.refused),
        history_steps=len(visit.user.history),
    )


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
