"""Feed sessions: from a cursor to the session it continues, and to the ids of its pages."""

import re
import secrets
from contextlib import suppress
from typing import NamedTuple

from serving.cursor import SESSION_BYTES, Cursor, CursorSigner, InvalidCursor
from serving.schema import ApiError
from serving.state import Store
from serving.state.protocol import Id, PageRecord, SessionGone

_REQUEST_ID = re.compile(rf"([0-9a-f]{{{2 * SESSION_BYTES}}})-(0|[1-9][0-9]{{0,8}})", re.ASCII)


class KeptPage(NamedTuple):
    """A page that was handed out: the answer's bytes, and its row of the served log."""

    body: bytes
    log: bytes


class Turn(NamedTuple):
    """What a feed request asks for: a place in a session, every video already on the session's pages,
    and the page itself where it was handed out before.
    """

    place: Cursor
    served: list[Id]
    kept: KeptPage | None

    @property
    def request_id(self) -> str:
        """The id of the page."""
        return f"{self.place.session_id.hex()}-{self.place.page}"


def place_of(request_id: str) -> Cursor | None:
    """The place that a page's id names; None for what is no such id."""
    found = _REQUEST_ID.fullmatch(request_id)
    return Cursor(bytes.fromhex(found[1]), int(found[2])) if found else None


class Sessions:
    """Opens and continues feed sessions. Every refusal is an :class:`ApiError`."""

    def __init__(self, store: Store, signer: CursorSigner) -> None:
        self._store = store
        self._signer = signer

    def turn(self, cursor: str | None, user_id: Id) -> Turn:
        """The turn that ``cursor`` asks for; None begins a session.

        Refused: 400 ``invalid_cursor`` (not ours, or another user's), 410 ``session_expired``.
        """
        if cursor is None:
            return Turn(Cursor(secrets.token_bytes(SESSION_BYTES), 0), [], None)
        try:
            place = self._signer.open(cursor)
        except InvalidCursor as error:
            message = f"not a cursor of this server ({error}); send back the last one, or none for a new feed"
            raise ApiError(400, "invalid_cursor", message, field="cursor") from None
        return self._load(place, user_id)

    def earlier(self, request_id: str, user_id: Id) -> KeptPage:
        """A page by its id. Refused: 404 ``unknown_request``, also for another user's."""
        place = place_of(request_id)
        if place is not None:
            with suppress(ApiError):
                kept = self._load(place, user_id).kept
                if kept is not None:
                    return kept
        message = "no such page of this user is remembered"
        raise ApiError(404, "unknown_request", message, field="request_id")

    def commit(self, page: PageRecord) -> KeptPage:
        """Hand a page out; the answer is another's where another request for it came first."""
        try:
            body = self._store.commit_page(page)
        except SessionGone:
            raise _gone() from None
        if body == page.body:
            return KeptPage(page.body, page.log)
        kept = self._load(Cursor(page.session_id, page.page), page.user_id).kept
        if kept is None:
            raise _gone()
        return kept

    def next_cursor(self, place: Cursor) -> str:
        """The cursor of the page after ``place``."""
        return self._signer.sign(Cursor(place.session_id, place.page + 1))

    def _load(self, place: Cursor, user_id: Id) -> Turn:
        try:
            session = self._store.session(place.session_id, place.page)
        except SessionGone:
            raise _gone() from None
        if session.user_id != user_id:
            message = "this cursor belongs to another user's feed; leave it out to begin a new feed"
            raise ApiError(400, "invalid_cursor", message, field="cursor")
        if place.page > session.pages:
            raise _gone()
        kept = None
        if session.body is not None and session.log is not None:
            kept = KeptPage(session.body, session.log)
        return Turn(place, session.served, kept)


def _gone() -> ApiError:
    message = "this feed's session is not known any more; leave the cursor out to begin a new feed"
    return ApiError(410, "session_expired", message, field="cursor")
