"""The curve over the value formula's weights, in worlds where its ends are known."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from evaluation.predictions import open_predictions
from evaluation.value_curve import ValuePoint, value_curve
from tests.evaluation.worlds import write


def curve_of(folder: Path, rows: pa.Table) -> list[ValuePoint]:
    return value_curve(open_predictions("new", write(rows, folder / "p.parquet")), replicates=200, seed=0)


def test_the_ends_keep_what_they_are_after_and_the_way_between_is_a_tradeoff(tmp_path: Path) -> None:
    g = np.random.default_rng(3)
    requests, each = 60, 10
    watch = g.integers(1000, 60_000, requests * each)
    bought = g.random(requests * each) < 0.3
    order = np.where(bought, g.integers(500, 9000, requests * each), 0)
    request = np.repeat(np.arange(requests), each)
    yen = request % 2 == 1

    def rows(factor: int) -> pa.Table:
        paid = np.where(yen, order * factor, order)
        return pa.table(
            {
                "request_id": pa.array(request.astype(str)), "user_id": request,
                "video_id": np.arange(len(request)),
                "predicted_watch_ms": watch.astype(float), "watch_ms": watch,
                "predicted_order_value_minor": paid.astype(float), "order_value_minor": paid,
                "market": pa.array(np.where(yen, "jp", "us")),
            }
        )  # fmt: skip

    curve = curve_of(tmp_path, rows(1))
    first, last = curve[0], curve[-1]
    assert first.seconds_per_order == 0
    assert math.isinf(last.seconds_per_order)
    by_watch = np.argsort(-watch.reshape(requests, each), axis=1)[:, : each // 2]
    best = np.take_along_axis(watch.reshape(requests, each), by_watch, axis=1)
    assert first.watch.value == pytest.approx(best.sum() / watch.sum())
    assert last.order_value.value > 0.95, "a half has room for nearly all that was bought"
    assert (np.diff([point.watch.value for point in curve]) <= 1e-12).all()
    assert (np.diff([point.order_value.value for point in curve]) >= -1e-12).all()
    assert first.watch.low < first.watch.value < first.watch.high
    # a market's currency is no weight: 150 times the numbers, the same orders
    for one, other in zip(curve, curve_of(tmp_path, rows(150)), strict=True):
        assert one.watch.value == pytest.approx(other.watch.value)
        assert one.order_value.value == pytest.approx(other.order_value.value)


def test_without_orders_or_without_either_prediction_there_is_no_curve(tmp_path: Path) -> None:
    rows = pa.table(
        {
            "request_id": ["1", "1"], "user_id": [1, 1], "video_id": [1, 2], "predicted_watch_ms": [1.0, 2.0],
            "watch_ms": [5, 6], "predicted_order_value_minor": [1.0, 2.0], "order_value_minor": [0, 0],
        }
    )  # fmt: skip
    assert curve_of(tmp_path, rows) == []
    assert curve_of(tmp_path, rows.drop_columns(["order_value_minor"])) == []
