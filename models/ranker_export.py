"""The ranker's per-candidate part compiled ahead of time (AOTInductor), where there is a C++ compiler.

What is compiled belongs to the machine and the torch release that compiled it, so it is no part of a
bundle. The eager model stays the definition; a test holds the two together.

Axes: K candidates, S history steps, V video vector, G statistics.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from models.ranker import Ranker, Scores, UserState

#: More candidates or steps than these are scored by the eager model.
MAX_CANDIDATES, MAX_STEPS = 16_384, 4_096


class CandidatePart(nn.Module):
    """:meth:`models.ranker.Ranker.score` with tensors in and out, for one request."""

    def __init__(self, model: Ranker) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, vector_1D: Tensor, first_1W: Tensor, linear_1T: Tensor, memory_1SE: Tensor, valid_1S: Tensor,
        taste_1HD: Tensor, order_mean_1: Tensor, video_1KV: Tensor, statistics_1KG: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Task logits, then the watch and order heads as far as the model has them."""
        user = UserState(vector_1D, first_1W, linear_1T, memory_1SE, valid_1S, taste_1HD, order_mean_1)
        scores = self.model.score(user, video_1KV, statistics_1KG)
        heads = (scores.task_BKT, scores.watch_BKE, scores.order_BK2)
        return tuple(head for head in heads if head is not None)


def can_export() -> bool:
    """Whether this machine has the compiler that AOTInductor calls."""
    return shutil.which("g++") is not None or shutil.which("c++") is not None


def export_scorer(model: Ranker, file: Path) -> None:
    """Compile ``model`` (in eval mode, on the CPU) into the package ``file``, which must end in ``.pt2``.

    Takes a minute of one core. Raises ``RuntimeError`` where the compiler is missing or fails.
    """
    if not can_export():
        raise RuntimeError("no C++ compiler on the path; the eager ranker needs none")
    shape = model.shape
    steps, candidates = 7, 11
    example = (
        torch.zeros(1, shape.dim), torch.zeros(1, shape.width), torch.zeros(1, len(shape.tasks)),
        torch.zeros(1, steps + 1, 2 * shape.dim), torch.ones(1, steps, dtype=torch.bool),
        torch.zeros(1, shape.tastes, shape.dim), torch.zeros(int(shape.order_value)),
        torch.zeros(1, candidates, model.videos.width + shape.dim),
        torch.zeros(1, candidates, shape.candidate_statistics),
    )  # fmt: skip
    step = Dim("steps", min=2, max=MAX_STEPS)
    candidate = {1: Dim("candidates", min=2, max=MAX_CANDIDATES)}
    program = torch.export.export(
        CandidatePart(model).eval(), example,
        dynamic_shapes=(None, None, None, {1: step + 1}, {1: step}, None, None, candidate, candidate),
    )  # fmt: skip
    torch._inductor.aoti_compile_and_package(program, package_path=str(file))


class ExportedScorer:
    """A package of :func:`export_scorer` at work; shapes that it was not made for go to the eager model."""

    def __init__(self, model: Ranker, file: Path) -> None:
        self.model = model
        self._run: Callable[..., list[Tensor]] = torch._inductor.aoti_load_package(str(file))

    def score(self, user: UserState, video_BKV: Tensor, statistics_BKG: Tensor) -> Scores:
        """What ``model.score`` says, to rounding."""
        (requests, candidates), steps = video_BKV.shape[:2], user.valid_BS.shape[1]
        if requests != 1 or not 2 <= candidates <= MAX_CANDIDATES or not 2 <= steps <= MAX_STEPS:
            return self.model.score(user, video_BKV, statistics_BKG)
        state = (user.vector_BD, user.first_BW, user.linear_BT, user.memory_BSE, user.valid_BS,
                 user.taste_BHD, user.order_mean_B)  # fmt: skip
        heads = list(self._run(*state, video_BKV, statistics_BKG))
        task = heads.pop(0)
        watch = heads.pop(0) if self.model.watch_out is not None else None
        return Scores(task, watch, heads.pop(0) if self.model.order_out is not None else None)
