"""Codes in Parquet: one row an image, readable by any Parquet reader. No torch.

Schema: `key` string; `height`, `width` int32, px of the original; `rows`, `cols` int32, patches;
`tile` int32, side in px of the tiles the image was encoded in, 0 if whole; `codes` list<uint16>,
rows*cols*4 of them, patches in raster order, the four slots of a patch adjacent. Page checksums
are on. File metadata: `viq.model`, `viq.fingerprint`, `viq.levels` (JSON).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from viq.files import written_aside
from viq.types import CODES_PER_PATCH, Codes, CodesError, grid_of

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_PER_GROUP = 256  # images; a group is what a reader must load to see one row


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """Who made the codes of a file."""

    model: str
    fingerprint: str
    levels: tuple[int, ...]

    def metadata(self) -> dict[str, str]:
        """As Parquet file metadata."""
        return {
            "viq.model": self.model,
            "viq.fingerprint": self.fingerprint,
            "viq.levels": json.dumps(list(self.levels)),
        }


def schema(info: StoreInfo) -> pa.Schema:
    """The one Parquet schema of the project."""
    import pyarrow as pa

    numbers = ("height", "width", "rows", "cols", "tile")
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            *(pa.field(name, pa.int32(), nullable=False) for name in numbers),
            pa.field("codes", pa.list_(pa.uint16()), nullable=False),
        ],
        metadata=info.metadata(),
    )


class CodesWriter:
    """Write rows to a Parquet file that appears, whole, only when the block ends well.

    ```python
    with CodesWriter("codes.parquet", info) as writer:
        writer.add("a.jpg", codes)
    ```
    """

    def __init__(self, path: str | os.PathLike[str], info: StoreInfo) -> None:
        self.path, self.info = Path(path), info
        self._aside = written_aside(self.path)
        self._rows: list[tuple[str, Codes]] = []

    def __enter__(self) -> CodesWriter:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(
            self._aside.__enter__(),
            schema(self.info),
            compression="zstd",
            write_page_checksum=True,
        )
        return self

    def add(self, key: str, codes: Codes) -> None:
        """Add the codes of one image.

        Raises:
            CodesError: the codes were made by another tokenizer than the file's.
        """
        if codes.fingerprint and codes.fingerprint != self.info.fingerprint:
            raise CodesError(
                f"{key}: codes of tokenizer {codes.fingerprint} cannot go into {self.path}, which "
                f"holds codes of {self.info.fingerprint}: write another file"
            )
        self._rows.append((key, codes))
        if len(self._rows) >= _ROWS_PER_GROUP:
            self._flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        self._aside.__exit__(kind, error, traceback)

    def _flush(self) -> None:
        import pyarrow as pa

        keys, codes = [key for key, _ in self._rows], [item for _, item in self._rows]
        ends = np.cumsum([0, *(item.ids.size for item in codes)], dtype=np.int32)
        values = np.concatenate([item.ids.ravel() for item in codes]) if codes else np.empty(0)
        columns = [
            pa.array(keys, pa.string()),
            pa.array([item.size[0] for item in codes], pa.int32()),
            pa.array([item.size[1] for item in codes], pa.int32()),
            pa.array([item.grid[0] for item in codes], pa.int32()),
            pa.array([item.grid[1] for item in codes], pa.int32()),
            pa.array([item.tile for item in codes], pa.int32()),
            pa.ListArray.from_arrays(ends, pa.array(values.astype(np.uint16))),
        ]
        if codes:
            self._writer.write_table(pa.table(columns, schema=schema(self.info)))
        self._rows = []


class CodesReader:
    """Read a Parquet file of codes: who made them, how many, and row by row.

    Raises:
        CodesError: not a Parquet file, not one of codes, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = Path(path)
        try:
            self._file = pq.ParquetFile(self.path, page_checksum_verification=True)
        except FileNotFoundError:
            raise CodesError(f"{self.path}: no such file") from None
        except (OSError, pa.ArrowException) as error:
            raise CodesError(f"{self.path}: not a Parquet file ({_line(error)})") from None
        found = self._file.schema_arrow
        metadata = {k.decode(): v.decode() for k, v in (found.metadata or {}).items()}
        missing = [name for name in ("key", "height", "width", "codes") if name not in found.names]
        if missing or "viq.fingerprint" not in metadata:
            raise CodesError(
                f"{self.path}: a Parquet file, but not of ViQ codes (columns {found.names}); "
                "write one with viq encode"
            )
        self.info = StoreInfo(
            model=metadata.get("viq.model", ""),
            fingerprint=metadata["viq.fingerprint"],
            levels=tuple(json.loads(metadata.get("viq.levels", "[]"))),
        )

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def keys(self) -> list[str]:
        """The keys of all rows, without reading their codes."""
        return self._file.read(columns=["key"]).column("key").to_pylist()

    def __iter__(self) -> Iterator[tuple[str, Codes]]:
        import pyarrow as pa

        names = [n for n in ("key", "height", "width", "tile", "codes")
                 if n in self._file.schema_arrow.names]  # fmt: skip
        batches = self._file.iter_batches(batch_size=_ROWS_PER_GROUP, columns=names)
        while True:
            try:
                batch = next(batches, None)
            except (OSError, pa.ArrowException) as error:
                raise CodesError(f"{self.path}: damaged ({_line(error)})") from None
            if batch is None:
                return
            columns = {name: batch.column(name) for name in names}
            for i in range(batch.num_rows):
                values = {name: column[i] for name, column in columns.items()}
                yield self._row(values)

    def _row(self, values: dict[str, pa.Scalar]) -> tuple[str, Codes]:
        key = values["key"].as_py()
        height, width = values["height"].as_py(), values["width"].as_py()
        ids = np.asarray(values["codes"].values, np.uint16)
        rows, cols = grid_of((height, width))
        if ids.size != rows * cols * CODES_PER_PATCH:
            raise CodesError(
                f"{self.path}: row {key!r} is {height}x{width} px, which takes "
                f"{rows * cols * CODES_PER_PATCH} codes, but it has {ids.size}: the row is damaged"
            )
        tile = values["tile"].as_py() if "tile" in values else 0
        ids = ids.reshape(rows, cols, CODES_PER_PATCH)
        return key, Codes(ids, (height, width), tile, self.info.fingerprint)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
