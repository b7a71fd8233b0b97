"""What each route does, without HTTP: reads the store, asks the bundle, hands the page out."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from data.history import UserRequest
from serving import showcase
from serving.campaign_report import CampaignReporter
from serving.cursor import CursorSigner
from serving.exact import Rows, Vectors
from serving.feeder import Feeder
from serving.intake import record_of
from serving.live import Deployment, LiveBundle
from serving.metrics import Metrics
from serving.paging import FeedSettings, PageMaker
from serving.plan_follower import FixedPlan, Plans
from serving.rollout import no_rollout
from serving.schema import (
    ApiError,
    EventsRequest,
    EventsResponse,
    ExplainRequest,
    FeedRequest,
    ScoredVideo,
    ScoreRequest,
    ScoreResponse,
    encode,
)
from serving.served import explanation_of
from serving.sessions import Sessions
from serving.shadow import NoShadow, Offers
from serving.state import Store

logger = logging.getLogger("shopreel.service")
NEVER = float("inf")


def wall_clock_ms() -> int:
    """Now, in Unix milliseconds."""
    return time.time_ns() // 1_000_000


class FeedService:
    """Answers requests from one store and the bundle that is live. Safe to call from several threads.

    Besides :class:`serving.schema.ApiError`, methods may raise ``NotReady``, ``StoreUnavailable`` and
    ``QueueFull``: try again later.
    """

    def __init__(
        self,
        deployment: Deployment,
        store: Store,
        settings: FeedSettings,
        metrics: Metrics,
        *,
        secret: bytes | None = None,
        clock_ms: Callable[[], int] = wall_clock_ms,
        plans: Plans | None = None,
        shadow: Offers | None = None,
    ) -> None:
        """``secret`` signs cursors; None takes the one that the store keeps for all its replicas.

        ``plans`` tells which plan is in force, ``shadow`` hears of every page; None: none.
        """
        secret = secret or store.secret()
        self.metrics = metrics
        self.deployment = deployment
        self._store = store
        self._clock_ms = clock_ms
        self._sessions = Sessions(store, CursorSigner(secret))
        self._plans: Plans = plans or FixedPlan(no_rollout(settings))
        self._reporter = CampaignReporter(store)
        self._feeder = Feeder(
            store,
            self._sessions,
            PageMaker(settings, store, metrics, secret),
            metrics,
            clock_ms,
            self._plans,
            shadow or NoShadow(),
        )

    def feed(self, request: FeedRequest, deadline: float = NEVER) -> bytes:
        """The next page. ``deadline`` is on :func:`time.monotonic`'s clock; past it, answers degrade."""
        return self._feeder.page(request, self.deployment.live, deadline).body

    def explain(self, request: ExplainRequest, deadline: float = NEVER) -> bytes:
        """As :meth:`feed`, with reasons; or an earlier page with reasons."""
        if request.request_id is None:
            kept = self._feeder.page(request, self.deployment.live, deadline)
        else:
            user_id = self.deployment.live.user_id(request.user_id)
            kept = self._sessions.earlier(request.request_id, user_id)
        return encode(explanation_of(kept.body, kept.log))

    def score(self, request: ScoreRequest, deadline: float = NEVER) -> bytes:
        """Values of any videos for one user, in the order asked."""
        live, now_ms = self.deployment.live, self._clock_ms()
        user_id = live.user_id(request.user_id)
        with self.metrics.stage("state"):
            state = self._store.user(user_id, now_ms)
        rows = live.catalogue.rows(request.video_ids)
        user = live.user_request(user_id, state.steps, request.surface, now_ms)
        market = request.market or live.market_of(user.user_row)
        with self.metrics.stage("score"):
            values, probabilities = _values(live, user, rows, market)
        videos = [
            ScoredVideo(
                video_id=video_id,
                value=float(values[place]),
                probabilities={task: float(p_K[place]) for task, p_K in probabilities.items()},
                known=bool(rows[place] > 0),
            )
            for place, video_id in enumerate(request.video_ids)
        ]
        return encode(ScoreResponse(bundle=live.name, degraded=[], videos=videos))

    def events(self, request: EventsRequest, deadline: float = NEVER) -> bytes:
        """Take events in, durably; they count from the user's next request on."""
        live, now_ms = self.deployment.live, self._clock_ms()
        events = enumerate(request.events)
        records = [record_of(event, f"events[{place}]", live, now_ms) for place, event in events]
        with self.metrics.stage("accept"):
            new = self._store.accept(records)
        for record, counts in zip(records, new, strict=True):
            if counts:
                self.metrics.events.labels(record.kind).inc()
        duplicates = len(new) - sum(new)
        self.metrics.duplicates.inc(duplicates)
        return encode(EventsResponse(accepted=sum(new), duplicates=duplicates))

    def campaigns(self) -> bytes:
        """How far every campaign of the plan has got."""
        rollout = self._plans.running.rollout
        live, now_ms = self.deployment.live, self._clock_ms()
        return encode(self._reporter.report(live, rollout.plan.campaigns, rollout.traffic, now_ms))

    def showcase_users(self) -> bytes:
        """See :func:`serving.showcase.users`."""
        return showcase.users(self.deployment.live, self._store, self._clock_ms())

    def showcase_videos(self, video_ids: Sequence[str]) -> bytes:
        """See :func:`serving.showcase.videos`."""
        return showcase.videos(self.deployment.live, video_ids)

    def ready(self) -> None:
        """Return when requests can be answered; raises what stands in the way."""
        _ = self.deployment.live
        self._store.ping()

    def sweep(self) -> int:
        """Let the store forget what is old enough; returns how many rows went."""
        return self._store.sweep(self._clock_ms())

    def close(self) -> None:
        """Answer what waits, then stop ranking. Store and deployment stay open."""
        self._feeder.close()


def _values(
    live: LiveBundle, user: UserRequest, rows: Rows, market: str | None
) -> tuple[Vectors, Mapping[str, Vectors]]:
    """Value of each row, and its probabilities by task where the bundle has a ranker."""
    try:
        if not live.has_ranker:
            return live.pipeline.score(user, rows), {}
        said = live.pipeline.predict(user, rows, market)
    except Exception as error:
        logger.exception("scoring failed")
        message = "the model does not answer; try again, or ask for a feed, which can do without"
        raise ApiError(503, "scoring_failed", message, retry_after_s=5) from error
    return said.value, said.probabilities
