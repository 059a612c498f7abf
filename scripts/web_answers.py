"""How long answers of the bundled conversations take in `viq web`, from question to last word.

    python scripts/web_answers.py

Asks a few questions about each bundled picture, through the application itself but without a
network, each twice. Prints JSON of the second time: ms until an answer is there, by the clock and
of the processor.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
from starlette.testclient import TestClient

from viq.report.samples import PICTURES
from viq.web.app import make_app
from viq.web.config import WebConfig

_QUESTIONS = ("What is this?", "Describe the image.", "How many shapes are there?",
              "What color is the triangle?", "Is there a cat?")  # fmt: skip


def main() -> None:
    client = TestClient(make_app(WebConfig()), base_url="http://127.0.0.1")
    csrf = re.search(r'name="csrf" content="(\w+)"', client.get("/login").text)
    assert csrf
    client.headers["X-CSRF-Token"] = csrf[1]

    def done(address: str, **sent: object) -> dict[str, str]:
        begun = client.post(address, **sent).json()  # pyright: ignore[reportArgumentType]
        return json.loads(client.get(begun["work"]).text.splitlines()[-1])["done"]

    times, cpu_times, words = list[float](), list[float](), list[int]()
    for path in sorted(Path(PICTURES).iterdir()):
        if path.suffix not in (".jpg", ".png"):
            continue
        name = done("/picture", files={"file": (path.name, path.read_bytes())})["picture"]
        for question in _QUESTIONS:
            for _ in range(2):
                client.post(f"/ask/{name}/new")
                begun, cpu = time.perf_counter(), time.process_time()
                said = done(f"/ask/{name}", data={"question": question})["answer"]
                last, last_cpu = time.perf_counter() - begun, time.process_time() - cpu
            times.append(1000 * last)
            cpu_times.append(1000 * last_cpu)
            words.append(len(said.split()))
    figures: dict[str, int] = {"answers": len(times), "most_words": max(words)}
    for name, all_ms in (("ms", times), ("cpu_ms", cpu_times)):
        figures[f"median_{name}"] = round(float(np.median(all_ms)))
        figures[f"worst_{name}"] = round(max(all_ms))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
