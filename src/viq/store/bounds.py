"""What Parquet files of codes may ask for, and what their rows may say; checked before use.

A file comes from anybody, and a few hundred bytes of Parquet can unpack to terabytes. So the footer
is looked at before anything is read: the columns of a file may take 1 GiB when they are unpacked,
or 64 times the bytes of the file if that is more. Where the codes of a group of rows are many, its
sizes are read first, and say whether the codes are worth their memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viq.core.types import (
    CODES_PER_PATCH,
    MAX_PATCHES,
    MAX_PIXELS,
    PATCH_SIZE,
    CodesError,
    bounded_grid,
    grid_of,
)
from viq.store.footer import columns_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

UNPACKED_BYTES, UNPACKED_RATIO = 1 << 30, 64
_AT_ONCE = 64 << 20  # bytes of codes in a group that are read without a look at the sizes
_ROW_BYTES = 64  # that any row takes, at least, while it is read
_VALUE_BYTES = 4  # that a value takes, about
_COUNTED = 1 << 20  # bytes of files whose values are counted
_MAX_TILE = 0xFFFF  # what a .viq file can hold


class Bounds:
    """Of one Parquet file.

    Args:
        path: of the file.
        file: as it was opened.

    Attributes:
        limit: bytes that all of it may take, unpacked.

    Raises:
        CodesError: its footer says that it is larger than it may be.
    """

    def __init__(self, path: Path, file: pq.ParquetFile) -> None:
        self._path, self._file = path, file
        self.limit = max(UNPACKED_BYTES, UNPACKED_RATIO * path.stat().st_size)
        about = file.metadata
        self._require(about.num_rows * _ROW_BYTES, f"{about.num_rows:,} rows")
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        self._require(sum(group.total_byte_size for group in groups), "its columns, unpacked,")
        if min((min(g.num_rows, g.total_byte_size) for g in groups), default=0) < 0:
            raise CodesError("damaged (its footer has sizes below 0)")
        if sum(group.num_rows for group in groups) != about.num_rows:
            raise CodesError("damaged (its footer and its groups have different numbers of rows)")
        # Where a few bytes can stand for many values, these are counted; in a larger file sizes say
        # nearly the same in less time.
        self._counts: list[dict[str, int]] | None = None
        if path.stat().st_size < _COUNTED:
            self._counts = [{n: count for n, (count, _) in c.items()} for c in columns_of(path)]
        values = Counter[str]()
        for counts in self._counts or ():
            values.update(counts)
        for name, count in values.items():
            width = 2 if name.split(".")[0] == "codes" else _VALUE_BYTES
            self._require(width * count, f"the {count:,} values of column {name}")

    def require(self, columns: Sequence[str]) -> None:
        """Look at all groups of rows before these columns of them are read.

        Raises:
            CodesError: they would take more memory than there may be.
        """
        self._require_groups(range(self._file.metadata.num_row_groups), columns)

    def require_group(self, number: int, columns: Sequence[str]) -> None:
        """As `require`, of one group of rows."""
        self._require_groups([number], columns)

    def require_images(self, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Codes of each image of these sizes, px, int64; 0 where there is no image.

        Raises:
            CodesError: an image is larger than it may be, or all together are.
        """
        sizes = heights.astype(np.int64), widths.astype(np.int64)
        rows, cols = (np.asarray(side) for side in grid_of(sizes))  # pyright: ignore[reportArgumentType]
        none = (sizes[0] == 0) & (sizes[1] == 0)
        bad = ~none & ((np.minimum(*sizes) < 1) | (rows * cols > MAX_PATCHES)
                       | (sizes[0] * sizes[1] > MAX_PIXELS))  # fmt: skip
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            bounded_grid((int(sizes[0][first]), int(sizes[1][first])))  # raises
        codes = rows * cols * CODES_PER_PATCH
        self._require(2 * int(codes.sum()), "the images of some neighbouring rows")
        return codes

    def _require_groups(self, groups: Sequence[int], columns: Sequence[str]) -> None:
        if "codes" in columns:
            self._require_sizes(groups)
        for number in groups:
            group = self._file.metadata.row_group(number)
            # One text may stand in a dictionary, and be meant by any number of rows.
            if group.num_rows * group.total_byte_size > self.limit:
                self._require_texts(number, columns)

    def _require_sizes(self, groups: Sequence[int]) -> None:
        """The sizes of images are possible, and their codes as many as they take."""
        if self._counts is None:
            self._codes_of(groups)
            return
        for number in groups:
            counts = self._counts[number].items()
            values = sum(count for path, count in counts if path.startswith("codes."))
            if 2 * values <= _AT_ONCE:
                continue  # whatever they are
            codes = self._codes_of([number])
            if np.maximum(codes, 1).sum() != values:
                raise CodesError(
                    f"damaged (the sizes of its images take {int(codes.sum()):,} codes, its footer "
                    f"says {values:,})"
                )

    def _codes_of(self, groups: Sequence[int]) -> np.ndarray:
        table = self._file.read_row_groups(list(groups), columns=["height", "width"])
        return self.require_images(*(table[name].to_numpy() for name in ("height", "width")))

    def _require_texts(self, number: int, columns: Sequence[str]) -> None:
        """Read texts as references into their dictionary, and add up what is meant."""
        import pyarrow.parquet as pq

        paths = [path for path in self._file.reader.column_paths if path.split(".")[0] in columns]
        texts = [path for path in paths if self._is_text(path)]
        with pq.ParquetFile(self._path, read_dictionary=texts) as file:
            for path in texts:
                for batch in file.iter_batches(256, row_groups=[number], columns=[path]):
                    self._require(sum(map(_meant, batch.columns)), f"column {path}")

    def _is_text(self, path: str) -> bool:
        place = self._file.reader.column_paths.index(path)
        return self._file.schema.column(place).physical_type == "BYTE_ARRAY"

    def _require(self, wanted: int, what: str) -> None:
        if wanted > self.limit:
            raise CodesError(
                f"{what} would take {wanted / 2**30:,.1f} GiB, and a file of this size may take "
                f"{self.limit / 2**30:,.1f}: no file of codes is packed like this"
            )


def checked(batches: Iterable[pa.RecordBatch], levels: Sequence[int]) -> Iterator[pa.RecordBatch]:
    """Batches of all columns of codes, of which each value is one that a writer of codes writes.

    Args:
        batches: of `CodesReader.batches`, in order.
        levels: of the tokenizer; () if unknown.

    Raises:
        CodesError: a size, a grid, a tile, a code, a place in a sample or a text that cannot be.
    """
    last, codebook = -1, math.prod(levels) if levels else 1 << 16
    for batch in batches:
        batch.validate(full=True)  # offsets, and that texts are UTF-8
        numbers = [batch[name].to_numpy() for name in _NUMBERS]
        if not _is_good(batch["codes"], numbers, last, codebook):
            row, problem = _first_bad(batch["codes"], numbers, last, codebook)
            raise CodesError(f"row {batch['key'][row].as_py()!r} {problem}: the row is damaged")
        last = int(numbers[0][-1]) if len(batch) else last
        yield batch


_NUMBERS = ("image_index", "height", "width", "rows", "cols", "tile")


def _tests(
    codes: pa.ListArray, numbers: Sequence[np.ndarray], last: int
) -> Iterator[tuple[str, np.ndarray]]:
    """What can be wrong with the rows of a batch, and with which it is."""
    index, height, width, *grid, tile = numbers
    rows, cols = (height + (PATCH_SIZE - 1)) >> 4, (width + (PATCH_SIZE - 1)) >> 4
    area = rows.astype(np.int64) * cols
    wrong = (area * CODES_PER_PATCH) != np.diff(codes.offsets.to_numpy())
    wrong |= ((height < 1) | (width < 1)) & ((height | width) != 0)
    yield "is {height}x{width} px, which takes {wanted} codes, but it has {found}", wrong
    yield (
        "is {height}x{width} px, but its grid is {rows}x{cols} patches",
        ((rows != grid[0]) | (cols != grid[1])),
    )
    pixels = height.astype(np.int64) * width
    yield (
        (
            f"is {{height}}x{{width}} px, more than the {MAX_PIXELS:,} pixels of images that were "
            "opened with the usual decode_limit"
        ),
        (pixels > MAX_PIXELS) | (area > MAX_PATCHES),
    )
    follows = np.empty_like(index)
    follows[:1], follows[1:] = last + 1, index[:-1] + 1
    yield (
        "is image {image_index} of its sample, but not after the one before",
        ((index != 0) & (index != follows)),
    )
    yield (
        "was encoded in tiles of {tile} px",
        ((tile < 0) | (tile > _MAX_TILE) | (tile % PATCH_SIZE != 0)),
    )


def _is_good(codes: pa.ListArray, numbers: Sequence[np.ndarray], last: int, codebook: int) -> bool:
    if codes.values.null_count or any(wrong.any() for _, wrong in _tests(codes, numbers, last)):
        return False
    ids = codes.flatten().to_numpy()
    return not ids.size or int(ids.max()) < codebook


def _first_bad(
    codes: pa.ListArray, numbers: Sequence[np.ndarray], last: int, codebook: int
) -> tuple[int, str]:
    """A row of a batch that is not good, and what is wrong with it."""
    if codes.values.null_count:
        return 0, "or one that follows has codes without a value"
    ends = codes.offsets.to_numpy().astype(np.int64)
    for problem, wrong in _tests(codes, numbers, last):
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            shown = {name: int(column[at]) for name, column in zip(_NUMBERS, numbers, strict=True)}
            rows, cols = grid_of((shown["height"], shown["width"]))
            counts = {
                "wanted": rows * cols * CODES_PER_PATCH,
                "found": int(ends[at + 1] - ends[at]),
            }
            return at, problem.format(**shown, **counts)
    ids = codes.flatten().to_numpy()
    at = int(np.searchsorted(ends - ends[0], int(ids.argmax()), side="right")) - 1
    return at, f"has the code {int(ids.max())}, but the codebook has {codebook}"


def _meant(array: pa.Array) -> int:
    """Bytes of all texts that an array of references means."""
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute  # makes its functions when it is imported
    if pa.types.is_dictionary(array.type):
        sizes = pc.binary_length(array.dictionary)
        return pc.sum(sizes.take(array.indices)).as_py() or 0
    if pa.types.is_struct(array.type):
        return sum(map(_meant, array.flatten()))
    if pa.types.is_nested(array.type):
        return _meant(array.flatten() if hasattr(array, "flatten") else array.values)
    return 0
