"""A store as its pages show it: any page at once, rows that fit a filter, pictures on demand."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from viq.core.codes import Codes
from viq.core.errors import ViqError
from viq.core.files import read_bytes
from viq.core.remote import Location
from viq.core.types import CodesError
from viq.core.untrusted import INDEX_BYTES, parse_json, printable
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.folder import LEDGER, Store
from viq.store.rows import CodesReader
from viq.web.vectors import Vectors
from viq.weights.bundled import bundled_maker

if TYPE_CHECKING:
    import pyarrow as pa

_READERS = 32  # files of a store that are kept open
_TABLE_BYTES = 2**29  # of keys, sizes and texts that are kept for filters
_FILTERS, _THUMBS = 32, 2000  # answers that are kept
_THUMB = 192  # px of the longer side
_CELL = 300  # characters of a value that are shown
_NUMBERS = ("image_index", "height", "width")


@dataclass(frozen=True)
class Listed:
    """A row without its codes: `number` in the store, and what is said of it."""

    number: int
    key: str
    image_index: int
    height: int
    width: int
    extras: list[tuple[str, str]]


@dataclass(frozen=True)
class Filter:
    """Which rows: whose key and texts hold these words, and whose longer side is within bounds."""

    key: str = ""
    text: str = ""
    least: int = 0
    most: int = 0  # 0 for any
    no_image: bool = False

    def __bool__(self) -> bool:
        return self != Filter()


class OpenStore:
    """A store, read row by row; by any thread.

    Args:
        tokenizer: decodes, if it made the codes; else the bundled model that did, if one did.

    Attributes:
        name: of pages; the last part of where it is, unless another one is given.
        tokenizer: what decodes, or None.
        results: of jobs on the whole store, by name.
        files_read: of those whose keys, sizes and texts filters look at.

    Raises:
        CodesError: no finished store.
    """

    def __init__(self, path: Location, tokenizer: VisualTokenizer) -> None:
        import pyarrow.parquet  # noqa: F401  (a tenth of a second that no visitor should wait)

        self.path = path
        self.store = Store(path)
        self.name = printable(Path(str(path)).name or str(path), 80)
        self.tokenizer = _decoder(self.store, tokenizer)
        self.results: dict[str, dict[str, Any]] = {}
        self._firsts = [0, *np.cumsum([s.rows for s in self.store.shards]).tolist()]
        self._readers: OrderedDict[int, CodesReader] = OrderedDict()
        self._lock, self._filtering = Lock(), Lock()
        self._table: pa.Table | None = None
        self._reading: Event | None = None  # set when it has ended
        self.files_read = 0
        self._found: OrderedDict[Filter, np.ndarray] = OrderedDict()
        self._thumbs: OrderedDict[int, bytes] = OrderedDict()
        self._vectors: Vectors | None = None

    def __len__(self) -> int:
        return self._firsts[-1]

    @property
    def columns(self) -> list[str]:
        """Names of what rides along."""
        return list(self.store.index.columns)

    def rows(self, numbers: Sequence[int]) -> list[Listed]:
        """What is said of rows, by their numbers; codes are not read."""
        found: dict[int, Listed] = {}
        for number in numbers:
            if number not in found:
                found |= self._group(number, set(numbers))
        return [found[number] for number in numbers]

    def codes(self, number: int) -> Codes | None:
        """The codes of a row, or None where there is no picture.

        Raises:
            IndexError: no such row.
        """
        shard, place = self._place(number)
        with self._lock:
            (row,) = self._reader(shard).rows(columns=(), only=place)
        return row.codes

    def thumbnail(self, number: int, most_pixels: int) -> bytes | None:
        """A small WebP picture of a row; None where there is none.

        Raises:
            ViqError: cannot be decoded, or has more pixels than may be.
        """
        with self._lock:
            if number in self._thumbs:
                return self._thumbs[number]
        codes = self.codes(number)
        if codes is None:
            return None
        image = self.decoded(codes, most_pixels)
        image.thumbnail((_THUMB, _THUMB))
        stream = io.BytesIO()
        image.save(stream, "WEBP", quality=85, method=2)
        with self._lock:
            self._thumbs[number] = stream.getvalue()
            if len(self._thumbs) > _THUMBS:
                self._thumbs.popitem(last=False)
        return stream.getvalue()

    def decoded(self, codes: Codes, most_pixels: int) -> Image.Image:
        """The picture of codes. Raises `ViqError` as `thumbnail`."""
        if codes.size[0] * codes.size[1] > most_pixels:
            raise ViqError(f"more than {most_pixels / 1e6:g} megapixels; viq decode writes it")
        return self.require_tokenizer().decode(codes)[0]

    def require_tokenizer(self) -> VisualTokenizer:
        """What decodes. Raises `ViqError` where nothing here does."""
        if self.tokenizer is None:
            raise ViqError(
                f"made by {self.store.info.model or 'a tokenizer'} {self.store.info.fingerprint}: "
                "start viq web with --model of that tokenizer to see pictures"
            )
        return self.tokenizer

    def vectors(self, most: int) -> Vectors:
        """Of up to so many rows; begins to compute them when it is first asked.

        Raises:
            ViqError: nothing here decodes, or what does has no text head.
        """
        with self._lock:
            if self._vectors is None:
                self._vectors = Vectors(self.store, self.require_tokenizer(), most)
            return self._vectors

    def prepare(self) -> None:
        """Read what filters look at, so that nobody waits for it. A store behind a URL is left
        alone, as all of it would be fetched."""
        if isinstance(self.path, Path):
            self.await_filters(None)

    def await_filters(self, seconds: float | None) -> bool:
        """Whether what filters look at has been read, after so long at most; None: until it is.
        A thread reads it, from when it is first asked."""
        with self._lock:
            if self._reading is None:
                self._reading = Event()
                Thread(target=self._read, daemon=True, name="viq-web-filters").start()
        return self._reading.wait(seconds)

    def close(self) -> None:
        """End what computes vectors."""
        if self._vectors is not None:
            self._vectors.close()

    def matching(self, wanted: Filter) -> np.ndarray:
        """Numbers of the rows that fit, in order.

        Raises:
            ViqError: filters by text, where texts take too much memory.
        """
        with self._filtering:
            if wanted not in self._found:
                self._found[wanted] = self._scan(wanted)
                if len(self._found) > _FILTERS:
                    self._found.popitem(last=False)
            self._found.move_to_end(wanted)
            return self._found[wanted]

    def failures(self, first: int, count: int) -> tuple[list[tuple[str, str]], int]:
        """(key, reason) of inputs that gave no codes, and how many there are in all."""
        if isinstance(self.path, str) or not self.path.is_dir():
            return [], 0
        try:
            lines = read_bytes(self.path / LEDGER, INDEX_BYTES).splitlines()
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise CodesError(f"{LEDGER}: cannot be read ({error.strerror})") from None
        shown = [parse_json(line, LEDGER) for line in lines[first : first + count]]
        pairs = [(x.get("key"), x.get("reason")) for x in shown if isinstance(x, dict)]
        return [(_short(key), _short(reason)) for key, reason in pairs], len(lines)

    # Files

    def _place(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return shard, number - self._firsts[shard]

    def _reader(self, shard: int) -> CodesReader:
        """The open file of a shard; only with the lock, as files are read from one place."""
        if shard not in self._readers:
            self._readers[shard] = self.store.reader(self.store.shards[shard])
            if len(self._readers) > _READERS:
                self._readers.popitem(last=False)[1].__exit__()
        self._readers.move_to_end(shard)
        return self._readers[shard]

    def _group(self, number: int, wanted: set[int]) -> dict[int, Listed]:
        """The wanted rows of the group of rows of one of them."""
        import pyarrow as pa

        shard, place = self._place(number)
        found = {}
        with self._lock:
            reader = self._reader(shard)
            group, first = reader.group_of(place)
            names = [name for name in _NUMBERS if name in reader.columns]
            extras = reader.extras
            at = self._firsts[shard] + first
            for batch in reader.light(["key", *names, *(f.name for f in extras.fields)], group):
                mine = [i for i in range(batch.num_rows) if at + i in wanted]
                # Made of a buffer: of a list, pyarrow makes an array after it imported pandas.
                places = pa.py_buffer(np.array(mine, np.int64))
                some = batch.take(pa.Array.from_buffers(pa.int64(), len(mine), [None, places]))
                keys = some["key"].to_pylist()
                numbers = {n: some[n].to_pylist() if n in names else [0] * len(mine)
                           for n in _NUMBERS}  # fmt: skip
                for i, values in enumerate(extras.rows(some)):
                    shown = [(_short(n), _short(v)) for n, v in values.items() if v is not None]
                    index, height, width = (numbers[n][i] for n in _NUMBERS)
                    row = at + mine[i]
                    found[row] = Listed(row, _short(keys[i]), index, height, width, shown)
                at += batch.num_rows
        return found

    # Filters

    def _read(self) -> None:
        assert self._reading is not None
        try:
            with suppress(ViqError), self._filtering:  # a filter tells what is wrong
                self._light()
        finally:
            self._reading.set()

    def _light(self) -> pa.Table:
        """Keys and texts in lower case, and sizes, of all rows; read once."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._table is None:
            parts, texts, nbytes = [], True, 0
            for shard in range(len(self.store.shards)):
                with self.store.reader(self.store.shards[shard]) as reader:
                    names = ["key", *(n for n in _NUMBERS[1:] if n in reader.columns)]
                    if texts:
                        names += [f.name for f in reader.extras.fields if _is_text(f.type)]
                    for batch in reader.light(names):
                        nbytes += batch.nbytes
                        parts.append(pa.Table.from_batches([batch]))
                self.files_read = shard + 1
                if texts and nbytes > _TABLE_BYTES:  # begin again, without texts
                    texts, parts, nbytes = False, [part.select(names[:3]) for part in parts], 0
            empty = pa.table({"key": pa.array([], pa.string())})
            whole = pa.concat_tables(parts or [empty], promote_options="default").combine_chunks()
            lowered = [
                pc.utf8_lower(column) if _is_text(column.type) else column  # pyright: ignore[reportAttributeAccessIssue]
                for column in whole.columns
            ]
            self._table = pa.table(lowered, names=whole.column_names)
        return self._table

    def _scan(self, wanted: Filter) -> np.ndarray:
        import pyarrow.compute as pc

        table = self._light()
        fits = np.ones(len(table), bool)

        def holds(name: str, words: str) -> np.ndarray:
            match: Any = pc.match_substring(table[name], words.lower())  # pyright: ignore[reportAttributeAccessIssue]
            return match.fill_null(False).to_numpy(zero_copy_only=False)

        if wanted.key:
            fits &= holds("key", wanted.key)
        if wanted.text:
            names = [n for n in table.column_names if n not in ("key", *_NUMBERS)]
            if not names:
                raise ViqError("no texts ride along here, or they take too much memory to search")
            fits &= np.any([holds(name, wanted.text) for name in names], axis=0)
        if wanted.least or wanted.most or wanted.no_image:
            height, width = (table[name].to_numpy() for name in ("height", "width"))
            longer = np.maximum(height, width)
            fits &= longer >= wanted.least
            fits &= longer <= (wanted.most or longer.max(initial=0))
            fits &= (longer == 0) if wanted.no_image else (longer > 0)
        return np.flatnonzero(fits)


def _decoder(store: Store, tokenizer: VisualTokenizer) -> VisualTokenizer | None:
    """What decodes the codes of a store: this tokenizer, or a bundled one."""
    if store.info.fingerprint in ("", tokenizer.fingerprint):
        return tokenizer
    maker = bundled_maker(store.info.fingerprint)
    return load(maker) if maker else None


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _short(value: Any) -> str:
    """A value from a file, in one line of bounded length."""
    return printable(value if isinstance(value, str) else str(value), _CELL)
