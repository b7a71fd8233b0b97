"""A bundle's trend is what a training target of the same day would have seen."""

from pathlib import Path

import numpy as np
import pytest

import shopreel
from data.dataset import Dataset, read_info
from data.engine import Engine, open_engine
from data.held_out import HeldOutRules
from data.prepared import Prepared
from data.trend import HALF_LIVES_DAYS, training_trend
from models.bundle import Bundle
from serving.trend import count_trend
from tests.serving.conftest import Published
from tests.serving.test_publish import publish


def counted(published: Published, bundle: Bundle, rank: int) -> np.ndarray:
    dataset = Dataset(published.market, read_info(published.market))
    prepared = Prepared.open(published.run.parent / "prepared")
    split = HeldOutRules.of(bundle.prepared).split
    with open_engine(Engine.duckdb, memory_limit_gb=0.5) as session:
        return count_trend(session, dataset, prepared, split=split, rank=rank)


def test_the_log_before_validation_gives_what_training_validated_with(published: Published):
    bundle = Bundle.open(published.bundles)
    prepared = Prepared.open(published.run.parent / "prepared")
    trained = training_trend(prepared).at(0, np.arange(len(prepared.catalogue)))
    assert len(np.unique(trained[:, 0])) > 20
    np.testing.assert_allclose(counted(published, bundle, 1), trained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("as_of", "rank"), [("validation", 1), ("test", 2), ("end", 3)])
def test_vectors_hold_the_trend_as_far_as_the_bundle_may_know(
    published: Published, tmp_path: Path, as_of: str, rank: int
):
    assert publish(published, tmp_path, f"as_of={as_of}") == 0
    bundle = Bundle.open(tmp_path)
    expected = counted(published, bundle, rank)
    trend_NK = bundle.video_vectors[:, bundle.encoder.model.shape.trend_columns]
    assert trend_NK.shape[1] == len(HALF_LIVES_DAYS)
    np.testing.assert_allclose(trend_NK, expected, rtol=1e-6)
    assert bundle.manifest.models["two_tower"]["as_of"] == as_of


@pytest.mark.parametrize(("as_of", "split"), [("test", "validation"), ("end", "test")])
def test_a_split_that_the_bundle_knows_is_refused(
    published: Published, tmp_path: Path, capsys, as_of: str, split: str
):
    assert publish(published, tmp_path / "bundles", f"as_of={as_of}") == 0
    for command in ("replay", "recommend"):
        words = [f"bundle={tmp_path / 'bundles'}", f"dataset={published.market}", f"out={tmp_path / command}"]
        assert shopreel.main([command, *words, f"split={split}"]) == 2
        assert f"publish with as_of={split}" in capsys.readouterr().err
        assert not (tmp_path / command).exists()
