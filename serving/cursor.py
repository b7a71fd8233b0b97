"""The feed cursor: which session, which page comes next, and a signature that nobody else can make.

A cursor is opaque to clients: 37 bytes in base64url, ``version 1 | session 16 | page 4 | mac 16``. It
holds no state; what the session was shown lies in the store under the session id.
"""

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass

_LAYOUT = struct.Struct(">B16sI")
_VERSION = 1
_MAC_BYTES = 16
SESSION_BYTES = 16
MAX_PAGE = 2**32 - 1


class InvalidCursor(ValueError):
    """Not a cursor that this server's secret signed."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """``page`` (from 0) of the session whose 16-byte id is ``session_id``."""

    session_id: bytes
    page: int


class CursorSigner:
    """Signs cursors with HMAC-SHA256 under a key derived from the server's secret."""

    def __init__(self, secret: bytes) -> None:
        """``secret``: at least 16 bytes, the same in every replica."""
        if len(secret) < 16:
            raise ValueError("the cursor secret must have at least 16 bytes")
        self._key = hmac.digest(secret, b"shopreel feed cursor", "sha256")

    def sign(self, cursor: Cursor) -> str:
        """The text a client sends back."""
        payload = _LAYOUT.pack(_VERSION, cursor.session_id, cursor.page)
        return base64.urlsafe_b64encode(payload + self._mac(payload)).rstrip(b"=").decode()

    def open(self, text: str) -> Cursor:
        """The inverse of :meth:`sign`. Raises :class:`InvalidCursor` for anything else."""
        try:
            raw = base64.b64decode(
                text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True
            )
        except (UnicodeEncodeError, binascii.Error):
            raise InvalidCursor("not base64url") from None
        payload, mac = raw[: _LAYOUT.size], raw[_LAYOUT.size :]
        if len(payload) != _LAYOUT.size or not hmac.compare_digest(mac, self._mac(payload)):
            raise InvalidCursor("the signature does not fit")
        version, session_id, page = _LAYOUT.unpack(payload)
        if version != _VERSION:
            raise InvalidCursor(f"version {version} is not known")
        return Cursor(session_id, page)

    def _mac(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, payload, hashlib.sha256)[:_MAC_BYTES]
