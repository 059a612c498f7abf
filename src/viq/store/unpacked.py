"""Files of a cache: Arrow files of unpacked shards, with sums that show rotten bits.

The codes of a batch are summed up when the batch is first used, so that a shard is at hand at once
and its bytes come from memory only once; all the rest (names, sizes, what rides along, and Arrow's
own frame) is summed up before Arrow sees it. A sum is a CRC-32 of the sums of blocks of 64 KiB as
64-bit words: one flipped bit always shows, and it is as fast as memory, which CRC-32 is not.

```
Arrow file        as `pyarrow.ipc.new_file` writes it, uncompressed
3 x uint64 ..     for each batch: where its codes begin, where they end, their sum
uint64            sum of all other bytes of the Arrow file
uint64            batches
uint32, "ViQs"    CRC-32 of the lines above
```
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from viq.core.types import CodesError

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 1 << 16
_WORD = struct.Struct("<Q")
_END = struct.Struct("<I4s")
_MAGIC = b"ViQs"


class RottenError(CodesError):
    """An unpacked file is not what was written: unpack it again."""


def write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write batches that have a column `codes` of lists of uint16."""
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        for batch in batches:
            out.write_batch(batch)
    with pa.memory_map(str(path)) as mapped:
        whole = mapped.read_buffer()
        data = np.frombuffer(whole, np.uint8)
        parts = []
        for batch in _batches(whole):
            codes = batch["codes"].values.buffers()[1]
            start = codes.address - whole.address if codes else 0
            parts.append((start, start + (codes.size if codes else 0)))
        words = [word for start, stop in parts for word in (start, stop, _sum(data[start:stop]))]
        words += [_rest(data, parts), len(parts)]
    tail = b"".join(map(_WORD.pack, words))
    with path.open("ab") as file:
        file.write(tail + _END.pack(zlib.crc32(tail), _MAGIC))


class Unpacked:
    """Such a file, memory-mapped.

    Attributes:
        schema: of the batches.
        batches: all of them; `require` one before its codes are used.
        nbytes: of the file.
        address: of its first byte, in memory.

    Raises:
        RottenError: it is damaged, or no such file.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._path = path
        try:
            with pa.memory_map(str(path)) as mapped:
                whole = mapped.read_buffer()
            self._data = np.frombuffer(whole, np.uint8)
            self._parts, sums, size = self._tail()
            self._sums: list[int | None] = list(sums[:-1])
            if _rest(self._data[:size], self._parts) != sums[-1]:
                raise ValueError("another sum")
        except ValueError:  # also what Arrow raises for an empty file
            raise self.rotten() from None
        self.nbytes, self.address = len(self._data), whole.address
        frame = whole.slice(0, size)
        self.schema = pa.ipc.open_file(pa.BufferReader(frame)).schema
        self.batches = _batches(frame)

    def require(self, number: int) -> None:
        """Look at the codes of a batch, if that was not done before.

        Raises:
            RottenError: they are damaged.
        """
        wanted = self._sums[number]
        if wanted is not None:
            start, stop = self._parts[number]
            if _sum(self._data[start:stop]) != wanted:
                raise self.rotten()
            self._sums[number] = None

    def _tail(self) -> tuple[list[tuple[int, int]], list[int], int]:
        """Where codes are, all sums, and bytes of the Arrow file. Raises ValueError if damaged."""
        end = len(self._data) - _END.size
        if end < _WORD.size:
            raise ValueError("too short")
        count = _WORD.unpack(self._data[end - _WORD.size : end].tobytes())[0]
        start = end - (2 + 3 * count) * _WORD.size
        checksum, magic = _END.unpack(self._data[end:].tobytes())
        if start < 0 or magic != _MAGIC or zlib.crc32(self._data[start:end].tobytes()) != checksum:
            raise ValueError("no sums")
        words = np.frombuffer(self._data[start : end - _WORD.size].tobytes(), "<u8").tolist()
        parts = list(zip(words[0:-1:3], words[1:-1:3], strict=True))
        return parts, [*words[2:-1:3], words[-1]], start

    def rotten(self) -> RottenError:
        """The error that says so."""
        return RottenError(f"{self._path}: is damaged; remove it")


def _batches(frame: pa.Buffer) -> list[pa.RecordBatch]:
    import pyarrow as pa

    file = pa.ipc.open_file(pa.BufferReader(frame))
    return [file.get_batch(i) for i in range(file.num_record_batches)]


def _rest(data: np.ndarray, parts: Iterable[tuple[int, int]]) -> int:
    """Sum of all that lies between the parts."""
    total = last = 0
    for start, stop in [*sorted(part for part in parts if part[0] < part[1]), (len(data), 0)]:
        total = zlib.crc32(_WORD.pack(_sum(data[last:start])), total)
        last = stop
    return total


def _sum(data: np.ndarray) -> int:
    """Sum of bytes (uint8)."""
    whole = len(data) // _BLOCK * _BLOCK
    blocks = data[:whole].view("<u8").reshape(-1, _BLOCK // 8).sum(axis=1, dtype=np.uint64)
    return zlib.crc32(data[whole:].tobytes(), zlib.crc32(blocks.tobytes()))
