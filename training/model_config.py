"""What the configuration of every trained model has."""

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """What every ``model=…`` group has."""

    name: str = MISSING


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW, and row-wise Adagrad for large tables, after a linear warm-up; see ``training.placement``."""

    learning_rate: float = MISSING
    weight_decay: float = MISSING
    dense_table_rows: int = MISSING
    table_learning_rate: float = MISSING
    warmup_steps: int = MISSING
    clip_norm: float = MISSING

    def __post_init__(self) -> None:
        if min(self.learning_rate, self.table_learning_rate, self.clip_norm) <= 0:
            raise ValueError(
                "model.optimizer: learning_rate, table_learning_rate and clip_norm must be above 0"
            )
