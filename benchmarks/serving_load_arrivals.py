"""The second process of benchmarks/serving_load.py: requests at a fixed rate, answered or not.

    python benchmarks/serving_load_arrivals.py PORT RATE SECONDS IDS SEED

Poisson arrivals; users of IDS (a JSON file) by Zipf's law; latency from the moment a request was due.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

#: Seconds for which a connection is kept; servers close those that are idle for five.
FRESH_S = 2.0


def generate(port: int, rate: float, seconds: float, ids: str, seed: int) -> None:
    """Send, wait for all answers, print what came of them as JSON."""
    latencies, statuses = asyncio.run(_send_all(port, rate, seconds, json.loads(Path(ids).read_text()), seed))
    good = sorted(latencies) or [float("inf")]
    told = {
        "answered": len(latencies) / seconds, "statuses": dict(statuses),
        "p50_ms": good[len(good) // 2], "p99_ms": good[min(len(good) - 1, int(0.99 * len(good)))],
    }  # fmt: skip
    print(json.dumps(told))


async def _send_all(
    port: int, rate: float, seconds: float, users: list[Any], seed: int
) -> tuple[list[float], Counter[str]]:
    dice = random.Random(seed)
    weights = [
        1 / (rank + 8) for rank in range(len(users))
    ]  # Zipf, its head cut: the first is 1 in 50 of 2,000
    idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
    latencies: list[float] = []
    statuses = Counter[str]()

    async def ask(user: Any, due: float) -> None:
        try:
            since, reader, writer = idle.pop() if idle else (0.0, None, None)
            if reader is None or writer is None or time.monotonic() - since > FRESH_S:
                if writer is not None:
                    writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = json.dumps({"user_id": user})
            head = "POST /v1/feed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            fields = answer.decode("latin-1").lower().split("\r\n")
            size = [int(field.split(":")[1]) for field in fields if field.startswith("content-length:")]
            page = await (reader.readexactly(size[0]) if size else reader.readuntil(b"\r\n0\r\n\r\n"))
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            statuses[type(error).__name__] += 1
            return
        idle.append((time.monotonic(), reader, writer))
        whole = b'"degraded":["' not in page
        statuses[fields[0].split(" ")[1] if whole else "degraded"] += 1
        if " 200 " in fields[0] and whole:
            latencies.append(1000 * (time.monotonic() - due))

    start, at, tasks = time.monotonic(), 0.0, []
    while (at := at + dice.expovariate(rate)) < seconds:
        user = dice.choices(users, weights)[0]
        await asyncio.sleep(max(0.0, start + at - time.monotonic()))
        tasks.append(asyncio.create_task(ask(user, start + at)))
    await asyncio.gather(*tasks)
    for _, _, writer in idle:
        writer.close()
    return latencies, statuses


if __name__ == "__main__":
    port, rate, seconds, ids, seed = sys.argv[1:]
    generate(int(port), float(rate), float(seconds), ids, int(seed))
