"""Brute force on a CUDA device: finds candidates there, and answers exactly as ``serving.exact`` does.

Axes: N catalogue rows, D dimensions, B users, M candidates found.
"""

from collections.abc import Sequence

import numpy as np
import torch

from models.devices import to_device
from serving.exact import NO_HITS, ExactSearch, Hits, Mask, Rows, Vectors, best_first, pair_scores

#: Scores held at once (1 GiB).
SCORES_AT_ONCE = 1 << 28
#: Found beyond ``k``: where the last of them is clearly worse than the k-th, no other can be better.
SPARE = 28


class DeviceExactSearch:
    """As :class:`serving.exact.ExactSearch`, with a copy of ``vectors_ND`` on ``device``."""

    def __init__(self, vectors_ND: Vectors, device: torch.device) -> None:
        self.vectors_ND = vectors_ND
        self.device = device
        self._on_cpu = ExactSearch(vectors_ND)
        self._vectors_ND = to_device(np.asarray(vectors_ND, np.float32), device)

    @torch.inference_mode()
    def search(
        self,
        user_BD: Vectors,
        k: int,
        *,
        exclude: Sequence[Rows] | None = None,
        eligible: Mask | None = None,
    ) -> list[Hits]:
        """See :meth:`serving.exact.ExactSearch.search`: the same rows and the same scores."""
        count = len(self.vectors_ND)
        if k < 1 or count < 2:
            return [NO_HITS] * len(user_BD)
        hidden_N = None if eligible is None else ~to_device(np.asarray(eligible, bool), self.device)
        hits: list[Hits] = []
        block = max(1, SCORES_AT_ONCE // count)
        for start in range(0, len(user_BD), block):
            part_BD = np.asarray(user_BD[start : start + block], np.float32)
            unwanted = None if exclude is None else exclude[start : start + len(part_BD)]
            hits += self._block(part_BD, k, unwanted, hidden_N, eligible)
        return hits

    def slack(self, user_BD: Vectors) -> Vectors:
        """See :meth:`serving.exact.ExactSearch.slack`."""
        return self._on_cpu.slack(user_BD)

    def _block(
        self, user_BD: Vectors, k: int, exclude: Sequence[Rows] | None, hidden_N: torch.Tensor | None,
        eligible: Mask | None,
    ) -> list[Hits]:  # fmt: skip
        count = len(self.vectors_ND)
        score_BN = to_device(user_BD, self.device) @ self._vectors_ND.T
        score_BN[:, 0] = float("-inf")
        if hidden_N is not None:
            score_BN.masked_fill_(hidden_N, float("-inf"))
        if exclude is not None:
            row = np.concatenate(exclude) if len(exclude) else np.empty(0, np.int64)
            user = np.repeat(np.arange(len(exclude)), [len(rows) for rows in exclude])
            inside = (row >= 0) & (row < count)
            score_BN[to_device(user[inside], self.device), to_device(row[inside], self.device)] = float(
                "-inf"
            )
        score_BM, row_BM = score_BN.topk(min(k + SPARE, count), dim=1)
        found_BM, rows_BM = score_BM.cpu().numpy(), row_BM.cpu().numpy()
        slack_B = self.slack(user_BD)
        hits = []
        for place, (user_D, found, rows) in enumerate(zip(user_BD, found_BM, rows_BM, strict=True)):
            if len(rows) < count and np.isfinite(found[-1]) and found[-1] >= found[k - 1] - slack_B[place]:
                # more near the k-th than were fetched: many equal videos
                unwanted = None if exclude is None else [exclude[place]]
                hits += self._on_cpu.search(user_D[None], k, exclude=unwanted, eligible=eligible)
                continue
            kept = rows[np.isfinite(found)]
            hits.append(best_first(kept, pair_scores(self.vectors_ND[kept], user_D), k))
        return hits
