"""The served log: everything about a page that training, evaluation or a question may later need."""

from collections.abc import Sequence

import msgspec

from data.vocabulary import Vocabulary
from serving.catalogue import CatalogueFacts
from serving.feed import Slot
from serving.schema import ExplainResponse, FeedResponse, FeedVideo, Why
from serving.state.protocol import Id


class ServedSlot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One video as it was served; see :class:`serving.feed.Slot`."""

    video_id: Id
    position: int
    score: float
    source: str
    propensity: float
    rank: int | None
    retrieval_score: float | None = None
    probabilities: dict[str, float] = {}
    watch_ms: float | None = None
    campaign_id: str | None = None
    label: str | None = None
    displaced: "Displaced | None" = None
    rules: list[str] = []

    @property
    def why(self) -> Why:
        """The reasons, as ``/v1/explain`` gives them."""
        return Why(
            retrieval_score=self.retrieval_score,
            rank=self.rank,
            moved=0 if self.rank is None else self.rank - self.position,
            rules=self.rules,
            heads=self.probabilities,
        )


class Displaced(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a campaign's slot took from the page; see :class:`serving.feed.Cost`."""

    video_id: Id | None
    watch_ms: float | None
    orders: float | None


class ServedPage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One page as it was served.

    ``policy`` names what decided: the bundle and ``arms``, the user's arm by experiment.
    """

    request_id: str
    user_id: Id
    time_ms: int
    bundle: str
    policy: str
    slots: list[ServedSlot]
    surface: str | None = None
    market: str | None = None
    context: dict[str, str | int | float | bool | None] = {}
    arms: dict[str, str] = {}
    degraded: list[str] = []
    admitted: int = 0
    refused: dict[str, int] = {}
    history_steps: int = 0


pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder(ServedPage).decode


def served_slots(catalogue: Vocabulary, slots: Sequence[Slot]) -> list[ServedSlot]:
    """The slots of a page under the ids of their videos."""
    instead = [0 if slot.cost is None or slot.cost.row is None else slot.cost.row for slot in slots]
    video_ids = catalogue.ids([slot.row for slot in slots]).to_pylist()
    displaced_ids = catalogue.ids(instead).to_pylist()
    return [
        ServedSlot(
            video_id=video_ids[position],
            position=position,
            score=slot.score,
            source=slot.source,
            propensity=slot.propensity,
            rank=slot.rank,
            retrieval_score=slot.retrieval_score,
            probabilities=dict(slot.probabilities),
            watch_ms=slot.watch_ms,
            campaign_id=slot.campaign_id,
            label=slot.label,
            displaced=None
            if slot.cost is None
            else Displaced(
                video_id=displaced_ids[position], watch_ms=slot.cost.watch_ms, orders=slot.cost.orders
            ),
            rules=list(slot.rules),
        )
        for position, slot in enumerate(slots)
    ]


def response_of(page: ServedPage, rows: Sequence[int], facts: CatalogueFacts, cursor: str) -> FeedResponse:
    """The answer to the client; ``rows`` are the catalogue rows of the page's slots."""
    videos = [
        FeedVideo(
            video_id=slot.video_id,
            position=slot.position,
            score=slot.score,
            probabilities=slot.probabilities,
            products=facts.tags(row, page.market),
            source=slot.source,
            propensity=slot.propensity,
            campaign_id=msgspec.UNSET if slot.campaign_id is None else slot.campaign_id,
            label=msgspec.UNSET if slot.label is None else slot.label,
        )
        for slot, row in zip(page.slots, rows, strict=True)
    ]
    return FeedResponse(
        request_id=page.request_id,
        bundle=page.bundle,
        cursor=cursor,
        degraded=page.degraded,
        experiments=page.arms or msgspec.UNSET,
        videos=videos,
    )


def explanation_of(body: bytes, log: bytes) -> ExplainResponse:
    """A page that was handed out, with the reasons that its log kept."""
    answer, page = msgspec.json.decode(body, type=FeedResponse), unpack(log)
    return ExplainResponse(
        request_id=answer.request_id,
        bundle=answer.bundle,
        cursor=answer.cursor,
        degraded=answer.degraded,
        experiments=answer.experiments,
        videos=[
            msgspec.structs.replace(video, why=slot.why)
            for video, slot in zip(answer.videos, page.slots, strict=True)
        ],
        admitted=page.admitted,
        refused=page.refused,
        market=page.market,
        policy=page.policy,
        history_steps=page.history_steps,
    )
