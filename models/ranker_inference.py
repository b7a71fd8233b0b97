"""A trained ranker at work: per request once, then any number of candidates, each on its own.

The same code scores batches of logged impressions (validation, predictions) and candidates at serving.
Axes: B requests, K candidates, T tasks, N catalogue rows.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from data.features import EncodedTable
from data.history import UserRequest
from data.ranking_features import Requests
from data.ranking_loader import RankingBatch, RankingFeatures
from models.calibration import Calibration
from models.devices import to_device
from models.embeddings import FeatureBatch
from models.heads import expected_order_value, log_probabilities
from models.ranker import Ranker, Scores, UserState
from models.ranker_export import ExportedScorer
from models.ranker_graph import GraphedScorer
from models.ranker_portable import RankerParts
from models.sequence import Steps
from models.value import ValueFormula
from models.watch import expected_watch_ms, median_watch_ms

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PreparedUser:
    """What :meth:`RankerScorer.prepare_user` computed once for a request."""

    requests: Requests
    outcome_BSC: F32
    state: UserState


@dataclass(frozen=True, slots=True)
class Predictions:
    """K candidates: calibrated ``probabilities`` [K] per task, expected ``watch_ms`` and
    ``order_value_minor`` (that times the chance of a purchase), None without the head; ``value`` [K].
    """

    probabilities: dict[str, F32]
    watch_ms: F32 | None
    order_value_minor: F32 | None
    value: F32


class RankerScorer:
    """Scores candidates; safe to call from several threads. ``value`` may be replaced while serving."""

    def __init__(
        self, parts: RankerParts, video_table: EncodedTable, user_table: EncodedTable, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.model: Ranker = parts.model.to(self.device)
        self._network: Ranker | GraphedScorer | ExportedScorer = (
            GraphedScorer(self.model) if self.device.type == "cuda" else self.model
        )
        self.features: RankingFeatures = parts.features
        self.watch_bins = parts.watch_bins
        self.calibration: Calibration = parts.calibration
        self.value: ValueFormula = parts.value
        self.user_table = user_table
        with torch.inference_mode():
            chunks = [
                self.model.encode_videos(
                    FeatureBatch.of(video_table.take(np.arange(at, min(at + 8192, video_table.num_rows)))).to(
                        self.device
                    )
                )
                for at in range(0, video_table.num_rows, 8192)
            ]
            self.video_ND = torch.cat(chunks)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that have a head, in contract order."""
        return self.model.shape.tasks

    def use_exported(self, file: Path) -> None:
        """Score by the package that :func:`models.ranker_export.export_scorer` made of this model."""
        self._network = ExportedScorer(self.model, file)

    def prepare_user(self, request: UserRequest, market: int = 0) -> PreparedUser:
        """The per-user part; ``market`` is a row of the bundle's markets, 0 unknown."""
        return self._prepare(Requests.of([request], [market], self.features.spec.max_steps))

    def score(self, user: PreparedUser, rows: I64) -> Predictions:
        """Predictions for catalogue ``rows`` [K] (row 0: the unknown video), order kept; K may be 0."""
        rows = np.ascontiguousarray(rows, np.int64)
        statistics = self.features.candidates(user.requests, user.outcome_BSC, rows[None])
        scores = self._score(user, rows[None], statistics)
        return self._finish(scores, rows, np.repeat(user.requests.market, len(rows)))

    def predict(self, batch: RankingBatch) -> Predictions:
        """Predictions ``[B]`` of logged impressions: what :meth:`score` says of each."""
        return self._finish(self._score_logged(batch), batch.video_B, batch.requests.market)

    def _finish(self, scores: Scores, rows_E: I64, market_E: I64) -> Predictions:
        raw_ET, watch, order = self._read(scores, rows_E)
        p_ET = self.calibration.apply(raw_ET, market_E, self.model.shape.parents).astype(np.float32)
        probabilities = {task: p_ET[:, place] for place, task in enumerate(self.tasks)}
        if order is not None and "purchase" in probabilities:
            factor_M = np.array(self.calibration.order_factor, np.float32)
            order = order * probabilities["purchase"] * factor_M[market_E]
        return Predictions(
            probabilities, watch, order, self.value.of(probabilities, watch, order, len(rows_E))
        )

    def raw(self, batch: RankingBatch) -> npt.NDArray[np.float64]:
        """Probabilities ``[B, T]`` of logged impressions before calibration."""
        return self._read(self._score_logged(batch), batch.video_B)[0]

    def raw_order_value(self, batch: RankingBatch) -> npt.NDArray[np.float64]:
        """Expected order value ``[B]`` given a purchase, uncalibrated; the model must have that head."""
        order = self._read(self._score_logged(batch), batch.video_B)[2]
        assert order is not None
        return order.astype(np.float64)

    @torch.inference_mode()
    def median_watch_ms(self, batch: RankingBatch) -> F32 | None:
        """Median watch time ``[B]`` of logged impressions, ms; None without a watch head."""
        scores = self._score_logged(batch)
        if scores.watch_BKE is None or self.watch_bins is None:
            return None
        group_B = self.watch_bins.group(self.features.keys.duration_ms[batch.video_B])
        edge, mean = (
            torch.from_numpy(table[group_B]).float()
            for table in (self.watch_bins.edge_ms, self.watch_bins.mean_ms)
        )
        out: F32 = median_watch_ms(scores.watch_BKE[:, 0].float().cpu(), edge, mean).numpy()
        return out

    @torch.inference_mode()
    def _prepare(self, requests: Requests) -> PreparedUser:
        outcome, statistics = self.features.user(requests)
        features = FeatureBatch.of(self.user_table.take(requests.user_row)).to(self.device)
        newest = requests.newest(self.model.shape.attention_steps)
        state = encode_requests(
            self.model, newest, newest.video, self.video_ND, statistics, features,
            hour=self.features.spec.hour(requests.time_ms), device=self.device,
        )  # fmt: skip
        return PreparedUser(requests, outcome, state)

    def _score_logged(self, batch: RankingBatch) -> Scores:
        """Heads of logged impressions, each the one candidate of its request."""
        user = self._prepare(batch.requests)
        return self._score(user, batch.video_B[:, None], batch.candidate_statistics_BG[:, None])

    @torch.inference_mode()
    def _score(self, user: PreparedUser, rows_BK: I64, statistics_BKG: F32) -> Scores:
        video_BKD = self.video_ND[to_device(rows_BK, self.device)]
        return self._network.score(user.state, video_BKD, to_device(statistics_BKG, self.device))

    @torch.inference_mode()
    def _read(self, scores: Scores, rows_E: I64) -> tuple[npt.NDArray[np.float64], F32 | None, F32 | None]:
        """Uncalibrated probabilities ``[E, T]``, expected watch and order value given a purchase ``[E]``."""
        log_yes, _ = log_probabilities(scores.task_BKT.double().flatten(0, 1), self.model.shape.parents)
        watch = order = None
        if scores.watch_BKE is not None and self.watch_bins is not None:
            group_E = self.watch_bins.group(self.features.keys.duration_ms[rows_E])
            mean_EQ = torch.from_numpy(self.watch_bins.mean_ms[group_E]).float()
            watch = expected_watch_ms(scores.watch_BKE.flatten(0, 1).float().cpu(), mean_EQ).numpy()
        if scores.order_BK2 is not None:
            order = expected_order_value(scores.order_BK2.flatten(0, 1).float()).cpu().numpy()
        return log_yes.exp().cpu().numpy(), watch, order


def encode_requests(
    model: Ranker, requests: Requests, video_BS: I64, video_ND: torch.Tensor, statistics_BF: F32,
    user_features: FeatureBatch, *, hour: I64, device: torch.device,
) -> UserState:  # fmt: skip
    """Run the per-user part; ``video_BS`` are the history's rows of ``video_ND``."""

    def tensor(array: npt.NDArray[np.generic]) -> torch.Tensor:
        return to_device(array, device)

    steps = Steps(
        tensor(video_BS), tensor(requests.actions), tensor(requests.known), tensor(requests.watch_ms),
        tensor(requests.step_surface), tensor(requests.step_time_ms), tensor(requests.length),
    )  # fmt: skip
    return model.encode_users(
        user_features, steps, tensor(requests.time_ms), video_ND, tensor(statistics_BF),
        tensor(requests.surface), tensor(requests.market), tensor(hour),
    )  # fmt: skip
