"""The plan in force, and how it is replaced: read and checked whole, then swapped in one assignment.

A request reads :attr:`PlanFollower.running` once and works with it to its end. A plan that is refused leaves
the one in force where it is.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from data.errors import ConfigError, ShopreelError
from serving.live import Deployment, LiveBundle
from serving.metrics import Metrics
from serving.paging import FeedSettings
from serving.plan import Plan, read_plan
from serving.rollout import Arms, Rollout
from serving.state.protocol import Id

logger = logging.getLogger("shopreel.plan")


@dataclass(frozen=True, slots=True)
class Running:
    """A plan in force. ``elsewhere`` holds the bundles that arms name, by folder."""

    rollout: Rollout
    elsewhere: Mapping[str, Deployment] = field(default_factory=dict)

    def live(self, arms: Arms) -> LiveBundle | None:
        """The bundle that serves these arms; None is the server's own."""
        folder = self.rollout.bundles(arms)
        return None if folder is None else self.elsewhere[folder].live


class Plans(Protocol):
    """Where a request looks for the plan."""

    @property
    def running(self) -> Running:
        """What is in force now."""
        ...


class FixedPlan:
    """A plan that never changes."""

    def __init__(self, rollout: Rollout) -> None:
        self.running = Running(rollout)


class PlanFollower:
    """Follows a plan file."""

    def __init__(
        self,
        path: str | Path,
        settings: FeedSettings,
        deploy: Callable[[str], Deployment],
        metrics: Metrics,
        *,
        poll_s: float,
        missing: Callable[[Sequence[Id]], Sequence[Id]] = lambda video_ids: [],
    ) -> None:
        """Take the plan into force, raising where it is refused, then watch the file.

        ``deploy`` starts serving from a folder of bundles; ``missing`` names the videos that are not in the
        catalogue being served.
        """
        self._path = Path(path)
        self._settings = settings
        self._deploy = deploy
        self._missing = missing
        self._metrics = metrics
        self._poll_s = poll_s
        self._stamp = self._look_at_file()
        self.running = self._load({})
        metrics.plans.labels("taken").inc()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="plan-watch", daemon=True)
        self._thread.start()

    def look(self) -> bool:
        """Look whether the file changed, and follow it; whether another plan is in force now."""
        stamp = self._look_at_file()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        before = self.running
        try:
            self.running = self._load(before.elsewhere)
        except Exception as error:
            self._metrics.plans.labels("refused").inc()
            unexpected = not isinstance(error, ShopreelError)
            logger.error("plan refused, the one in force stays: %s", error, exc_info=unexpected)
            return False
        self._metrics.plans.labels("taken").inc()
        logger.info("plan %s is in force", self._path)
        for folder, deployment in before.elsewhere.items():
            if folder not in self.running.elsewhere:
                deployment.close()
        return True

    def close(self) -> None:
        """Stop watching, the file and the bundles of its arms."""
        self._stop.set()
        self._thread.join()
        for deployment in self.running.elsewhere.values():
            deployment.close()

    def _load(self, known: Mapping[str, Deployment]) -> Running:
        rollout = Rollout(read_plan(self._path), self._settings)
        self._look_for_videos(rollout.plan)
        wanted = {
            arm.bundles
            for experiment in rollout.plan.experiments.values()
            for arm in experiment.arms.values()
            if arm.bundles is not None
        }
        elsewhere: dict[str, Deployment] = {}
        try:
            for folder in sorted(wanted):
                elsewhere[folder] = known[folder] if folder in known else self._deploy(folder)
        except Exception:
            for folder, deployment in elsewhere.items():
                if folder not in known:
                    deployment.close()
            raise
        return Running(rollout, elsewhere)

    def _look_for_videos(self, plan: Plan) -> None:
        """Refuse a campaign that has nothing to show, and tell what others lack."""
        for name, campaign in plan.campaigns.items():
            missing = self._missing(campaign.videos)
            if len(missing) == len(campaign.videos):
                raise ConfigError(
                    f"plan={self._path}: campaigns.{name}.videos: the bundle being served has none of them"
                )
            if missing:
                told = ", ".join(map(str, missing))
                logger.warning("campaign %s: the bundle being served lacks the videos %s", name, told)

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_s):
            self.look()

    def _look_at_file(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size
