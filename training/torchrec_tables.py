"""Embedding tables as TorchRec collections, placed by its planner over the ranks of a job.

The second implementation of ``models.embeddings.Tables``: the same start, the same lookups and, with the
optimizers of ``training.optimizers``, the same updates as ``PlainTables``. Importing this module takes
seconds; only jobs that need it do.

Axes: N videos or users, F bag features, D dimensions.
"""

import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.nn import functional as F
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import KernelConfig, PlannerError, TopologyFactory, TrainerConfig
from torchrec.distributed.types import ShardingPlan, ShardingType
from torchrec.optim import RowWiseAdagrad as FusedRowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from data.errors import ConfigError
from models.embeddings import FeatureBatch, draw_seed, initial_rows
from training.distributed import Ranks
from training.optimizers import ADAGRAD_EPSILON, Optimizers, build_adamw, dense_state
from training.placement import Task, UpdateRule, new_rows, renew, table_state

#: Share of a device's memory that the planner leaves to activations and the dense part.
RESERVED_SHARE = 0.15

# fbgemm's CPU operators bring their own backward pass, of which autograd is not told
warnings.filterwarnings("ignore", message="fbgemm::")
# TorchRec still uses what torch calls by another name from this release on
warnings.filterwarnings(
    "ignore", message=".*(ShardedTensor|_scatter_tensor|_gather_into_tensor)", category=FutureWarning
)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def to_jagged(features: FeatureBatch, names: list[str], size: int) -> KeyedJaggedTensor:
    """Bags as TorchRec wants them: all values feature by feature, and every bag's length.

    Two videos with tags {3, 5} and {} and creators {7} and {8}::

        bags     video_tags = ([3, 5], offsets [0, 2, 2]), video_creator = ([7, 8], offsets [0, 1, 2])
        jagged   keys [video_tags, video_creator], values [3, 5, 7, 8], lengths [2, 0, 1, 1]

    Features are padded with empty bags to ``size`` ≥ N, since TorchRec wants equally many on all ranks: with
    size 3 the lengths are [2, 0, 0, 1, 1, 0]. Invariant: ``len(lengths) == F · size`` and ``sum(lengths) ==
    len(values)``.
    """
    bags = [features.bags[name] for name in names]
    return KeyedJaggedTensor(
        keys=names,
        values=torch.cat([values for values, _ in bags]),
        lengths=torch.cat([F.pad(offsets.diff(), (0, size - features.size)) for _, offsets in bags]),
    )


class TorchRecTables(nn.Module):
    """One table per bag feature in one ``EmbeddingBagCollection``; without storage until it is placed.

    The collection sums and the mean is taken here: TorchRec 1.8 divides by a bag's length a second time
    where tables that are cut by rows stand beside others.
    """

    def __init__(self, rows: dict[str, int], dim: int, *, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks
        self.names = list(rows)
        self.dim = dim
        self.seeds = {name: draw_seed() for name in rows}
        tables = [
            EmbeddingBagConfig(
                name=name, feature_names=[name], num_embeddings=count, embedding_dim=dim,
                pooling=PoolingType.SUM,
            )
            for name, count in rows.items()
        ]  # fmt: skip
        self.collection = EmbeddingBagCollection(tables, device=torch.device("meta")) if rows else None
        self.nothing: Tensor
        self.register_buffer("nothing", torch.zeros(dim), persistent=False)

    def forward(self, features: FeatureBatch) -> Tensor:
        """See ``models.embeddings.Tables``. Collective: every rank looks up alike."""
        if torch.is_inference_mode_enabled():  # which fbgemm's training kernels do not know
            with torch.inference_mode(mode=False), torch.no_grad():
                return self.forward(features)
        if self.collection is None:
            return self.nothing.expand(features.size, -1)
        size = self.ranks.largest(features.size)
        jagged = to_jagged(features, self.names, size)
        pooled = self.collection(jagged)
        sum_NFD = pooled.values().view(size, len(self.names), self.dim)
        order: list[str] = pooled.keys()  # grouped by how tables are placed
        length_FN = torch.stack([jagged[name].lengths() for name in order])
        mean_NFD: Tensor = sum_NFD / length_FN.T.clamp_min(1)[..., None]
        return mean_NFD.sum(1)[: features.size]


class ShardedByTorchRec:
    """The ``Placement`` over several ranks: tables by ``DistributedModelParallel``, the rest averaged."""

    def __init__(self, task: Task, rule: UpdateRule, ranks: Ranks, device: torch.device) -> None:
        self.model = task.model
        self.further: dict[str, Tensor] = {}
        large = _fuse_large_tables(task.model, rule)
        cuda_state = [device] if device.type == "cuda" else []
        with _quiet(), torch.random.fork_rng(devices=cuda_state):  # TorchRec draws starts of its own
            self.plan = _plan(task, large, ranks, device)
            self._parallel = DistributedModelParallel(
                task, device=device, plan=self.plan, sharders=[_Sharder()]
            )
        _draw_tables(self.model)
        self._adamw = build_adamw(
            self.model, rule.learning_rate, rule.weight_decay, leave_out=large, table_decay=rule.table_decay
        )
        tables = [self._parallel.fused_optimizer] if large else []
        apart = [
            weight
            for name, weight in self.model.named_parameters()
            if plain_name(name).startswith(rule.unclipped)
        ]
        self.optimizers = Optimizers(self._adamw, *tables, average=rule.average, unclipped=apart)

    def loss(self, batch: Any) -> Tensor:
        """See ``Placement``."""
        loss: Tensor = self._parallel(batch)
        return loss

    def state(self) -> dict[str, Tensor]:
        """See ``Placement``."""
        names = {parameter: plain_name(name) for name, parameter in self.model.named_parameters()}
        state = {f"model.{name}": tensor for name, tensor in _weights(self.model).items()}
        state |= {f"optimizer.{name}": value for name, value in dense_state(self._adamw, names).items()}
        state |= {f"average.{names[weight]}": value for weight, value in self.optimizers.averages.items()}
        for key, own in self._parallel.fused_optimizer.state_dict()["state"].items():
            (total,) = own.values()
            state[f"optimizer.{plain_name(key.removeprefix('model.'))}.sum"] = total
        return state | self.further

    def renew_rows(self, table: str, rows: Tensor, draw: torch.Generator) -> None:
        """See ``Placement``: every rank draws all rows and keeps its own."""
        tensors = table_state(self.state(), table)
        fresh_RD = new_rows(rows, tensors[f"model.{table}"].size()[1], draw)
        for name, tensor in tensors.items():
            for offset, part in _local_parts(tensor):
                renew(name, part, offset, rows, fresh_RD)

    def weights(self) -> dict[str, Tensor]:
        """See ``Placement``: sharded tables are gathered one after another."""
        return {name: _whole(tensor) for name, tensor in _weights(self.model).items()}

    def describe(self) -> str:
        """See ``Placement``."""
        size = sum(tensor.size().numel() for tensor in _weights(self.model).values())
        kinds = Counter(
            table.sharding_type for module in self.plan.plan.values() for table in module.values()
        )
        placed = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(kinds.items()))
        return f"{size:,} parameters, tables: {placed or 'none'}"


def plain_name(name: str) -> str:
    """The name that a parameter has in the portable model."""
    return re.sub(r"\.collection\.embedding_bags\.(\w+)\.weight$", r".weights.\1", name)


class _Sharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]  # TorchRec is untyped
    """Cuts by rows on CPU as well, where the stock sharder does not offer it.

    Never by columns: row-wise Adagrad needs the whole row.
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [
            kind.value
            for kind in (ShardingType.DATA_PARALLEL, ShardingType.TABLE_WISE, ShardingType.ROW_WISE)
        ]


def _fuse_large_tables(model: nn.Module, rule: UpdateRule) -> set[str]:
    """Give large tables their optimizer (run within the backward pass); returns their parameter names."""
    large = {
        name: weight
        for name, weight in model.named_parameters()
        if plain_name(name) != name and weight.shape[0] > rule.dense_table_rows
    }
    if large:
        settings = {"lr": rule.table_learning_rate, "eps": ADAGRAD_EPSILON}
        apply_optimizer_in_backward(FusedRowWiseAdagrad, list(large.values()), settings)
    return set(large)


def _plan(task: Task, large: set[str], ranks: Ranks, device: torch.device) -> ShardingPlan:
    """The planner's choice; small tables are fixed to a copy per rank, so that AdamW can train them."""
    constraints = {}
    for path, tables in task.model.named_modules():
        if isinstance(tables, TorchRecTables):
            for name in tables.names:
                cut = f"{path}.collection.embedding_bags.{name}.weight" in large
                kinds = (
                    [ShardingType.TABLE_WISE, ShardingType.ROW_WISE] if cut else [ShardingType.DATA_PARALLEL]
                )
                kernel = EmbeddingComputeKernel.FUSED if cut else EmbeddingComputeKernel.DENSE
                constraints[name] = ParameterConstraints(
                    sharding_types=[kind.value for kind in kinds], compute_kernels=[kernel.value]
                )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cuda = device.type == "cuda"
    trainer = TrainerConfig(
        world_size=ranks.world,
        local_world_size=ranks.local_world,
        ddr_cap_bytes=memory // ranks.local_world,
        hbm_cap_bytes=torch.cuda.get_device_properties(device).total_memory if cuda else None,
    )
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            trainer, kernel_config=KernelConfig(compute_device=device.type)
        ),
        storage_reservation=FixedPercentageStorageReservation(RESERVED_SHARE),
        constraints=constraints,
        debug=False,
    )
    try:
        return planner.collective_plan(task, [_Sharder()])
    except PlannerError as error:
        raise ConfigError(
            f"the embedding tables do not fit into the memory of {ranks.world} processes "
            f"({str(error).splitlines()[0]}); use more of them, a smaller model.dim, or a smaller "
            "features.max_id_rows in prepare"
        ) from None


def _draw_tables(model: nn.Module) -> None:
    """Fill this rank's part of every table with the rows that ``PlainTables`` would start with."""
    seeds = {
        f"{path}.weights.{name}": seed
        for path, tables in model.named_modules()
        if isinstance(tables, TorchRecTables)
        for name, seed in tables.seeds.items()
    }
    weights = _weights(model)
    for name, seed in seeds.items():
        for offset, part in _local_parts(weights[name]):
            rows, dim = part.shape
            part.copy_(initial_rows(seed, offset, offset + rows, dim))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    with _quiet():
        return {
            plain_name(name): tensor.detach() if not isinstance(tensor, ShardedTensor) else tensor
            for name, tensor in model.state_dict().items()
        }


def _local_parts(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The parts of a table on this rank, each with the number of its first row."""
    if not isinstance(tensor, ShardedTensor):
        yield 0, tensor
        return
    for shard in tensor.local_shards():
        yield int(shard.metadata.shard_offsets[0]), shard.tensor.detach()


def _whole(tensor: Tensor) -> Tensor:
    """A table gathered on the lead; an empty tensor elsewhere. Collective."""
    if not isinstance(tensor, ShardedTensor):
        return tensor
    lead = torch.distributed.get_rank() == 0
    whole = torch.empty(tensor.size() if lead else 0)
    tensor.gather(dst=0, out=whole if lead else None)
    return whole


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep TorchRec's remarks about its own internals off the user's screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
