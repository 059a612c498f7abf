"""Many visitors of `viq web` at once: errors, time of each kind of request, memory of the server.

    python scripts/web_load.py --clients 50 --seconds 60 --store codes

Starts a server of its own at a free port and drives it from this process. Each visitor goes round:
the first page, a bundled picture by upload (encoded, decoded, JPEG and WebP fitted), its page, four
of its patches, and with --store a random page and its pictures. Prints JSON; exit code 1 if any
request failed. Memory is measured when all visitors have gone round, ten times more, and at last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from viq.report.samples import PICTURES

Times = dict[str, list[float]]


class Visitor:
    def __init__(self, address: str, number: int, stores: bool, times: Times) -> None:
        self._client = httpx2.AsyncClient(base_url=address, timeout=180)
        self._draw, self._stores, self._times = random.Random(number), stores, times
        self.rounds, self.errors = 0, list[str]()

    async def stay(self, until: float) -> None:
        async with self._client:
            while time.monotonic() < until:
                try:
                    await self._round()
                    self.rounds += 1
                except (httpx2.HTTPError, AssertionError) as error:
                    self.errors.append(f"{type(error).__name__}: {error}")

    async def _get(self, kind: str, path: str) -> Any:
        begun = time.monotonic()
        answer = await self._client.get(path, headers={"Accept": "text/html"})
        self._times[kind].append(time.monotonic() - begun)
        assert answer.status_code in (200, 303), f"{path}: {answer.status_code} {answer.text[:200]}"
        return answer

    async def _round(self) -> None:
        page = await self._get("first page", "/")
        csrf = re.search(r'name="csrf" content="(\w+)"', page.text)
        assert csrf
        file = self._draw.choice(sorted(PICTURES.glob("*.[jp][pn]g")))
        begun = time.monotonic()
        answer = await self._client.post(
            "/picture", files={"file": (file.name, file.read_bytes())},
            headers={"X-CSRF-Token": csrf[1]},
        )  # fmt: skip
        assert answer.status_code == 202, f"upload: {answer.status_code} {answer.text[:200]}"
        self._times["upload"].append(time.monotonic() - begun)
        events = (await self._client.get(answer.json()["work"])).text.splitlines()
        last = json.loads(events[-1])
        assert "done" in last, f"work: {last}"
        self._times["upload, queue and work"].append(time.monotonic() - begun)
        base = f"/picture/{last['done']['picture']}"
        await self._get("picture page", base)
        for _ in range(4):
            await self._get("patch", f"{base}/patch/{self._draw.randrange(16)}/3")
        if self._stores:
            shown = await self._get("store page", f"/store/0?at={self._draw.randrange(1, 1000)}")
            for thumb in re.findall(r'src="(/store/0/thumb/\d+)"', shown.text)[:6]:
                await self._get("thumbnail", thumb)


def memory(process: int) -> float:
    """MB that a process holds in memory."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


async def drive(address: str, process: int, options: argparse.Namespace) -> dict[str, Any]:
    times: Times = defaultdict(list)
    visitors = [Visitor(address, n, bool(options.store), times) for n in range(options.clients)]
    until = time.monotonic() + options.seconds
    tasks = [asyncio.create_task(visitor.stay(until)) for visitor in visitors]
    early, samples = None, []
    while not all(task.done() for task in tasks):
        await asyncio.sleep(1)
        samples.append(memory(process))
        if early is None and all(visitor.rounds for visitor in visitors):
            early = samples[-1]
    await asyncio.gather(*tasks)
    errors = [error for visitor in visitors for error in visitor.errors]
    return {
        "clients": options.clients,
        "seconds": options.seconds,
        "rounds": sum(visitor.rounds for visitor in visitors),
        "requests": sum(map(len, times.values())),
        "errors": len(errors),
        "first_errors": errors[:5],
        "memory_mb": {
            "after_first_rounds": early,
            "at_tenths": [round(samples[len(samples) * n // 10 - 1]) for n in range(1, 11)],
            "end": samples[-1],
            "most": max(samples),
        },
        "ms": {
            kind: {
                "count": len(values),
                **{f"p{q}": round(1000 * float(np.percentile(values, q)), 1) for q in (50, 95)},
            }
            for kind, values in sorted(times.items())
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--max-kept", default="256", help="As of viq web: MB of pictures.")
    options = parser.parse_args()
    command = [sys.executable, "-m", "viq", "web", "--port", "0", "--chat", "none"]
    command += ["--max-kept", options.max_kept]
    command += ["--store", str(options.store)] if options.store else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        found = re.search(r"http://\S+", server.stdout.readline())
        try:
            assert found, "the server did not start"
            result = asyncio.run(drive(found[0], server.pid, options))
        finally:
            server.terminate()
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["errors"]))


if __name__ == "__main__":
    main()
