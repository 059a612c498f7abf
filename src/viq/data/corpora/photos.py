"""Photos to cut training crops from.

Random crops come back to each picture many times, so decoded ones are kept in memory, up to a
limit. Beyond it, the one that was not used for longest makes room and is read again when its turn
comes: crops are the same whatever the limit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock

from PIL import Image

from viq.core.types import ViqError
from viq.data.corpora.corpora import RowCorpus

_LIMIT = 2 * 2**30  # 540 megapixels, in every process
_BYTES = 4  # of a pixel in memory: Pillow keeps RGB with a fourth byte


class Photos:
    """A sequence of RGB images: the first one of every row of some corpora.

    All are opened once at the start, to know which can be read. Threads may share it.

    Args:
        limit: bytes of decoded pictures that are kept; the newest is, whatever its size.

    Attributes:
        skipped: (key, reason) of every picture that could not be read.
    """

    def __init__(self, corpora: Iterable[RowCorpus], limit: int = _LIMIT) -> None:
        self._limit, self._lock = limit, Lock()
        self._places: list[tuple[RowCorpus, int]] = []
        self._kept: OrderedDict[int, Image.Image] = OrderedDict()  # last used last
        self._kept_bytes = 0
        self.skipped: list[tuple[str, str]] = []
        for corpus in corpora:
            for index in range(corpus.length):
                try:
                    image = corpus.row(index).open()
                except ViqError as error:
                    self.skipped.append((corpus.key(index), str(error)))
                    continue
                self._keep(len(self._places), image)
                self._places.append((corpus, index))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Image.Image:
        """Picture `index`, 0..len-1. Raises `ViqError` if it can no longer be read."""
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
        corpus, row = self._places[index]
        image = corpus.row(row).open()
        self._keep(index, image)
        return image

    def names(self) -> list[str]:
        """What each picture is called wherever the data lie; two may be called the same."""
        called = {id(corpus): corpus.names() for corpus, _ in self._places}
        return [called[id(corpus)][index] for corpus, index in self._places]

    def key(self, index: int) -> str:
        """Key of the row that picture `index` is of."""
        corpus, row = self._places[index]
        return corpus.row(row).key

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded pictures at hand."""
        return self._kept_bytes

    def _keep(self, index: int, image: Image.Image) -> None:
        with self._lock:
            if index in self._kept:  # another thread was faster
                return
            self._kept[index] = image
            self._kept_bytes += _size(image)
            while self._kept_bytes > self._limit and len(self._kept) > 1:
                self._kept_bytes -= _size(self._kept.popitem(last=False)[1])


def _size(image: Image.Image) -> int:
    return _BYTES * image.width * image.height
