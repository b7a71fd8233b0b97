"""What the fault drill breaks things with: damaged bundles, full disks, a store that is killed."""

import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.serving_world import point_at, wait_for


def limit_files(pid: int, most: int) -> None:
    """No file of the process may grow beyond ``most`` bytes."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def ways_to_damage(bundles: Path, other: str) -> list[Callable[[], None]]:
    """Each way makes ``CURRENT`` name something that must be refused."""
    whole = bundles.parent / "whole"
    shutil.copytree(bundles / other, whole)

    def with_file(change: Callable[[Path], None], name: str) -> Callable[[], None]:
        def damage() -> None:
            shutil.rmtree(bundles / other, ignore_errors=True)
            shutil.copytree(whole, bundles / other)
            change(bundles / other / name)
            point_at(bundles, other)

        return damage

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))

    def cut(path: Path) -> None:
        os.truncate(path, path.stat().st_size // 2)

    files = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    ways = [with_file(flip, name) for name in files]
    ways += [with_file(cut, "video_vectors.npy"), with_file(Path.unlink, "manifest.json")]
    ways += [with_file(Path.unlink, "golden.arrow")]
    for text in ("", "nowhere", "../bundles", "bundle-" + "0" * 16, "\x00"):
        ways.append(partial(point_at, bundles, text))
    return ways


class Redis:
    """A ``redis-server`` of our own that keeps its promises."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Start on the files that are there."""
        words = f"--port {self.port} --appendonly yes --appendfsync always --save '' --bind 127.0.0.1"
        command = ["redis-server", *words.replace("''", "").split(), "--dir", str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("redis-server", self._answers)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running_redis(folder: Path) -> Iterator[Redis]:
    redis = Redis(folder)
    try:
        yield redis
    finally:
        redis.kill()
