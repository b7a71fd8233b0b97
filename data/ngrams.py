"""Words and pairs of neighbouring words of a text, as hashes, without a Python loop over texts."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.columns import offsets_of
from data.hashing import hash_spans, text_bytes

I64 = npt.NDArray[np.int64]

# Scripts written without spaces: every character is a word of its own, so pairs are bigrams.
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
_NOT_A_WORD = r"[^\p{L}\p{M}\p{N}]+"
_TEXTS_AT_ONCE = 50_000
#: Words of a text that are read: a transcript in the place of a title shall not be most of the work.
WORDS = 1000


def normalise(text: pa.Array) -> pa.Array:
    """Compatibility-normalised lower case words with one space between: "Café-Déco!" → "café déco"."""
    lowered = pc.utf8_lower(pc.utf8_normalize(text.cast(pa.string()).fill_null(""), form="NFKC"))
    spaced = pc.replace_substring_regex(lowered, pattern=_UNSPACED, replacement=r" \1 ")
    return pc.utf8_trim(pc.replace_substring_regex(spaced, pattern=_NOT_A_WORD, replacement=" "), " ")


def ngram_hashes(text: pa.Array, salt: int) -> tuple[npt.NDArray[np.uint64], I64]:
    """Hashes of all words, then of all pairs of neighbours, text by text, and offsets int64[n + 1].

    Of a text the first ``WORDS`` words. An empty or null text has none. ``"red shoe"`` gives the hashes of
    ``red``, ``shoe``, ``red shoe``.
    """
    hashes, lengths = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    for begin in range(0, len(text), _TEXTS_AT_ONCE):
        some = _ngrams(text.slice(begin, _TEXTS_AT_ONCE), salt)
        hashes.append(some[0])
        lengths.append(some[1])
    return np.concatenate(hashes), offsets_of(np.concatenate(lengths))


def _ngrams(text: pa.Array, salt: int) -> tuple[npt.NDArray[np.uint64], I64]:
    letters, offsets = text_bytes(normalise(text))
    # a word ends at a space or at the end of its text; texts without a word have neither
    space = np.flatnonzero(letters == ord(" "))
    filled = np.flatnonzero(np.diff(offsets))
    end = np.sort(np.concatenate([space, offsets[filled + 1]]))
    start = np.sort(np.concatenate([space + 1, offsets[filled]]))
    owner = np.searchsorted(offsets, start, side="right") - 1
    kept = np.arange(len(owner)) - np.searchsorted(owner, owner) < WORDS
    start, end, owner = start[kept], end[kept], owner[kept]
    paired = np.flatnonzero(owner[1:] == owner[:-1])
    starts = np.concatenate([start, start[paired]])
    ends = np.concatenate([end, end[paired + 1]])
    owners = np.concatenate([owner, owner[paired]])
    order = np.argsort(owners, kind="stable")
    hashes = hash_spans(letters, starts[order], ends[order], salt)
    return hashes, np.bincount(owners, minlength=len(text)).astype(np.int64)
