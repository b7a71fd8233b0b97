"""The ranker's per-candidate part as recorded CUDA graphs: one launch in place of some fifty.

A graph has fixed shapes and addresses, so requests are padded to the next size and share buffers. What is
padded is masked (steps) or cut off (candidates, each of which is scored on its own anyway).

Axes: K candidates, S history steps, as in ``models.ranker``.
"""

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from models.ranker import Ranker, Scores, UserState

#: The smallest sizes recorded; each further one is twice the last. Larger requests run unrecorded.
FEWEST_CANDIDATES, FEWEST_STEPS = 64, 16
MOST_CANDIDATES, MOST_STEPS = 16_384, 1_024


@dataclass(slots=True)
class _Recorded:
    """A graph, the buffers it reads, and what it leaves."""

    graph: torch.cuda.CUDAGraph
    user: UserState
    video_1KV: Tensor
    statistics_1KG: Tensor
    scores: Scores


class GraphedScorer:
    """``model.score`` for one request at a time; safe to call from several threads.

    The weights may change in place, the model must stay on its device and in eval mode.
    """

    def __init__(self, model: Ranker) -> None:
        self.model = model
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        self._lock = threading.Lock()

    def score(self, user: UserState, video_BKV: Tensor, statistics_BKG: Tensor) -> Scores:
        """What ``model.score`` says, to rounding."""
        (requests, candidates), steps = video_BKV.shape[:2], user.valid_BS.shape[1]
        if requests != 1 or not 0 < candidates <= MOST_CANDIDATES or steps > MOST_STEPS:
            return self.model.score(user, video_BKV, statistics_BKG)
        size = _size(candidates, FEWEST_CANDIDATES), _size(steps, FEWEST_STEPS)
        with self._lock, torch.inference_mode():
            if size not in self._recorded:
                self._recorded[size] = self._record(*size, user, video_BKV, statistics_BKG)
            recorded = self._recorded[size]
            _fill(recorded, user, video_BKV, statistics_BKG)
            recorded.graph.replay()
            heads = recorded.scores
            return Scores(
                heads.task_BKT[:, :candidates].clone(),
                None if heads.watch_BKE is None else heads.watch_BKE[:, :candidates].clone(),
                None if heads.order_BK2 is None else heads.order_BK2[:, :candidates].clone(),
            )

    def _record(
        self, candidates: int, steps: int, user: UserState, video_1KV: Tensor, statistics_1KG: Tensor
    ) -> _Recorded:
        memory = user.memory_BSE
        buffers = UserState(
            torch.zeros_like(user.vector_BD), torch.zeros_like(user.first_BW),
            torch.zeros_like(user.linear_BT), memory.new_zeros(1, steps + 1, memory.shape[2]),
            user.valid_BS.new_zeros(1, steps), torch.zeros_like(user.taste_BHD),
            torch.zeros_like(user.order_mean_B),
        )  # fmt: skip
        video = video_1KV.new_zeros(1, candidates, video_1KV.shape[2])
        statistics = statistics_1KG.new_zeros(1, candidates, statistics_1KG.shape[2])
        aside = torch.cuda.Stream(device=video.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(video.device))
        with torch.cuda.stream(aside):
            for _ in range(3):  # libraries choose their kernels and take their memory before recording
                self.model.score(buffers, video, statistics)
        torch.cuda.current_stream(video.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            scores = self.model.score(buffers, video, statistics)
        return _Recorded(graph, buffers, video, statistics, scores)


def _size(wanted: int, fewest: int) -> int:
    """The smallest of ``fewest``, twice that, four times that, … with room for ``wanted``."""
    size = fewest
    while size < wanted:
        size *= 2
    return size


def _fill(recorded: _Recorded, user: UserState, video_1KV: Tensor, statistics_1KG: Tensor) -> None:
    """Put a request into the buffers; the empty step stays the last of the memory."""
    steps, candidates, own = user.valid_BS.shape[1], video_1KV.shape[1], recorded.user
    own.vector_BD.copy_(user.vector_BD)
    own.first_BW.copy_(user.first_BW)
    own.linear_BT.copy_(user.linear_BT)
    own.taste_BHD.copy_(user.taste_BHD)
    own.order_mean_B.copy_(user.order_mean_B)
    own.memory_BSE[:, :steps].copy_(user.memory_BSE[:, :steps])
    own.memory_BSE[:, -1].copy_(user.memory_BSE[:, -1])
    own.valid_BS[:, :steps].copy_(user.valid_BS)
    own.valid_BS[:, steps:].zero_()
    recorded.video_1KV[:, :candidates].copy_(video_1KV)
    recorded.statistics_1KG[:, :candidates].copy_(statistics_1KG)
