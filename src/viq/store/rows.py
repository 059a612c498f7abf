"""Codes in one Parquet file: one row an image, readable by any Parquet reader.

Schema: `key` string; `image_index` int32, place of the image in its sample; `height`, `width`
int32, px of the original; `rows`, `cols` int32, patches; `tile` int32, side in px of the tiles the
image was encoded in, 0 if whole; `codes` list<uint16>, rows*cols*4 of them, patches in raster
order, the four slots of a patch adjacent; then the columns that ride along (`store.columns`).
Page checksums are on. File metadata: `viq.model`, `viq.fingerprint`, `viq.levels` (JSON),
`viq.dtype` where the tokenizer did not compute in float32, and whatever the job that wrote the
file notes. The column `viq` says the same in every row, for programs that lose the metadata
(`store.maker`); files that these have rewritten are read as well (`store.foreign`).

A store with counts (`viq encode --bpp`) has two more columns: `code_counts`, binary, what
`viq.core.counts` packs, and `extra_codes`, binary, the codes beyond the fourth as little-endian
uint16; `codes` has four a patch all the same, so who reads four need not know. The metadata then
has `viq.refinement`, the digest of what reads the extra codes, and `viq.meaning`.

Compressed, `codes` is binary: a payload of `viq.codec.entropy_model` for each image, which with
counts holds those ids alone that count. The metadata then has `viq.entropy`, the digest of the
entropy model, which lies beside the file.

A row is an image, not a sample, so that every tool that looks at codes sees one simple table. The
images of a sample are neighbours in one file and share key and extras (which compress to nothing);
`image_index` 0 begins a sample. A sample without images is one row of size 0 x 0 without codes.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viq.core.codes import Codes
from viq.core.files import require_regular
from viq.core.types import CODES_PER_PATCH, FLOAT32, CodesError, ViqError, grid_of
from viq.core.untrusted import UntrustedError, parse_json
from viq.store.arrays import checksum, coder_of, decompressed, with_counts
from viq.store.bounds import Bounds, checked
from viq.store.columns import MAKER, Extras
from viq.store.footer import columns_of
from viq.store.foreign import as_ours, is_as_written, is_like
from viq.store.maker import is_marked, read_maker
from viq.store.schema import COLUMNS, NUMBERS, CodeRow, StoreInfo, counted_columns, schema
from viq.store.writer import ROWS, ROWS_PER_GROUP, SUMS
from viq.store.writer import CodesWriter as CodesWriter

if TYPE_CHECKING:
    import pyarrow as pa

_OPTIONAL = {"image_index", "rows", "cols", "tile"}  # files of other writers may lack them


class CodesReader:
    """Read a Parquet file of codes: who made them, how many, and row by row.

    Iterating gives (key, codes) of every image; `rows` gives all there is.

    Args:
        checked: refuse rows that no writer writes (see `store.bounds`). Without, only those whose
            size and codes do not fit are refused, and the rest is for the caller to judge.

    Raises:
        CodesError: not a Parquet file, not one of codes, damaged, or asks for more memory than a
            file of codes needs (see `store.bounds`).
    """

    def __init__(self, path: str | os.PathLike[str], *, checked: bool = True) -> None:
        import pyarrow.parquet as pq

        self.path, self._checked = Path(path), checked
        with _named(self.path, "not a Parquet file"), ExitStack() as failed:
            require_regular(self.path)
            self._file = pq.ParquetFile(self.path, page_checksum_verification=True)
            failed.callback(self._file.close)
            self._bounds = Bounds(self.path, self._file)
            self._describe()
            self._firsts: list[int] | None = None  # row of each group, once it is asked for
            failed.pop_all()

    def _describe(self) -> None:
        found = self._file.schema_arrow
        self.metadata = {
            k.decode(errors="replace"): v.decode(errors="replace")
            for k, v in (self._file.metadata.metadata or {}).items()
        }
        is_ours = "viq.fingerprint" in self.metadata and is_as_written(
            self._file, ROWS_PER_GROUP, self.note(ROWS)
        )
        self.sums: Any = self.note(SUMS) if is_ours else None
        has_maker = MAKER in found.names and (not is_ours or is_marked(found.field(MAKER)))
        self.info = self._maker(has_maker and not is_ours)
        self._types = {f.name: f.type for f in schema(self.info) if f.name in found.names}
        ours = (*COLUMNS, *counted_columns(self.info))
        wrong = set(ours) - _OPTIONAL - self._types.keys() or any(
            found.names.count(name) != 1 or not is_like(found.field(name).type, wanted)
            for name, wanted in self._types.items()
        )
        lost = [name for name in counted_columns(self.info) if name not in found.names]
        if lost:
            raise CodesError(
                f"has codes made with --bpp, --psnr or --nbytes, but not the column {lost[0]} that "
                "belongs to them; write the file again with it"
            )
        if wrong:
            raise self._not_codes()
        self.columns = [name for name in ours if name in found.names]
        own = {*ours, *([MAKER] if has_maker else ())}
        fields = (found.field(n) for n in found.names if n not in own)
        self.extras = Extras(fields) if is_ours else Extras.of_others(fields)

    def _maker(self, by_rows: bool) -> StoreInfo:
        """Who made the codes, by the rows or by the metadata."""
        if by_rows:
            self._bounds.require([MAKER])
            return read_maker(self.path)
        if "viq.fingerprint" not in self.metadata:
            raise self._not_codes()
        values = {name: self.metadata.get(f"viq.{name}", "") for name in ("model", "fingerprint")}
        return StoreInfo.checked(
            {
                **values,
                "levels": self.note("viq.levels"),
                "entropy": self.metadata.get("viq.entropy", ""),
                "dtype": self.metadata.get("viq.dtype") or self._noted_dtype(),
                "refinement": self.metadata.get("viq.refinement", ""),
                "meaning": self.note("viq.meaning"),
            }
        )

    def _not_codes(self) -> CodesError:
        names = self._file.schema_arrow.names
        return CodesError(
            f"a Parquet file, but not of ViQ codes (columns {names}); write one with viq encode"
        )

    def as_ours(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch with our columns in the types of our writer. Raises if a value does not fit."""
        import pyarrow as pa

        fields = [f.with_type(self._types.get(f.name, f.type)) for f in batch.schema]
        if all(old == new for old, new in zip(batch.schema, fields, strict=True)):
            return batch
        columns = [as_ours(array, f.type) for array, f in zip(batch.columns, fields, strict=True)]
        return pa.record_batch(columns, schema=pa.schema(fields))

    def _noted_dtype(self) -> str:
        """Of files from before there was `viq.dtype`: among the options of the job, if anywhere."""
        options = self.note("viq.options")
        return str(options.get("dtype", FLOAT32)) if isinstance(options, dict) else FLOAT32

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def __enter__(self) -> CodesReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def codes_bytes(self) -> int:
        """Bytes that the codes take in the file, without keys, sizes and what rides along."""
        with _named(self.path):
            return sum(
                nbytes
                for columns in columns_of(self.path)
                for path, (_, nbytes) in columns.items()
                if path.split(".")[0] in ("codes", *counted_columns(self.info))
            )

    def note(self, name: str) -> Any:
        """What the writer noted under `name`; None if nothing."""
        try:
            return parse_json(self.metadata.get(name, "null"), name)
        except UntrustedError as error:
            raise CodesError(f"{self.path}: damaged ({error})") from None

    def keys(self) -> list[str]:
        """The keys of all rows, without reading their codes."""
        with _named(self.path):
            return [key for batch in self._batches(["key"]) for key in batch["key"].to_pylist()]

    def begins_sample(self) -> np.ndarray:
        """Whether each row is the first of its sample, without reading codes."""
        if "image_index" not in self.columns:
            return np.ones(len(self), bool)
        with _named(self.path):
            batches = self._batches(["image_index"])
            parts = [batch["image_index"].to_numpy() == 0 for batch in batches]
        return np.concatenate([np.empty(0, bool), *parts])

    def __iter__(self) -> Iterator[tuple[str, Codes]]:
        for row in self.rows(columns=()):
            if row.codes is not None:
                yield row.key, row.codes

    def rows(
        self, columns: Sequence[str] | None = None, only: int | None = None
    ) -> Iterator[CodeRow]:
        """All rows, in order.

        Args:
            columns: of the extras; None for all.
            only: number of a row, to give that alone. Of the file, its group of rows is read.

        Raises:
            CodesError: the file has no such column, or is damaged.
        """
        extras = self.extras if columns is None else self.extras.only(columns, str(self.path))
        with _named(self.path):
            for batch in self.batches(extras, only):
                names = ("image_index", "height", "width", "tile")
                numbers = zip(*(batch[name].to_numpy().tolist() for name in names), strict=True)
                ends, values = batch["codes"].offsets.to_pylist(), batch["codes"].values.to_numpy()
                places = zip(ends[:-1], ends[1:], strict=True)
                keys, rest = batch["key"].to_pylist(), extras.rows(batch)
                counted = self._counted(batch)
                for key, (index, height, width, tile), (start, stop), values_of, more in zip(
                    keys, numbers, places, rest, counted, strict=True
                ):
                    codes = self._codes(key, values[start:stop], (height, width), tile, more)
                    yield CodeRow(key, codes, index, values_of)

    def _counted(self, batch: pa.RecordBatch) -> list[tuple[bytes, ...]]:
        """Of each row, the bytes of its counts and extra codes; nothing in files without."""
        names = counted_columns(self.info)
        if not names:
            return [()] * batch.num_rows
        return list(zip(*(batch[name].to_pylist() for name in names), strict=True))

    def batches(
        self, extras: Extras, only: int | None = None, *, group: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """All rows as Arrow batches of `plain_schema`: none is missing, none compressed.

        Args:
            only: number of a row, to give that alone.
            group: number of a group of rows, to give that alone.

        Raises:
            CodesError: damaged, or `checked` and a row that no writer writes; names the row.
        """
        with _named(self.path):
            batches = self._plain(extras, only, group)
            yield from checked(batches, self.info.levels) if self._checked else batches

    def light(self, names: Sequence[str], group: int | None = None) -> Iterator[pa.RecordBatch]:
        """Some columns as they lie in the file, of all rows or of one group of them: to list what
        is there without reading codes.

        Raises:
            CodesError: damaged.
        """
        with _named(self.path):
            yield from self._batches(list(names), group)

    def group_of(self, row: int) -> tuple[int, int]:
        """The group of a row, and the number of the first row of that group."""
        if self._firsts is None:
            file = self._file.metadata
            sizes = [file.row_group(i).num_rows for i in range(file.num_row_groups)]
            self._firsts = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
        group = bisect_right(self._firsts, row) - 1
        return group, self._firsts[group]

    def _plain(
        self, extras: Extras, only: int | None, group: int | None
    ) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        with _named(self.path):
            coder = coder_of(self.info.entropy, self.path.parent)
            wanted = self.plain_schema(extras)
            names = [*self.columns, *(f.name for f in extras.fields)]
            found = self._batches(names, group) if only is None else self._alone(names, only)
            for batch in found:
                columns = {name: batch[name] for name in batch.schema.names}
                sizes = batch["height"].to_numpy(), batch["width"].to_numpy()
                if coder:
                    self._bounds.require_images(*sizes)
                grids = grid_of(sizes)  # arrays work as well
                columns.setdefault("rows", pa.array(grids[0]))
                columns.setdefault("cols", pa.array(grids[1]))
                for name in NUMBERS:
                    columns.setdefault(name, pa.array(np.zeros(batch.num_rows, np.int32)))
                if coder:
                    columns["codes"] = decompressed(batch, coder, self.info.meaning)
                yield pa.record_batch([columns[name] for name in wanted.names], schema=wanted)

    def plain_schema(self, extras: Extras) -> pa.Schema:
        """The schema of `batches`."""
        return schema(replace(self.info, entropy=""), extras)

    def _alone(self, names: list[str], row: int) -> Iterator[pa.RecordBatch]:
        """A batch of one row."""
        group, first = self.group_of(row)
        for batch in self._batches(names, group):
            if first <= row < first + batch.num_rows:
                yield batch.slice(row - first, 1)
            first += batch.num_rows

    def _batches(self, names: list[str], group: int | None = None) -> Iterator[pa.RecordBatch]:
        """All rows or a group, checked: nothing is missing, and what was written comes back."""
        sums = self.sums if set(COLUMNS) <= set(names) else None
        groups = None
        if group is not None:  # the sums of our own files are those of groups
            groups, sums = [group], sums if sums is None else sums[group : group + 1]
            self._bounds.require_group(group, names)
        else:
            self._bounds.require(names)
        count = 0
        for batch in self._file.iter_batches(
            batch_size=ROWS_PER_GROUP, row_groups=groups, columns=names
        ):
            empty = [n for n in names if n in self.columns and batch[n].null_count]
            if empty:
                raise CodesError(f"damaged (missing values in column {empty[0]})")
            batch = self.as_ours(batch)
            if sums is not None and sums[count : count + 1] != [checksum(batch, NUMBERS)]:
                raise CodesError(f"damaged (rows {count * ROWS_PER_GROUP} and following)")
            count += 1
            yield batch
        if sums is not None and len(sums) != count:
            raise CodesError(f"damaged ({count} groups of rows, {len(sums)} were written)")

    def _codes(
        self,
        key: str,
        ids: np.ndarray,
        size: tuple[int, int],
        tile: int,
        counted: tuple[bytes, ...] = (),
    ) -> Codes | None:
        if size == (0, 0) and not ids.size:
            return None
        rows, cols = grid_of(size)
        if min(size) < 1 or ids.size != rows * cols * CODES_PER_PATCH:
            raise CodesError(
                f"{self.path}: row {key!r} is {size[0]}x{size[1]} px, which takes "
                f"{rows * cols * CODES_PER_PATCH} codes, but it has {ids.size}: the row is damaged"
            )
        ids = ids.reshape(rows, cols, CODES_PER_PATCH)
        codes = Codes(ids, size, tile, self.info.fingerprint, self.info.dtype)
        if not counted:
            return codes
        try:
            counts, extra = counted
            return with_counts(codes, counts, extra, self.info.refinement, self.info.meaning)
        except CodesError as error:
            raise CodesError(f"{self.path}: row {key!r}: {error}: the row is damaged") from None


@contextmanager
def _named(path: Path, what: str = "damaged") -> Iterator[None]:
    """Every failure as one line that names the file.

    Only damage can cause them, and what it makes Arrow and the code behind it raise is anyone's
    guess: the footer of a Parquet file has no checksum.
    """
    try:
        yield
    except FileNotFoundError:
        raise CodesError(f"{path}: no such file") from None
    except ViqError as error:
        where = "" if str(error).startswith(str(path)) else f"{path}: "
        raise CodesError(f"{where}{error}") from None
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CodesError(f"{path}: {what} ({reason or type(error).__name__})") from None
