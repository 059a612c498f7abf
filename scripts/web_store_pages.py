"""How long pages of a large store take in `viq web`.

    python scripts/web_store_pages.py --rows 1000000 --folder /tmp/large
    python scripts/web_store_pages.py --rows 20000 --side 256 --folder /tmp/small --search

Writes a store of so many rows (random codes of square pictures, a caption each) if none is there,
opens it, and asks for pages at random places, filtered and not, through the application itself but
without a network, after what filters read was read, as a server does by itself when it starts.
Prints JSON: ms of the first answer of each kind (`first_cpu`: of the processor), and of further
ones. With --search, it searches by a row instead: seconds until the first search answers, until the
vectors of all rows are there, and of a search after that.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from starlette.testclient import TestClient

from viq.core.codes import Codes
from viq.core.types import PATCH_SIZE
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.columns import Extras
from viq.store.folder import INDEX, Index, Shard, shard_name
from viq.store.rows import CodesWriter
from viq.store.schema import StoreInfo
from viq.web.app import make_app
from viq.web.config import WebConfig

_SHARD = 10_000
_WORDS = "a red blue small large dog cat house tree on under beside the grass table".split()


def write(folder: Path, rows: int, side: int, tokenizer: VisualTokenizer) -> None:
    info = StoreInfo(
        model=tokenizer.config.name, fingerprint=tokenizer.fingerprint, levels=tokenizer.levels
    )
    draw, extras, shards = np.random.default_rng(0), Extras.inferred([{"caption": "words"}]), []
    grid = side // PATCH_SIZE
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, rows, _SHARD)):
        last = min(first + _SHARD, rows)
        path = folder / shard_name(number)
        with CodesWriter(path, info, extras) as writer:
            ids = draw.integers(0, 64_000, (last - first, grid, grid, 4)).astype(np.uint16)
            words = draw.integers(0, len(_WORDS), (last - first, 8))
            for row, each, chosen in zip(range(first, last), ids, words, strict=True):
                caption = " ".join(_WORDS[word] for word in chosen)
                codes = Codes(each, (side, side), 0, info.fingerprint)
                writer.add(f"photos/{row:09}.jpg", codes, 0, extras.pack({"caption": caption}))
        shards.append(
            Shard(
                name=path.name,
                rows=last - first,
                inputs=(first, last),
                bytes=path.stat().st_size,
                sha256="",
            )  # fmt: skip
        )
    totals = {"rows": rows, "failures": 0}
    index = Index(info=info, inputs=rows, shards=tuple(shards), totals=totals,
                  columns={"caption": "string"})  # fmt: skip
    (folder / INDEX).write_bytes(index.to_json())


def timed(client: TestClient, addresses: Callable[[int], str], count: int) -> dict[str, Any]:
    times, first_cpu = [], 0.0
    for number in range(count):
        begun, cpu = time.perf_counter(), time.process_time()
        answer = client.get(addresses(number), headers={"Accept": "text/html"})
        times.append(1000 * (time.perf_counter() - begun))
        first_cpu = first_cpu or 1000 * (time.process_time() - cpu)
        assert answer.status_code == 200, answer.text
    rest = times[1:] or times
    return {
        "first": round(times[0], 1),
        "first_cpu": round(first_cpu, 1),
        "median": round(float(np.median(rest)), 1),
        "p95": round(float(np.percentile(rest, 95)), 1),
        "worst": round(max(rest), 1),
        "count": count,
    }


def searched(app: FastAPI, client: TestClient) -> dict[str, Any]:
    """Searches by the first row, by what it shows and by shared codes."""
    csrf = re.search(r'name="csrf" content="(\w+)"', client.get("/login").text)
    assert csrf

    def seconds(how: str) -> float:
        begun = time.perf_counter()
        answer = client.post(
            "/store/0/search", data={"how": how, "like": "row 0"},
            headers={"X-CSRF-Token": csrf[1]},
        )  # fmt: skip
        events = client.get(answer.json()["work"]).text.splitlines()
        found = client.get(json.loads(events[-1])["done"]["page"])
        assert "photos/000000000.jpg" in found.text, found.text
        return round(time.perf_counter() - begun, 2)

    first, begun = seconds("meaning"), time.perf_counter()
    vectors = app.state.viq.stores[0].vectors(0)
    early = vectors.seen
    assert vectors.wait(3600)
    whole = round(first + time.perf_counter() - begun, 1)
    return {
        "first_search_s": first,
        "rows_seen_by_it": early,
        "all_vectors_s": whole,
        "search_s": seconds("meaning"),
        "by_codes_s": seconds("codes"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--side", type=int, default=64, help="Px.")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    tokenizer = load("viq-transform")
    if not (options.folder / INDEX).exists():
        write(options.folder, options.rows, options.side, tokenizer)
    begun = time.perf_counter()
    app = make_app(WebConfig(stores=(options.folder,), chat=None), tokenizer)
    opening = 1000 * (time.perf_counter() - begun)
    client = TestClient(app, base_url="http://127.0.0.1")
    if options.search:
        print(json.dumps({"rows": options.rows, "side": options.side, **searched(app, client)}))
        return
    begun = time.perf_counter()
    app.state.viq.stores[0].prepare()
    preparing = 1000 * (time.perf_counter() - begun)
    pages = options.rows // 24
    places = np.random.default_rng(1).integers(1, pages + 1, 1000).tolist()
    result = {
        "rows": options.rows,
        "open_ms": round(opening, 1),
        "prepare_ms": round(preparing, 1),
        "page_ms": timed(client, lambda n: f"/store/0?at={places[n]}", 300),
        "key_ms": timed(client, lambda n: f"/store/0?key=1{n:03}", 30),
        "same_key_other_page_ms": timed(client, lambda n: f"/store/0?key=777&at={n + 1}", 30),
        "caption_ms": timed(client, lambda n: f"/store/0?text={_WORDS[n % 15]} dog&at={n + 1}", 30),
        "thumbnail_ms": timed(client, lambda n: f"/store/0/thumb/{places[n] * 24}", 100),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
