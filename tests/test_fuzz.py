"""Damaged and hostile bytes: an error of one line, or exactly what was written, nothing else.

    VIQ_FUZZ=1000000 pytest tests/test_fuzz.py

runs so many cases of each kind; without it a few seconds' worth run.
"""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_compress import LEVELS, MODEL, STAMP, codes_of
from tiny_entropy import class_tables, usual_codes

from viq.codec.entropy_model import ENTROPY_FILE, EntropyModel
from viq.core.codes import Codes
from viq.core.types import ViqError
from viq.store.columns import Extras
from viq.store.dataset import CodeDataset
from viq.store.folder import INDEX, Index, Shard, Store, shard_name
from viq.store.rows import CodesReader, CodesWriter, StoreInfo

INFO = StoreInfo(model="viq-test", fingerprint=STAMP, levels=LEVELS)
CASES = int(os.environ.get("VIQ_FUZZ", 150))


def damaged(draw: random.Random, good: bytes) -> bytes:
    """Good bytes with some damage: bits, bytes, runs, cuts, insertions; or no good bytes at all."""
    data = bytearray(good)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        if not data:
            break
        at = draw.randrange(len(data))
        kind = draw.randrange(8)
        if kind < 2:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            data[at] = draw.choice((0, 1, 127, 128, 255))
        elif kind == 3:
            length = draw.randrange(1, 17)
            data[at : at + length] = draw.randbytes(length)
        elif kind == 4:
            del data[at : at + draw.randrange(1, 33)]
        elif kind == 5:
            data[at:at] = draw.randbytes(draw.randrange(1, 33))
        elif kind == 6:
            other = draw.randrange(len(data))
            data[at : at + 8], data[other : other + 8] = data[other : other + 8], data[at : at + 8]
        else:
            data = bytearray(draw.randbytes(draw.randrange(0, 2 * len(good))))
    return bytes(data)


def fuzz(good: bytes, read: Callable[[bytes], bool], seed: int, cases: int = CASES) -> Counter:
    """Read damaged bytes. `read` says whether what came out is what went in.

    Returns:
        How many were refused, and how many came out unharmed.
    """
    draw, outcomes = random.Random(seed), Counter[str]()
    for case in range(cases):
        data = damaged(draw, good)
        try:
            assert read(data), f"case {case} of seed {seed} gave other codes without an error"
            outcomes["unharmed"] += 1
        except ViqError as error:
            assert "\n" not in str(error), f"case {case} of seed {seed}: {error}"
            outcomes["refused"] += 1
    return outcomes


def test_viq_files() -> None:
    codes = codes_of((40, 50))
    found = fuzz(codes.to_bytes(), lambda data: Codes.from_bytes(data) == codes, seed=1)
    assert found["refused"] > 0.9 * CASES


@pytest.mark.parametrize("model", [MODEL, class_tables()], ids=["network", "tables"])
def test_compressed_payloads(model: EntropyModel) -> None:
    codes = usual_codes((16, 30))  # small, because damage shows only once it is decoded
    (payload,) = model.compress([codes])
    outcomes = fuzz(
        payload, lambda data: model.decompress([data], [codes.size], [0]) == [codes], seed=2
    )
    assert outcomes["refused"] > 0.9 * CASES


def test_claims_of_other_sizes() -> None:
    """A payload with another size than its own, as from a row put together by hand."""
    codes = codes_of((40, 50))
    (payload,) = MODEL.compress([codes])
    draw = random.Random(3)
    for _ in range(min(CASES, 100)):
        size = (draw.choice((0, 1, 39, 41, 10**3, 2**31 - 1)), draw.choice((0, 49, 51, 10**5)))
        with pytest.raises(ViqError):
            MODEL.decompress([payload], [size], [0])


@pytest.mark.parametrize("compressed", [False, True])
def test_shards(tmp_path: Path, compressed: bool) -> None:
    """A flipped bit in names or notes may stay unseen; codes never change."""
    rows = [(f"key{i}", codes_of((30 + i, 40), seed=i)) for i in range(6)]
    info = replace(INFO, entropy=MODEL.digest) if compressed else INFO
    MODEL.save_beside(tmp_path)
    extras = Extras.inferred([{"caption": "x"}])
    good, bad = tmp_path / "good.parquet", tmp_path / "bad.parquet"
    with CodesWriter(good, info, extras) as writer:
        for key, codes in rows:
            writer.add(key, codes, extras={"caption": key})
    known = [codes.ids.tobytes() for _, codes in rows]

    def read(data: bytes) -> bool:
        bad.write_bytes(data)
        with CodesReader(bad) as reader:
            found = [(row.codes, row.key) for row in reader.rows()]
        return [codes.ids.tobytes() if codes else b"" for codes, _ in found] == known

    assert read(good.read_bytes())
    fuzz(good.read_bytes(), read, seed=4)


def test_shards_without_sums(tmp_path: Path) -> None:
    """As another program writes them: damage to codes may stay unseen, but ends in one line."""
    good, bad = tmp_path / "good.parquet", tmp_path / "bad.parquet"
    with CodesWriter(good, INFO, Extras.inferred([{"caption": "x"}])) as writer:
        for i in range(6):
            writer.add(f"key{i}", codes_of((30 + i, 40), seed=i), extras={"caption": str(i)})
    table = pq.read_table(good)
    notes = {k: v for k, v in table.schema.metadata.items() if k != b"viq.sums"}
    pq.write_table(table.replace_schema_metadata(notes), good, compression="none")
    number = 0

    def read(data: bytes) -> bool:
        nonlocal number
        bad.write_bytes(data)
        number += 1
        samples = list(CodeDataset(bad, cache=tmp_path / f"cache{number}"))
        shutil.rmtree(tmp_path / f"cache{number}", ignore_errors=True)
        return all(codes.ids.max() < 60 for sample in samples for codes in sample.codes)

    assert read(good.read_bytes())
    fuzz(good.read_bytes(), read, seed=8)


def test_unpacked_shards(tmp_path: Path) -> None:
    path, cache = tmp_path / "codes.parquet", tmp_path / "cache"
    rows = [(f"key{i}", codes_of((30 + i, 40), seed=i)) for i in range(6)]
    with CodesWriter(path, INFO) as writer:
        for key, codes in rows:
            writer.add(key, codes)
    CodeDataset(path, cache=cache)[0]
    (file,) = cache.rglob("*.arrow")

    def read(data: bytes) -> bool:
        file.write_bytes(data)
        return [(s.key, s.codes[0]) for s in CodeDataset(path, cache=cache)] == rows

    assert fuzz(file.read_bytes(), read, seed=7)["unharmed"] == CASES


def test_indexes(tmp_path: Path) -> None:
    shards = tuple(
        Shard(name=shard_name(i), rows=3, inputs=(3 * i, 3 * i + 3), bytes=99, sha256="a" * 64)
        for i in range(2)
    )
    index = Index(info=INFO, options={"tile": 0}, inputs=6, keys="ab" * 8, shards=shards,
                  totals={"rows": 6})  # fmt: skip
    good = index.to_json()
    path = tmp_path / INDEX

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        found = Store(tmp_path).index
        # A changed number in JSON is not to be seen here; lint compares. Names are as they must be.
        return [shard.name for shard in found.shards] == [s.name for s in shards][
            : len(found.shards)
        ]

    fuzz(good, read, seed=5)


@pytest.mark.parametrize("model", [MODEL, class_tables()], ids=["network", "tables"])
def test_entropy_models(tmp_path: Path, model: EntropyModel) -> None:
    good = model.save(tmp_path).read_bytes()
    path = tmp_path / ENTROPY_FILE

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        found = EntropyModel.load(path)
        return all(np.array_equal(found.tensors[k], v) for k, v in model.tensors.items())

    fuzz(good, read, seed=6)
