"""Where the parameters of a model live while it trains: whole in this process, or cut over several.

The loop, the checkpoints and the portable model see a :class:`Placement` and need not know which.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.embeddings import INITIAL_STD, PlainTables, TablesFactory
from training.distributed import ALONE, Ranks
from training.optimizers import Optimizers, RowWiseAdagrad, build_adamw, dense_state


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRule:
    """How parameters learn. Tables of up to ``dense_table_rows`` rows and the dense part: AdamW at
    ``learning_rate``, a copy on every rank. Larger tables: row-wise Adagrad at ``table_learning_rate`` on the
    touched rows, each row on one rank. ``average``: see :class:`training.optimizers.Optimizers`; gradients of
    parameters whose names begin with one of ``unclipped`` are left as they are. Embedding tables do not decay
    but those whose names hold the first of ``table_decay``, by the second.
    """

    learning_rate: float
    weight_decay: float
    dense_table_rows: int
    table_learning_rate: float
    average: float = 0.0
    unclipped: tuple[str, ...] = ()
    table_decay: tuple[str, float] = ("", 0.0)


class Task(nn.Module):
    """The loss of a batch as one forward pass, which is the unit that data parallelism wraps.

    ``loss`` gives the weighted mean over the batch's positives (``target_weight_P``). With several ranks the
    gradient is averaged over them, so each scales its own mean by its share of all ranks' weight: the
    average is then the weighted mean over all ranks' positives.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any], Tensor],
        ranks: Ranks = ALONE,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """``around`` makes the context of a forward pass: its precision."""
        super().__init__()
        self.model = model
        self._loss = loss
        self._ranks = ranks
        self._around = around

    def forward(self, batch: Any) -> Tensor:
        """Scalar; its mean over ranks is the loss of the whole batch."""
        with self._around():
            loss = self._loss(batch)
        if self._ranks.world == 1:
            return loss
        weight = float(batch.target_weight_P.sum())
        return loss * (weight * self._ranks.world / self._ranks.sum([weight])[0])


class Placement(Protocol):
    """A model under training. ``loss`` is :class:`Task` 's, with gradients averaged over ranks."""

    optimizers: Optimizers
    #: Further live tensors that belong to :meth:`state`, equal on all ranks.
    further: dict[str, Tensor]

    def loss(self, batch: Any) -> Tensor:
        """Loss of a batch."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that training changes, as live tensors: copying into them restores it.

        Names are those of the portable model, ``model.<parameter>`` and ``optimizer.<parameter>.<state>``;
        where a tensor is cut over ranks its value is a ``ShardedTensor``.
        """
        ...

    def renew_rows(self, table: str, rows: Tensor, draw: torch.Generator) -> None:
        """Make ``rows`` int64 ``[R]`` of a table, by its portable name, as if they had never trained: new
        weights from ``draw``, equal however the table is cut, and no state of the optimizer.
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """The portable model's weights; whole on the lead, anything on other ranks. Collective."""
        ...

    def describe(self) -> str:
        """One line: how many parameters, and where the tables are."""
        ...


class OneProcess:
    """The :class:`Placement` with everything in this process and ``PlainTables``."""

    def __init__(self, task: Task, rule: UpdateRule) -> None:
        self.task = task
        self.further: dict[str, Tensor] = {}
        self.loss: Callable[[Any], Tensor] = task
        sparse = {
            f"{path}.weights.{name}": tables.weights[name]
            for path, tables in task.model.named_modules()
            if isinstance(tables, PlainTables)
            for name in tables.names
            if name in tables.sparse
        }
        self._sparse = sparse
        self._adamw = build_adamw(
            task.model, rule.learning_rate, rule.weight_decay, leave_out=sparse, table_decay=rule.table_decay
        )
        self._adagrad = RowWiseAdagrad(sparse.values(), rule.table_learning_rate) if sparse else None
        tables = [self._adagrad] if self._adagrad else []
        apart = [weight for name, weight in task.model.named_parameters() if name.startswith(rule.unclipped)]
        self.optimizers = Optimizers(self._adamw, *tables, average=rule.average, unclipped=apart)

    def state(self) -> dict[str, Tensor]:
        """See :class:`Placement`."""
        names = {parameter: name for name, parameter in self.task.model.named_parameters()}
        state = {f"model.{name}": tensor for name, tensor in self.task.model.state_dict().items()}
        state |= {f"optimizer.{name}": value for name, value in dense_state(self._adamw, names).items()}
        state |= {f"average.{names[weight]}": value for weight, value in self.optimizers.averages.items()}
        if self._adagrad is not None:
            for name, table in self._sparse.items():
                state[f"optimizer.{name}.sum"] = self._adagrad.total_of(table)
        return state | self.further

    def renew_rows(self, table: str, rows: Tensor, draw: torch.Generator) -> None:
        """See :class:`Placement`."""
        fresh_RD = new_rows(rows, self.task.model.get_parameter(table).shape[1], draw)
        for name, tensor in table_state(self.state(), table).items():
            renew(name, tensor, 0, rows, fresh_RD)

    def weights(self) -> dict[str, Tensor]:
        """See :class:`Placement`."""
        weights: dict[str, Tensor] = self.task.model.state_dict()
        return weights

    def describe(self) -> str:
        """See :class:`Placement`."""
        return f"{sum(parameter.numel() for parameter in self.task.model.parameters()):,} parameters"


def table_state(state: dict[str, Tensor], table: str) -> dict[str, Tensor]:
    """Of a placement's state what has a row for each row of a table: weights, averages, optimizer state."""
    named = {f"model.{table}", f"average.{table}"}
    return {
        name: tensor
        for name, tensor in state.items()
        if (name in named or name.startswith(f"optimizer.{table}.")) and len(tensor.size()) > 0
    }


def new_rows(rows: Tensor, dim: int, draw: torch.Generator) -> Tensor:
    """Weights ``[R, dim]`` for rows that begin anew, spread as those of a new table."""
    return torch.randn(len(rows), dim, generator=draw) * INITIAL_STD


@torch.no_grad()
def renew(name: str, part: Tensor, offset: int, rows: Tensor, fresh_RD: Tensor) -> None:
    """Renew those of ``rows`` that lie in ``part``: rows ``offset`` … of what the state calls ``name``."""
    inside = (rows >= offset) & (rows < offset + len(part))
    own = (rows[inside] - offset).to(part.device)
    part[own] = 0.0 if name.startswith("optimizer.") else fresh_RD[inside].to(part.device)


def tables_factory(ranks: Ranks, *, sharded: bool, dense_table_rows: int) -> TablesFactory:
    """What makes the tables of a model that :func:`place` then places."""
    if not sharded:
        return partial(PlainTables, dense_rows=dense_table_rows)
    from training.torchrec_tables import TorchRecTables

    return partial(TorchRecTables, ranks=ranks)


def place(task: Task, rule: UpdateRule, ranks: Ranks, device: torch.device, *, sharded: bool) -> Placement:
    """Move the parameters of ``task`` to where they train and build their optimizers.

    ``sharded`` is what the model's :func:`tables_factory` was told; it needs ``ranks.grouped``.
    """
    if not sharded:
        return OneProcess(task.to(device), rule)
    from training.torchrec_tables import ShardedByTorchRec

    return ShardedByTorchRec(task, rule, ranks, device)
