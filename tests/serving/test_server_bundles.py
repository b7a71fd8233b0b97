"""Swapping bundles: whole or not at all, and never at a request's expense."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.errors import ContractError
from serving.live import Deployment, LiveBundle, NotReady
from serving.metrics import Metrics
from tests.serving.fake_world import fake_bundle

A, B, BROKEN = (f"bundle-{digit * 16}" for digit in "abc")


class Bundles:
    """A folder of bundles that are names only; one of them is refused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: list[str] = []
        for name in (A, B, BROKEN):
            (folder / name).mkdir()
            (folder / name / "manifest.json").write_text("{}")

    def load(self, path: Path) -> LiveBundle:
        self.loaded.append(path.name)
        if path.name == BROKEN:
            raise ContractError(f"{path}: one byte differs; publish again")
        return fake_bundle(name=path.name)

    def point_at(self, text: str) -> None:
        draft = self.folder / "draft"
        draft.write_text(text)
        draft.replace(self.folder / "CURRENT")


@pytest.fixture
def bundles(tmp_path: Path) -> Bundles:
    return Bundles(tmp_path)


@pytest.fixture
def deployment(bundles: Bundles) -> Iterator[Deployment]:
    bundles.point_at(A)
    deployment = Deployment(bundles.folder, bundles.load, Metrics(), poll_s=3600)
    yield deployment
    deployment.close()


def test_nothing_is_served_before_start_and_then_what_current_names(deployment: Deployment) -> None:
    with pytest.raises(NotReady):
        _ = deployment.live
    deployment.start()
    assert deployment.live.name == A
    assert not deployment.look()


def test_it_follows_current(deployment: Deployment, bundles: Bundles) -> None:
    deployment.start()
    bundles.point_at(B)
    assert deployment.look()
    assert deployment.live.name == B
    bundles.point_at(A)
    assert deployment.look()
    assert deployment.live.name == A


@pytest.mark.parametrize("current", [BROKEN, "bundle-" + "9" * 16, "../elsewhere", "", "\x00"])
def test_what_is_not_whole_is_refused_and_the_old_stays(
    deployment: Deployment, bundles: Bundles, current: str, caplog: pytest.LogCaptureFixture
) -> None:
    deployment.start()
    bundles.point_at(current)
    with caplog.at_level(logging.ERROR, "shopreel.bundles"):
        assert not deployment.look()
    assert deployment.live.name == A
    assert f"bundle refused, {A} stays" in caplog.text
    assert not deployment.look()  # refused once, not every second
    assert caplog.text.count("bundle refused") == 1
    bundles.point_at(B)
    assert deployment.look()


def test_a_current_that_vanishes_changes_nothing(deployment: Deployment, bundles: Bundles) -> None:
    deployment.start()
    (bundles.folder / "CURRENT").unlink()
    assert not deployment.look()
    assert deployment.live.name == A


def test_starting_on_a_broken_bundle_is_the_users_mistake(bundles: Bundles) -> None:
    bundles.point_at(BROKEN)
    with pytest.raises(ContractError, match="publish again"):
        Deployment(bundles.folder, bundles.load, Metrics()).start()
    with pytest.raises(ContractError, match="shopreel publish"):
        Deployment(bundles.folder / "none", bundles.load, Metrics()).start()


def test_a_single_bundle_may_be_served(bundles: Bundles) -> None:
    deployment = Deployment(bundles.folder / B, bundles.load, Metrics(), poll_s=3600)
    deployment.start()
    assert deployment.live.name == B
    assert not deployment.look()
    deployment.close()
