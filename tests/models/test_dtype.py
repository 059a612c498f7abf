"""Codes that were made in another dtype than float32 say so."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from viq.core.codes import Codes
from viq.core.types import DTYPES, CodesError
from viq.data.sources.files import FileSource
from viq.jobs import info
from viq.jobs.encode import encode
from viq.jobs.store.merge import merge
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.dataset import CodeDataset
from viq.store.folder import Store
from viq.store.rows import CodesReader, CodesWriter, StoreInfo

IDS = np.arange(8, dtype=np.uint16).reshape(1, 2, 4)


def test_bytes_carry_the_dtype_and_those_of_float32_are_as_before() -> None:
    plain = Codes(IDS, (16, 32), 0, "0123456789abcdef")
    assert plain.to_bytes()[4] == 1 and len(plain.to_bytes()) == 28 + 16
    for number, dtype in enumerate(DTYPES[1:], 1):
        codes = Codes(IDS, (16, 32), 0, "0123456789abcdef", dtype)
        data = codes.to_bytes()
        assert (data[4], data[28], len(data)) == (2, number, 28 + 1 + 16)
        assert Codes.from_bytes(data) == codes != plain
        for place in range(len(data)):
            with pytest.raises(CodesError):
                Codes.from_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(CodesError, match="choose from float32"):
        Codes(IDS, (16, 32), dtype="int8")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of one picture each, by the dtype of the tokenizer."""
    root = tmp_path_factory.mktemp("dtypes")
    tiny.picture(0).save(root / "a.png")
    tiny.tokenizer().save_pretrained(root / "model")
    for dtype in (torch.float32, torch.bfloat16):
        model = VisualTokenizer.from_pretrained(root / "model", dtype=dtype)
        encode(model, FileSource([root / "a.png"]), root / model.dtype_name, workers=1)
        encode(model, FileSource([root / "a.png"]), root / f"{model.dtype_name}.parquet", workers=1)
    return {"float32": root / "float32", "bfloat16": root / "bfloat16"}


def test_stores_carry_the_dtype(stores: dict[str, Path], tmp_path: Path) -> None:
    for dtype, folder in stores.items():
        for place in (folder, folder.with_suffix(".parquet")):
            assert info.describe(str(place))["dtype"] == dtype
            data = CodeDataset(place, cache=tmp_path / dtype)
            assert data.info.dtype == data[0].codes[0].dtype == dtype
            assert [codes.dtype for _, codes in Store(place)] == [dtype]
    index = json.loads((stores["float32"] / "_index.json").read_text())
    assert "dtype" not in index and index["options"]["dtype"] == "float32"  # as it was before
    metadata = CodesReader(stores["float32"].with_suffix(".parquet")).metadata
    assert "viq.dtype" not in metadata


def test_a_store_from_before_tells_by_its_options(stores: dict[str, Path], tmp_path: Path) -> None:
    file = stores["bfloat16"].with_suffix(".parquet")
    table = pq.read_table(file)
    metadata = dict(pq.read_metadata(file).metadata or {})
    del metadata[b"viq.dtype"], metadata[b"ARROW:schema"]
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "old.parquet")
    assert CodesReader(tmp_path / "old.parquet").info.dtype == "bfloat16"


def test_dtypes_are_not_mixed(stores: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CodesError, match="made in bfloat16, but .* made in float32"):
        merge([stores["float32"], stores["bfloat16"]], tmp_path / "both")
    about = StoreInfo(model="", fingerprint="", levels=(), dtype="float16")
    with (
        pytest.raises(CodesError, match=r"made in float32 cannot go into .* made in float16"),
        CodesWriter(tmp_path / "x.parquet", about) as writer,
    ):
        writer.add("a", Codes(IDS, (16, 32)))
