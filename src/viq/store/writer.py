"""Write codes to one Parquet file, as `viq.store.rows` describes it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from viq.core.codes import Codes
from viq.core.files import written_aside
from viq.core.types import CodesError
from viq.store.arrays import checksum, coder_of, codes_array, counted_arrays
from viq.store.columns import Extras
from viq.store.maker import maker_column, with_maker
from viq.store.schema import NUMBERS, CodeRow, StoreInfo, schema

ROWS_PER_GROUP = 256  # images; a group is what a reader must load to see one row
SUMS = "viq.sums"  # note: `checksum` of every ROWS_PER_GROUP rows
ROWS = "viq.rows"  # note: how many there are


class CodesWriter:
    """Write rows to a Parquet file that appears, whole, only when the block ends well.

    The bytes of the file depend on its rows and notes alone (and on the pyarrow release).

    ```python
    with CodesWriter("codes.parquet", info) as writer:
        writer.add("a.jpg", codes)
    ```
    """

    def __init__(
        self, path: str | os.PathLike[str], info: StoreInfo, extras: Extras | None = None
    ) -> None:
        self.path, self.info, self.extras = Path(path), info, extras
        self._schema = with_maker(schema(info, extras))
        self._coder = coder_of(info.entropy, self.path.parent)
        self._aside = written_aside(self.path)
        self._rows: list[CodeRow] = []
        self._sums: list[int] = []  # of row groups
        self._written = 0  # rows

    def __enter__(self) -> CodesWriter:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(
            self._aside.__enter__(),
            self._schema,
            compression="zstd",
            write_page_checksum=True,
        )
        return self

    def add(
        self,
        key: str,
        codes: Codes | None,
        image_index: int = 0,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        """Add the codes of one image.

        Raises:
            CodesError: the codes were made by another tokenizer than the file's, or in another
                dtype.
        """
        if codes and codes.fingerprint and codes.fingerprint != self.info.fingerprint:
            raise CodesError(
                f"{key}: codes of tokenizer {codes.fingerprint} cannot go into {self.path}, which "
                f"holds codes of {self.info.fingerprint}: write another file"
            )
        if codes and codes.dtype != self.info.dtype:
            raise CodesError(
                f"{key}: codes made in {codes.dtype} cannot go into {self.path}, which holds codes "
                f"made in {self.info.dtype}: write another file"
            )
        if codes and self._counted_otherwise(codes):
            raise CodesError(
                f"{key}: codes with and without counts, or with those of two tokenizers, cannot be "
                f"in one file, {self.path}: write another"
            )
        self._rows.append(CodeRow(key, codes, image_index, extras or {}))
        if len(self._rows) >= ROWS_PER_GROUP:
            self._flush()

    def _counted_otherwise(self, codes: Codes) -> bool:
        if codes.counts is None or not self.info.refinement:
            return codes.counts is not None or bool(self.info.refinement)
        return (codes.refinement, codes.meaning) != (self.info.refinement, self.info.meaning)

    def note(self, name: str, value: Any) -> None:
        """Put `value`, as JSON, into the metadata of the file under `name`."""
        self._writer.add_key_value_metadata({name: json.dumps(value)})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self.note(SUMS, self._sums)
                self.note(ROWS, self._written)
            self._writer.close()
        except BaseException as late:  # a full disk shows only here
            self._aside.__exit__(type(late), late, late.__traceback__)
            raise
        self._aside.__exit__(kind, error, traceback)

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._rows:
            return
        rows, self._rows = self._rows, []
        numbers = np.array([_numbers(row) for row in rows], np.int32)
        columns = [
            pa.array([row.key for row in rows], pa.string()),
            *(pa.array(column) for column in numbers.T.copy()),
            codes_array([row.codes for row in rows], self._coder),
            maker_column(self.info, len(rows)),
            *(counted_arrays([row.codes for row in rows]) if self.info.refinement else ()),
            *(self.extras.columns([row.extras for row in rows]) if self.extras else ()),
        ]
        table = pa.table(columns, schema=self._schema)
        self._sums.append(checksum(table, NUMBERS))
        self._written += len(rows)
        self._writer.write_table(table)


def _numbers(row: CodeRow) -> tuple[int, ...]:
    """In the order of NUMBERS."""
    if row.codes is None:
        return row.image_index, 0, 0, 0, 0, 0
    return row.image_index, *row.codes.size, *row.codes.grid, row.codes.tile
