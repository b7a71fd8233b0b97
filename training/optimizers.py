"""AdamW for the dense part and small tables, row-wise Adagrad for large tables, stepped as one."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Added to the root of row-wise Adagrad's sum; what fbgemm is told, too.
ADAGRAD_EPSILON = 1e-8
#: Steps between two updates of averaged weights, each a pass over them; every step at the beginning.
AVERAGE_EVERY, AVERAGE_EVERY_FROM = 8, 64


def build_adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    leave_out: Collection[str] = (),
    table_decay: tuple[str, float] = ("", 0.0),
) -> torch.optim.AdamW:
    """AdamW over all parameters but those named in ``leave_out``. Matrices of the dense part decay; norms and
    biases do not, nor do embedding tables but those whose names hold the first of ``table_decay``.
    """
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    decaying_tables: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if name in leave_out:
            continue
        if "tables" in name.split(".") or "embedding" in name:
            (decaying_tables if table_decay[1] and table_decay[0] in name else keep).append(parameter)
        else:
            (decay if parameter.ndim >= 2 else keep).append(parameter)
    parts = [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]
    if decaying_tables:
        parts.append({"params": decaying_tables, "weight_decay": table_decay[1]})
    return torch.optim.AdamW(parts, lr=learning_rate, betas=(0.9, 0.98), fused=True)


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one sum per row, on tables ``[rows, D]`` with sparse gradients.

    With ``g`` the gradient of a row, all its lookups of the step added up: ``sum += mean(g²)``, then
    ``row -= rate · g / (√sum + ε)``. Only touched rows change. The same as fbgemm's
    EXACT_ROWWISE_ADAGRAD, so that one process and sharded tables agree. Source: Gupta et al. 2014, with
    one step size per row as in the DLRM of Naumov et al. 2019.
    """

    def __init__(self, tables: Iterable[nn.Parameter], learning_rate: float) -> None:
        super().__init__(tables, {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the rows that the last backward pass touched."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                rows, gradient_RD = gradient_by_row(table.grad)
                total = self.total_of(table)
                sum_R = total[rows] + torch.linalg.vector_norm(gradient_RD, dim=1).square_() / table.shape[1]
                total[rows] = sum_R
                gradient_RD /= (sum_R.sqrt_() + ADAGRAD_EPSILON)[:, None]
                update = torch.sparse_coo_tensor(
                    rows[None], gradient_RD, table.shape, is_coalesced=True, check_invariants=False
                )
                table.add_(update, alpha=-group["lr"])

    def total_of(self, table: nn.Parameter) -> Tensor:
        """The sums of a table's rows ``[rows]``, zeros before its first step."""
        state: dict[str, Tensor] = self.state[table]
        if "sum" not in state:
            state["sum"] = torch.zeros(table.shape[0], device=table.device)
        return state["sum"]


def gradient_by_row(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The touched rows ``[R]``, ascending, and the sum of each one's gradients ``[R, D]``.

    What ``coalesce`` gives, in a quarter of its time on CPU: the sums are a pooled lookup in the gradients,
    which reads each once.
    """
    row_L, order_L = gradient._indices()[0].sort(stable=True)
    rows, count_R = torch.unique_consecutive(row_L, return_counts=True)
    starts = F.pad(count_R.cumsum(0), (1, 0))
    return rows, F.embedding_bag(order_L, gradient._values(), starts, mode="sum", include_last_offset=True)


class Optimizers:
    """The optimizer of dense gradients and, where there are large tables, theirs; stepped as one.

    With an ``average`` in (0, 1) what the dense optimizer trains also has an exponential average over steps
    that forgets ``1 − average`` a step; large tables have none. ``unclipped`` parameters neither count in the
    norm of :meth:`clip` nor are scaled by it.
    """

    def __init__(
        self, dense: torch.optim.Optimizer, *tables: torch.optim.Optimizer, average: float = 0.0,
        unclipped: Collection[nn.Parameter] = (),
    ) -> None:  # fmt: skip
        self.dense = dense
        self.average = average
        apart = set(unclipped)
        self.clipped = [w for group in dense.param_groups for w in group["params"] if w not in apart]
        weights = [weight for group in dense.param_groups for weight in group["params"]] if average else []
        self.averages: dict[nn.Parameter, Tensor] = {weight: weight.detach().clone() for weight in weights}
        self.all = (dense, *tables)
        self.peaks = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in self.all]

    def begin_step(self, factor: float) -> None:
        """Set learning rates to ``factor`` times those at construction, and forget gradients.

        To be called before the forward pass: fused tables take their learning rate there, and are updated
        within the backward pass.
        """
        for optimizer, peaks in zip(self.all, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.zero_grad(set_to_none=True)

    def clip(self, norm: float) -> Tensor:
        """Scale the dense gradients down to ``norm``; returns their norm before.

        Large tables take no part: row-wise Adagrad divides by the size of gradients anyway.
        """
        return nn.utils.clip_grad_norm_(self.clipped, norm)

    def step(self) -> None:
        """Apply the gradients."""
        for optimizer in self.all:
            optimizer.step()

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the averages towards the weights after so many steps; early on they follow closely."""
        every = AVERAGE_EVERY if step >= AVERAGE_EVERY_FROM else 1
        if step % every:
            return
        kept = min(self.average, (1 + step) / (10 + step)) ** every
        for weight, average in self.averages.items():
            average.lerp_(weight, 1 - kept)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model has its averaged weights in place of those of the last step."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in self.averages.items():
            last = weight.clone()
            weight.copy_(average)
            average.copy_(last)


def dense_state(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, Tensor]:
    """AdamW's state as live tensors, named ``<parameter>.<state>``; made where it does not exist yet."""
    state = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            own = optimizer.state[parameter]
            if not own:
                own["step"] = torch.zeros((), device=parameter.device)  # where fused AdamW counts
                own["exp_avg"], own["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            for key, value in own.items():
                state[f"{names[parameter]}.{key}"] = value
    return state


def warmup(steps: int, decay_steps: int = 0) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear from 0 to 1 over ``steps``, then 1; times half a cosine
    from 1 to 0 over ``decay_steps`` where those are given.
    """

    def factor(step: int) -> float:
        rising = min(1.0, (step + 1) / max(steps, 1))
        falling = 0.5 * (1.0 + math.cos(math.pi * min(step / decay_steps, 1.0))) if decay_steps else 1.0
        return rising * falling

    return factor
