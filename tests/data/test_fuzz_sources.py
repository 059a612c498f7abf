"""Whatever a data set holds: a row or a failure of one line, never another exception.

    VIQ_FUZZ=1000000 pytest tests/data/test_fuzz_sources.py

runs so many rows of each kind; without it all kinds together have 100,000. Half of what comes out
is written to Parquet and must come back as it was.
"""

import io
import json
import math
import os
import random
import tarfile
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_rows import picture
from test_fuzz import damaged

from viq.core.types import ViqError
from viq.data.sources.base import Source
from viq.data.sources.open import open_source
from viq.data.sources.tables import Cache, ParquetSource
from viq.data.text.conversations import conversation
from viq.image.open import ImageError
from viq.store.columns import Extras

ROWS = 250  # in a file
SHARES = {"jsonl": 40_000, "json": 20_000, "list": 10_000, "tar": 10_000, "parquet": 20_000}
SEEDS = st.integers(0, 2**63)
PNG = picture(1)
NAMES = (
    "image", "images", "image_path", "img", "file_name", "url", "conversations", "messages",
    "caption", "text", "pairs", "resize", "key", "input_key", "extras", "codes", "id", "a", "b",
    "\ud83d", "\0", "", "n" * 300, "viq.base64",
)  # fmt: skip
TEXTS = (
    "a.png", "../a.png", "/etc/passwd", "gone.png", "https://[::1", "file:///a", "s3://b/a",
    "reference::file:///a", "data:image/png;base64,iVBOR", "data:,", "iVBORw0KGgo" * 9, "<image>",
    "a\0b", "\ud83d", "\x1b[2J", "é" * 300, "", " ", "//", "a" * 5000, "~/a", "C:\\a", "::", "://",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2**31, 2**53 + 1, 2**63, 10**30, -(10**400), 1.5, 1e308, math.nan, math.inf)
ROLES = ("human", "gpt", "system", "tool", "user", "assistant", "function_call", "x", 7, None)


def value(draw: random.Random, depth: int = 3) -> Any:
    """Any JSON value, and those that Python's reader takes for JSON."""
    kind = draw.randrange(12)
    if kind < 5:
        return draw.choice(TEXTS)
    if kind < 7:
        return draw.choice(NUMBERS)
    if kind == 7:
        return draw.choice((None, True, False))
    if depth == 0 or kind == 8:
        return draw.choice(([], {}, [[]], [{}], {"": {}}, [None]))
    if kind == 9:
        return [value(draw, depth - 1) for _ in range(draw.randrange(4))]
    if kind == 10:
        return {draw.choice(NAMES): value(draw, depth - 1) for _ in range(draw.randrange(4))}
    return draw.choice((talk, entry, nested))(draw)


def talk(draw: random.Random) -> Any:
    part = {"type": draw.choice(("image", "text", "image_url", 7)), "image": draw.choice(TEXTS)}
    said = (draw.choice(TEXTS), [part], value(draw, 0))
    return [{"from": draw.choice(ROLES), "value": draw.choice(said)} for _ in range(3)]


def entry(draw: random.Random) -> Any:
    start, size = draw.choice(NUMBERS), draw.choice((*NUMBERS, 10**18))
    patch = {"patch": draw.choice(TEXTS), "start_num": start, "size": size}
    place = {draw.choice(("img_path", "path", "url", "bytes", "image_url")): value(draw, 0)}
    return draw.choice((patch, place, [patch, place], place | {"resize": value(draw, 0)}))


def nested(draw: random.Random) -> Any:
    depth, found = draw.choice((2, 17, 90, 400)), draw.choice(([], {}))
    for _ in range(depth):
        found = [found] if draw.random() < 0.5 else {"a": found}
    return found


def record(draw: random.Random) -> Any:
    if draw.random() < 0.05:
        return value(draw)
    fields = {draw.choice(NAMES): value(draw) for _ in range(draw.randrange(1, 5))}
    return fields | ({"image": "a.png"} if draw.random() < 0.5 else {})


def same(one: Any, other: Any) -> bool:
    """Equal, where NaN is NaN."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def tried(work: Callable[[], Any]) -> Any:
    """What comes out, or None for a failure that is told in one line."""
    try:
        return work()
    except ViqError as error:
        assert str(error).isprintable() or "\n" not in str(error)
        return None


def rows_or_failures(source: Source, label: str) -> Counter[str]:
    """Read all there is as a job would, and write what came out."""
    found, kept = Counter[str](), []
    keys = list(source.keys())
    assert len(keys) == len(source) == len(list(source.names()))
    for index, key in enumerate(keys):
        assert source.key(index) == key
        try:
            row = source[index]
        except ViqError as error:
            assert str(error).startswith(label) and "\n" not in str(error), error
            found["failed"] += 1
            continue
        assert row.key == key and row.where.isprintable() and "\n" not in row.where
        found["rows"] += 1
        for number in range(min(len(row.images), 2)):
            found["images"] += tried(lambda row=row, n=number: row.open(n)) is not None
        tried(lambda row=row: conversation(row))
        kept.append(row.extras)
    written(kept)
    return found


def written(kept: list[dict[str, Any]]) -> None:
    extras = Extras.inferred(kept[: len(kept) // 2 : 5], unseen=True)
    packed = [(values, tried(lambda values=values: extras.pack(values))) for values in kept]
    packed = [(values, done) for values, done in packed if done is not None]
    columns = extras.columns([done for _, done in packed])
    table = pa.table(columns, schema=pa.schema(extras.fields))
    stream = io.BytesIO()
    pq.write_table(table, stream)
    (batch,) = pq.read_table(stream).combine_chunks().to_batches() or [None]
    for (values, _), back in zip(packed, extras.rows(batch) if batch else (), strict=True):
        for name, wanted in values.items():
            if wanted is not None and name not in OURS:
                assert same(back[name], wanted), (name, wanted, back[name])


OURS = ("key", "input_key", "extras", "codes")  # come back by another name


def fuzz(kind: str, read: Callable[[random.Random], Counter[str]]) -> None:
    total = Counter[str]()
    cases = int(os.environ.get("VIQ_FUZZ", SHARES[kind]))

    @settings(max_examples=max(1, cases // ROWS), database=None, deadline=None, derandomize=True,
              suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
    @given(SEEDS)
    def run(seed: int) -> None:
        total.update(read(random.Random(seed)))

    run()
    assert total["rows"] > 0.05 * cases and total["failed"] > 0.01 * cases


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_json(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.png").write_bytes(PNG)

    def read(draw: random.Random) -> Counter[str]:
        texts = [json.dumps(record(draw)).encode() for _ in range(ROWS)]
        # One broken record is one failure among lines, but may break a whole list.
        broken = 0.1 if kind == "jsonl" else draw.choice((0, 0, 0, 0.01))
        texts = [damaged(draw, t) if draw.random() < broken else t for t in texts]
        path = tmp_path / f"d.{kind}"
        if kind == "jsonl":
            path.write_bytes(b"\n".join(texts))
        else:
            path.write_bytes(b"[" + b", ".join(texts) + b"]")
        source = tried(lambda: open_source(path))
        return rows_or_failures(source, "d.") if source else Counter(failed=ROWS)

    fuzz(kind, read)


def test_lists(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)

    def read(draw: random.Random) -> Counter[str]:
        lines = [draw.choice(TEXTS) + draw.choice(("", "a", "#1")) for _ in range(ROWS)]
        data = "\n".join(lines).encode(errors="surrogatepass")
        (tmp_path / "d.txt").write_bytes(damaged(draw, data) if draw.random() < 0.5 else data)
        source = tried(lambda: open_source(tmp_path / "d.txt"))
        return rows_or_failures(source, "d.txt") + Counter(rows=ROWS // 5, failed=9)

    fuzz("list", read)


def test_tars(tmp_path: Path) -> None:
    def read(draw: random.Random) -> Counter[str]:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", errors="surrogatepass") as tar:
            for number in range(ROWS):
                again = number if draw.random() < 0.9 else draw.randrange(number + 1)
                suffix = draw.choice(("png", "PNG", "json", "Json", "txt", "TXT", "bin", ""))
                data = draw.choice((PNG, b"\xff", json.dumps(record(draw)).encode(), b""))
                header = tarfile.TarInfo(f"{again}.{suffix}")
                header.size = len(data)
                header.type = draw.choice((tarfile.REGTYPE,) * 30 + (tarfile.SYMTYPE, b"S", b"Z"))
                tar.addfile(header, io.BytesIO(data))
        data = stream.getvalue()
        whole = draw.random() < 0.6
        (tmp_path / "d.tar").write_bytes(data if whole else damaged(draw, data))
        source = tried(lambda: open_source(tmp_path / "d.tar"))
        return rows_or_failures(source, "d.tar") if source else Counter(failed=1)

    fuzz("tar", read)


def arrow_column(draw: random.Random, rows: int) -> Any:
    """A column of any type, with values that Python may not be able to hold."""
    big = [draw.choice((0, 1, 10**9, 2**61, -(2**61), None)) for _ in range(rows)]
    small = [draw.choice((0, 1, -1, None, 100)) for _ in range(rows)]
    stamps = [pa.timestamp(unit) for unit in ("ms", "us", "ns")]
    stamps += [pa.timestamp("ns", "UTC"), pa.timestamp("ms", "No/Where"), pa.duration("ns")]
    kind = draw.choice(stamps)
    raw = pa.array([draw.choice((b"a", b"\xff\xfe", b"", None)) for _ in range(rows)], pa.binary())
    makers: list[Callable[[], Any]] = [
        lambda: pa.array(big, pa.int64()).cast(kind),
        lambda: pa.array(small, pa.date32()),
        lambda: pa.array(small, pa.time64("ns")),
        lambda: pa.array([None if n is None else float(n) for n in small], pa.float16()),
        lambda: pa.array([None if n is None else Decimal(n) for n in small], pa.decimal128(38, 9)),
        lambda: pa.Array.from_buffers(pa.string(), rows, raw.buffers()),
        lambda: pa.array([[[n]] for n in big], pa.list_(pa.list_(pa.int64()))),
        lambda: pa.ListArray.from_arrays(range(rows + 1), pa.array(big, pa.int64()).cast(kind)),
        lambda: pa.StructArray.from_arrays([pa.array(big, pa.int64()).cast(kind)], ["t"]),
        lambda: pa.array([[("k", n)] for n in small], pa.map_(pa.string(), pa.int64())),
        lambda: pa.array([draw.choice(("x", "y", None)) for _ in range(rows)]).dictionary_encode(),
        lambda: pa.array([{"bytes": PNG, "path": draw.choice((None, "a"))}] * rows),
        lambda: pa.array([draw.choice((PNG, b"", b"x", None)) for _ in range(rows)]),
        lambda: pa.array([draw.choice([t for t in TEXTS if t != "\ud83d"]) for _ in range(rows)]),
        lambda: pa.array([[PNG]] * rows),
        lambda: pa.array([datetime(1, 1, 1), date(1, 1, 1), None][draw.randrange(3):][:1] * rows),
        lambda: pa.array([timedelta(days=1)] * rows),
        lambda: pa.nulls(rows),
    ]  # fmt: skip
    return draw.choice(makers)()


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    path = tmp_path / "d.parquet"

    def read(draw: random.Random) -> Counter[str]:
        names = draw.sample([n for n in NAMES if n not in ("image", "\ud83d")], 5)
        images = pa.array([draw.choice((PNG, None, b"x")) for _ in range(ROWS)], pa.binary())
        columns = {name: arrow_column(draw, ROWS) for name in names}
        columns["image"] = images if draw.random() < 0.7 else arrow_column(draw, ROWS)
        pq.write_table(pa.table(columns), path, row_group_size=draw.choice((60, 250)))
        if draw.random() < 0.3:
            path.write_bytes(damaged(draw, path.read_bytes()))
        source = tried(lambda: ParquetSource([path], cache=Cache(2**20)))
        return rows_or_failures(source, "d.parquet") if source else Counter(failed=1)

    fuzz("parquet", read)


def test_data_sets_of_hugging_face() -> None:
    """What their library can hold at all; a few, as it makes each slowly."""
    datasets = pytest.importorskip("datasets", reason="data sets of Hugging Face")
    draw, found = random.Random(0), Counter[str]()
    for _ in range(max(1, SHARES["parquet"] // 1000)):
        table = {name: arrow_column(draw, 50) for name in ("a", "b", "key")}
        images = pa.array([draw.choice((PNG, None, b"x")) for _ in range(50)], pa.binary())
        table["image"] = images if draw.random() < 0.7 else arrow_column(draw, 50)
        try:
            dataset = datasets.Dataset(pa.table(table))
        except Exception:  # a type that it does not have
            continue
        found += rows_or_failures(open_source(dataset), "dataset")
    assert found["rows"] > 100


def test_an_error_of_any_type_ends_at_the_border() -> None:
    class Hostile(Source):
        def __len__(self) -> int:
            return 3

        def keys(self) -> Any:
            return iter(["a", "b", "c"])

        def _row(self, index: int) -> Any:
            raise (MemoryError(), RecursionError("deep\ndown"), UnicodeError("\ud83d"))[index]

    for index, key in enumerate("abc"):
        with pytest.raises(ViqError, match=f"^{key}: cannot be read"):
            Hostile()[index]

    class Stop(Hostile):
        def _row(self, index: int) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stop()[0]
    assert issubclass(ImageError, ViqError)
