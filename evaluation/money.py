"""GMV of the top of each request, and how far the predictions promised too much.

Order values are in minor units of one currency; different currencies are never added.
"""

from collections.abc import Iterator

import numpy as np

from evaluation.arrays import Floats, Words, stack, sum_by
from evaluation.bootstrap import UserSums, user_sums
from evaluation.spool import Spool


def gmv_names(cutoffs: list[int]) -> list[str]:
    """``gmv@k``, ``gmv_share@k`` and ``gmv_bias@k`` for every cutoff."""
    return [f"{kind}@{k}" for k in cutoffs for kind in ("gmv", "gmv_share", "gmv_bias")]


def gmv_sums(
    source: Iterator[tuple[Words, Words, Words, Floats, Floats]], rows: int, cutoffs: list[int], seed: int
) -> tuple[UserSums, list[int]]:
    """Sums behind the metrics of ``gmv_names`` of (request, user, video, predicted, ordered) batches.

    Returned with the cutoffs that say something: those up to the longest request, at least the first.

    Within a request, videos are ordered by predicted order value, ties by the hash of the video's id
    (so that a constant prediction is a random order). ``gmv@k`` = mean over requests of the order value
    of the top ``k``, in minor units. ``gmv_share@k`` = the part of all order value that the top ``k``
    hold, in [0, 1]. ``gmv_bias@k`` = Σ (predicted − ordered) / Σ ordered over the top ``k``, 0 = honest,
    positive = promised too much (the winner's curse of choosing by a noisy prediction: Smith and
    Winkler, The optimizer's curse, 2006). Rows of unknown order value must be left out; no order at
    all gives NaN for share and bias.
    """
    tops: list[list[Floats]] = [[] for _ in range(3 * len(cutoffs))]
    bottoms: list[list[Floats]] = [[] for _ in range(3 * len(cutoffs))]
    users: list[Words] = []
    longest = 1
    with Spool(rows, [np.uint64, np.uint64, np.float64, np.float64]) as spool:
        for request_N, user_N, video_N, predicted_N, ordered_N in source:
            spool.append(request_N, user_N, video_N, predicted_N, ordered_N)
        for rows_of_requests in spool:
            order = np.lexsort((rows_of_requests[2], -rows_of_requests[3], rows_of_requests[0]))
            request_N, user_N, _, predicted_N, ordered_N = (column[order] for column in rows_of_requests)
            new_N = np.r_[True, request_N[1:] != request_N[:-1]]
            row_N = np.cumsum(new_N) - 1
            rank_N = np.arange(1, len(row_N) + 1) - np.flatnonzero(new_N)[row_N]
            requests = int(row_N[-1]) + 1
            longest = max(longest, int(rank_N.max()))
            users.append(user_N[new_N])
            whole_R = sum_by(row_N, ordered_N, requests)
            for column, k in enumerate(cutoffs):
                kept_N = rank_N <= k
                top_R = sum_by(row_N[kept_N], ordered_N[kept_N], requests)
                promised_R = sum_by(row_N[kept_N], predicted_N[kept_N], requests)
                for offset, (top, bottom) in enumerate(
                    [(top_R, np.ones(requests)), (top_R, whole_R), (promised_R - top_R, top_R)]
                ):
                    tops[3 * column + offset].append(top)
                    bottoms[3 * column + offset].append(bottom)
    none = np.zeros(0)
    user_R = np.unique(np.concatenate([np.zeros(0, np.uint64), *users]), return_inverse=True)[1].astype(
        np.int64
    )
    top_RM = stack([np.concatenate([none, *parts]) for parts in tops], len(user_R))
    bottom_RM = stack([np.concatenate([none, *parts]) for parts in bottoms], len(user_R))
    useful = [k for k in cutoffs if k <= longest] or cutoffs[:1]
    columns = 3 * len(useful)
    return user_sums(top_RM[:, :columns], user_R, seed, count_RM=bottom_RM[:, :columns]), useful
