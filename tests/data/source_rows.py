"""Inputs of one grey pixel, and what is asked of the sources that read them."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from viq.data.sources.open import Row, Source, SourceError, open_source

MakeTar = Callable[..., Path]


def picture(shade: int) -> bytes:
    """A PNG of one grey pixel, unlike that of any other shade."""
    stream = io.BytesIO()
    Image.new("L", (1, 1), shade).save(stream, "PNG")
    return stream.getvalue()


def shade(row: Row, index: int = 0) -> int:
    return row.open(index).tobytes()[0]


def keys(source: Source) -> list[str]:
    """The keys, which `keys()` and the rows must agree on."""
    found = [row.key for row in source]
    assert list(source.keys()) == found
    assert len(source) == len(found) == len(set(found))
    return found


def refused(spec: Any, reason: str, **options: Any) -> None:
    with pytest.raises(SourceError, match=reason) as error:
        open_source(spec, **options)
    assert "\n" not in str(error.value)


def bad_row(source: Source, index: int, reason: str) -> None:
    with pytest.raises(SourceError, match=reason) as error:
        source[index]
    assert "\n" not in str(error.value)


def write_parquet(path: Path, table: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(table), path, **options)
    return path
