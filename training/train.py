"""``shopreel train``: prepared data → a trained model, its checkpoints and its metrics.

Joins the other processes of the job, opens the data and hands over to what trains the model asked for.
"""

import sys

from data.errors import ConfigError
from data.locations import only_local
from data.prepared import Prepared
from training.baselines import train_baseline
from training.config import BaselineConfig, TableKind, TrainConfig, TwoTowerConfig
from training.distributed import RankLostError, open_ranks
from training.process import wants_cuda
from training.ranking import train_ranker
from training.ranking_config import RankerConfig
from training.two_tower import train_two_tower

CONFIG = TrainConfig


def run(config: TrainConfig) -> int:
    """Train the configured model; 1 where the job lost one of its processes, else 0."""
    only_local("out", config.out)
    connect, cuda = config.tables is TableKind.torchrec, wants_cuda(config.device)
    try:
        with open_ranks(connect=connect, cuda=cuda, timeout_minutes=config.timeout_minutes) as ranks:
            prepared = Prepared.open(config.prepared)
            match config.model:
                case TwoTowerConfig():
                    train_two_tower(config, config.model, prepared, ranks)
                case _ if ranks.world > 1:
                    raise ConfigError(
                        f"model={config.model.name} trains in one process; start it without torchrun"
                    )
                case RankerConfig():
                    train_ranker(config, config.model, prepared)
                case BaselineConfig():
                    train_baseline(config, config.model, prepared)
                case _:
                    raise ConfigError(f"model={config.model.name}: no such model")
    except RankLostError as lost:
        print(f"shopreel train: {lost}", file=sys.stderr)
        return 1
    return 0
