"""From an event on the wire to the record that the store keeps."""

from datetime import UTC, datetime, timedelta

from data.schema import LABEL_BIT, LABELS
from serving.live import LiveBundle, canonical
from serving.schema import ActionEvent, ApiError, HideScope, ImpressionEvent
from serving.state.protocol import EventRecord, Id, Mark

#: Events before this moment (2000-01-01) come from a clock that was never set.
EARLIEST_MS = 946_684_800_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def record_of(event: ImpressionEvent | ActionEvent, where: str, live: LiveBundle, now_ms: int) -> EventRecord:
    """An event in canonical form: ids in the catalogue's type, no time later than ``now_ms``.

    Raises :class:`ApiError` 422 for what the types alone could not tell; ``where`` is the event's path.
    """
    if isinstance(event, ActionEvent):
        if event.scope is not None and event.action.value != "hide":
            raise ApiError(422, "invalid_field", "only hide has a scope", field=f"{where}.scope")
        at, time_field = event.action_time, f"{where}.action_time"
        true = known = LABEL_BIT[event.action.value]
        watch_ms = position = None
    else:
        at, time_field = event.event_time, f"{where}.event_time"
        labels = {label: getattr(event, label) for label in LABELS}
        true = sum(LABEL_BIT[label] for label, value in labels.items() if value)
        known = sum(LABEL_BIT[label] for label, value in labels.items() if value is not None)
        watch_ms, position = event.watch_ms, event.position
    time_ms = now_ms if at is None else _unix_ms(at)
    if time_ms < EARLIEST_MS:
        message = "before the year 2000: Unix milliseconds, or RFC 3339, of when it happened"
        raise ApiError(422, "invalid_field", message, field=time_field)
    video_id, products = live.video_id(event.video_id), live.facts.products.ids
    return EventRecord(
        event_id=event.event_id,
        kind="action" if isinstance(event, ActionEvent) else "impression",
        user_id=live.user_id(event.user_id),
        video_id=video_id,
        time_ms=min(time_ms, now_ms),
        received_ms=now_ms,
        actions=true,
        known=known,
        watch_ms=watch_ms,
        surface=event.surface,
        market=event.market,
        request_id=event.request_id,
        position=position,
        product_id=None if event.product_id is None else canonical(event.product_id, products),
        order_value_minor=event.order_value_minor,
        currency=event.currency,
        marks=_marks(event, true, video_id, live),
    )


def _marks(
    event: ImpressionEvent | ActionEvent, true: int, video_id: Id, live: LiveBundle
) -> tuple[tuple[Mark, Id], ...]:
    """The lasting facts in an event: what it hides, and whom it follows."""
    if not true & (LABEL_BIT["hide"] | LABEL_BIT["follow"]):
        return ()
    facts = live.facts
    row = int(live.catalogue.rows([video_id])[0])
    creators = facts.creator.names_of(facts.creator.code[[row]])
    marks: list[tuple[Mark, Id]] = []
    if true & LABEL_BIT["hide"]:
        marks.append((Mark.hidden_video, video_id))
        scope = event.scope if isinstance(event, ActionEvent) else None
        if scope is HideScope.creator:
            marks += [(Mark.hidden_creator, name) for name in creators]
        if scope is HideScope.merchant:
            merchant = facts.products.merchant
            names = merchant.names_of(merchant.code[facts.product_rows.of(row)])
            marks += [(Mark.hidden_merchant, name) for name in names]
    if true & LABEL_BIT["follow"]:
        marks += [(Mark.followed_creator, name) for name in creators]
    return tuple(marks)


def _unix_ms(at: datetime | int) -> int:
    return at if isinstance(at, int) else (at - _EPOCH) // timedelta(milliseconds=1)
