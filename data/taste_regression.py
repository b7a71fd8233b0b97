"""What a user is drawn to, read off the content of what was shown: a ridge regression per user.

A network that must learn how to read a history needs millions of impressions for it; this needs none. It
works wherever videos have vectors (``fixed_size_list`` columns, such as ``content_embedding``).

Axes: N catalogue rows, B requests, S steps, E content, R outcomes regressed on it.
"""

import numpy as np
import numpy.typing as npt

from data.features import EncodedTable, Side
from data.hashing import salt_of

F32 = npt.NDArray[np.float32]
#: Wider contents are projected onto so many random directions, which keeps angles roughly.
MAX_WIDTH = 48
#: Strength of the belief in no taste: the variance of an outcome over that of a taste's coefficient.
RIDGE = 16.0


def content_directions(videos: EncodedTable) -> F32:
    """Unit vectors ``[N, E]`` of all dense features together; zeros where a video has none."""
    parts = [videos.dense[name] for name in sorted(videos.dense)]
    if not parts:
        return np.zeros((videos.num_rows, 0), np.float32)
    joint = np.concatenate([_unit(part) for part in parts], axis=1)
    if joint.shape[1] > MAX_WIDTH:
        seed = salt_of(str(Side.video.value), str(joint.shape[1]))
        joint = joint @ np.random.default_rng(seed).standard_normal(
            (joint.shape[1], MAX_WIDTH), dtype=np.float32
        )
    return _unit(joint)


def taste_vectors(content_BSE: F32, residual_BSR: F32, length_B: npt.NDArray[np.int64]) -> F32:
    """``[B, R + 1, E]``: for every outcome the ridge coefficients of its residuals on what was shown, either
    less its mean over the steps, then that mean, drawn towards 0. Zeros from an empty history.

    A residual is an outcome less its expectation, 0 where unknown; the content of padding is zero.
    """
    across_BES = content_BSE.transpose(0, 2, 1)
    ones = np.ones((len(content_BSE), 1, content_BSE.shape[1]), np.float32)
    total_B1E, number_B11 = ones @ content_BSE, np.maximum(length_B, 1)[:, None, None].astype(np.float32)
    mean_BE1 = total_B1E.transpose(0, 2, 1) / number_B11
    gram_BEE = across_BES @ content_BSE - mean_BE1 @ total_B1E
    gram_BEE += RIDGE * np.eye(content_BSE.shape[2], dtype=np.float32)
    moment_BER = across_BES @ residual_BSR - mean_BE1 @ (ones @ residual_BSR)
    taste_BRE = np.linalg.solve(gram_BEE, moment_BER).transpose(0, 2, 1)
    shown_B1E = total_B1E / (number_B11 + RIDGE)
    out: F32 = np.concatenate([taste_BRE, shown_B1E], axis=1).astype(np.float32)
    return out


def _unit(vectors: F32) -> F32:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0), np.float32)
