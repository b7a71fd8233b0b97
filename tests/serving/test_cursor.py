"""Nobody but the server can make a cursor, and what it made comes back unchanged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cursor import MAX_PAGE, Cursor, CursorSigner, InvalidCursor

CURSORS = st.builds(Cursor, st.binary(min_size=16, max_size=16), st.integers(0, MAX_PAGE))
SIGNER = CursorSigner(b"0123456789abcdef")


@given(CURSORS)
def test_a_cursor_comes_back(cursor: Cursor) -> None:
    text = SIGNER.sign(cursor)
    assert SIGNER.open(text) == cursor
    assert len(text) == 50
    assert text.replace("-", "").replace("_", "").isalnum()


@given(CURSORS, st.integers(0, 10**6), st.integers(1, 255))
def test_no_changed_byte_is_accepted(cursor: Cursor, place: int, change: int) -> None:
    import base64

    raw = bytearray(base64.urlsafe_b64decode(SIGNER.sign(cursor) + "=="))
    raw[place % len(raw)] ^= change
    with pytest.raises(InvalidCursor):
        SIGNER.open(base64.urlsafe_b64encode(bytes(raw)).decode())


@given(CURSORS, st.binary(min_size=16, max_size=40))
def test_another_secret_is_not_accepted(cursor: Cursor, secret: bytes) -> None:
    if secret != b"0123456789abcdef":
        with pytest.raises(InvalidCursor):
            SIGNER.open(CursorSigner(secret).sign(cursor))


@given(st.text(max_size=80) | st.text("ABCabc012-_=", max_size=60))
def test_junk_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursor):
        SIGNER.open(text)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        CursorSigner(b"short")
