"""Codes to fewer bytes and back, without loss: what all entropy models share.

A model gives each symbol of an image a probability, in integers, so that reader and writer agree on
any machine; the range coder of the `constriction` library does the rest. There are several kinds,
each with a format number in its file:

1   `level_network`: a network on three neighbours, level by level, for FSQ codes.
2   `class_tables`: tables of counts, for transform codes.
3   `counted_tables`: the same for a variable number of codes a patch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from viq.core.codes import COUNTED_HEADER_BYTES, Codes, detail_slots, kept_ids
from viq.core.counts import pack_counts
from viq.core.errors import require
from viq.core.files import require_regular, write_atomically
from viq.core.types import (
    CODES_PER_PATCH,
    CodesError,
    Grid,
    Size,
    ViqError,
    bounded_grid,
    grid_of,
)
from viq.core.untrusted import fingerprint, levels_of, parse_json

ENTROPY_FILE = "entropy.safetensors"  # in the folder of its tokenizer
ENTROPY_BYTES = 1 << 26  # of that file, at most; ours take a hundredth
_CRC = struct.Struct("<I")
_LENGTH = struct.Struct("<Q")  # of the header that begins a safetensors file
# A payload has at least a byte for so many patches (zeros are appended): a damaged row of few
# bytes that claims a huge image is refused before memory is taken for it.
_PATCHES_PER_BYTE = 256


def beside(digest: str) -> str:
    """Name of the file of an entropy model in a folder of codes that it compressed."""
    return f"_entropy-{digest}.safetensors"


def require_plausible(payload: bytes, size: Size) -> None:
    """Refuse an image (height, width) of more patches than any payload of so few bytes has.

    Raises:
        CodesError: it is one, or too large for any.
    """
    rows, cols = grid_of(size)
    if min(rows, cols) < 1 or rows * cols > _PATCHES_PER_BYTE * len(payload):
        raise CodesError(
            f"{len(payload)} bytes of compressed codes are too few for an image of "
            f"{rows}x{cols} patches: the row is damaged"
        )
    bounded_grid(size)


class Known(NamedTuple):
    """What a reader knows of an image before its ids.

    Attributes:
        grid: (rows, columns) of patches.
        counts, slots: int64 (rows, cols), as in `Codes`; None without counts.
    """

    grid: Grid
    counts: np.ndarray | None = None
    slots: np.ndarray | None = None

    @property
    def kept(self) -> np.ndarray:
        """Which ids are part of the codes, bool (rows, cols, 4)."""
        if self.counts is None or self.slots is None:
            return np.ones((*self.grid, CODES_PER_PATCH), bool)
        return kept_ids(self.counts, self.slots)


class EntropyModel:
    """Probabilities of the symbols of codes, and the coder that they drive.

    A kind of model is a subclass with a format number. It says in `_encode` and `_decode` how the
    ids of images become words of the range coder, and back.

    Args:
        tensors: integers.
        levels: FSQ levels of the tokenizer.
        fingerprint: of the tokenizer whose codes the model was fitted to.

    Attributes:
        digest: 16 hex digits over all of the above. A payload can only be read with the model of
            the digest that wrote it.

    Raises:
        ViqError: tensors that make no model.
    """

    format: ClassVar[int]
    batch_patches: ClassVar[int]  # that are coded together: bounds memory
    counted: ClassVar[bool] = False  # whether ids beyond the counts of patches are left out
    _kinds: ClassVar[dict[str, type[EntropyModel]]] = {}

    def __init_subclass__(cls, format: int) -> None:
        super().__init_subclass__()
        cls.format = format
        EntropyModel._kinds[str(format)] = cls

    def __init__(
        self, tensors: Mapping[str, np.ndarray], levels: Sequence[int], fingerprint: str
    ) -> None:
        self.levels, self.fingerprint = levels_of(list(levels), "entropy model"), fingerprint
        self.tensors = {name: np.ascontiguousarray(part) for name, part in tensors.items()}
        if not self.levels or not all(t.dtype.kind in "iu" for t in tensors.values()):
            raise ViqError("an entropy model without levels, or not of integers: copy it again")
        self.digest = self._compute_digest()

    # Files

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EntropyModel:
        """Read a file, or the file in the folder of a tokenizer.

        Raises:
            ViqError: there is none, or it is damaged.
        """
        from safetensors import safe_open

        path = Path(path)
        path = path / ENTROPY_FILE if path.is_dir() else path
        try:
            require_regular(path)
            if path.stat().st_size > ENTROPY_BYTES:
                raise ViqError(f"more than {ENTROPY_BYTES:,} bytes")
            with safe_open(path, framework="np") as file:
                about = file.metadata() or {}
                kind = cls._kinds.get(about.get("format", ""))
                if kind is None:
                    raise ViqError("of another format; update viq")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            levels = parse_json(about["levels"], "levels")
            digest = fingerprint(about["fingerprint"], "fingerprint")
            model = kind(tensors, levels, digest)
        except FileNotFoundError:
            raise ViqError(
                f"{path}: missing; make one with viq train entropy --model {path.parent} --data ..."
            ) from None
        except Exception as error:  # what libraries and arrays raise for damage is anyone's guess
            reason = " ".join(str(error).split()).removeprefix(f"{path}: ")
            raise ViqError(f"{path}: not a whole entropy model ({reason})") from None
        if model.digest != about.get("stamp"):
            raise ViqError(f"{path}: its digest does not fit its contents: damaged, copy it again")
        return model

    def save(self, folder: str | os.PathLike[str], name: str = ENTROPY_FILE) -> Path:
        """Write the file into the folder of its tokenizer."""
        from safetensors.numpy import save

        about = {
            "format": str(self.format),
            "levels": json.dumps(self.levels),
            "fingerprint": self.fingerprint,
            "stamp": self.digest,
        }
        path = Path(folder) / name
        data = save(self.tensors, metadata=about)
        # The library puts the metadata in any order; stores that are equal should have equal files.
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        names = json.loads(data[_LENGTH.size : end])
        header = json.dumps(names, sort_keys=True, separators=(",", ":")).encode()
        write_atomically(path, data[: _LENGTH.size] + header.ljust(end - _LENGTH.size) + data[end:])
        return path

    def save_beside(self, folder: Path) -> None:
        """Write the file into a folder of compressed codes, where `find_model` looks for it."""
        if not (folder / beside(self.digest)).exists():
            self.save(folder, beside(self.digest))

    def _compute_digest(self) -> str:
        digest = hashlib.sha256(f"{self.format}{self.levels}{self.fingerprint}".encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            digest.update(f"{name}{tensor.shape}".encode())
            digest.update(np.ascontiguousarray(tensor, "<i4").data)
        return digest.hexdigest()[:16]

    # Coding

    def compress(self, codes: Sequence[Codes]) -> list[bytes]:
        """A payload for each image: CRC-32, then the words of the range coder.

        The CRC covers the digest, size, tile, the words and the ids. Of codes with counts a model
        that is `counted` stores the ids that count.

        Raises:
            CodesError: codes of another tokenizer, or outside its codebook.
        """
        self._require_own(codes)
        payloads: list[bytes] = []
        for batch in self._batches([item.grid for item in codes]):
            some = codes[batch]
            known = [self._known(c.size, c.tile, c.counts, c.meaning) for c in some]
            ids = self._completed([item.ids for item in some], known)
            encoded = self._encode(ids, known)
            for item, ids_hwS, found in zip(some, ids, encoded, strict=True):
                words = found.astype("<u4").tobytes()
                short = -(-ids_hwS.shape[0] * ids_hwS.shape[1] // _PATCHES_PER_BYTE) - len(words)
                words += bytes(-(-max(0, short) // 4) * 4)
                payloads.append(self._crc(words, item.size, item.tile, ids_hwS) + words)
        return payloads

    def decompress(
        self,
        payloads: Sequence[bytes],
        sizes: Sequence[Size],
        tiles: Sequence[int],
        counts: Sequence[np.ndarray | None] | None = None,
        meaning: bool = False,
    ) -> list[Codes]:
        """Codes of payloads, of the sizes (height, width) and tiles they were written with.

        Args:
            counts, meaning: of each image, and of all, as in `Codes`; a model that is `counted`
                needs them. The codes that it gives have no counts and all their ids: those beyond
                say what the others say.

        Raises:
            CodesError: a payload is damaged, or was written with another model or size.
        """
        grids = [grid_of(size) for size in sizes]
        for payload, size in zip(payloads, sizes, strict=True):
            require_plausible(payload, size)
        numbers = counts if counts is not None else [None] * len(payloads)
        about = [self._known(*each, meaning) for each in zip(sizes, tiles, numbers, strict=True)]
        codes: list[Codes] = []
        for batch in self._batches(grids):
            words = [np.frombuffer(p[_CRC.size : len(p) // 4 * 4], "<u4") for p in payloads[batch]]
            found = self._decode([w.astype(np.uint32) for w in words], about[batch])
            found = self._completed(found, about[batch])
            for payload, ids, size, tile in zip(
                payloads[batch], found, sizes[batch], tiles[batch], strict=True
            ):
                checksum, rest = payload[: _CRC.size], payload[_CRC.size :]
                if len(rest) % 4 or self._crc(rest, size, tile, ids) != checksum:
                    raise CodesError(self._damage())
                codes.append(Codes(ids, size, tile, self.fingerprint))
        return codes

    def stored_bytes(self, codes: Codes) -> int:
        """Bytes that the codes of an image take compressed: payload, counts, extra codes, and as
        many as the header of a .viq file has for what else is known of it.

        Raises:
            CodesError: as `compress`.
        """
        counts = b"" if codes.counts is None else pack_counts(codes.counts)
        payload = self.compress([codes])[0]
        return COUNTED_HEADER_BYTES + len(payload) + len(counts) + 2 * len(codes.extra)

    def bits(self, codes: Sequence[Codes]) -> float:
        """Bits that all codes take, their checksums not counted."""
        return 8.0 * sum(len(payload) - _CRC.size for payload in self.compress(codes))

    def patch_bits(self, codes: Codes) -> np.ndarray:
        """Bits (rows, cols), float64, that the codes of each patch of an image take: their
        information content, given the patches that are coded before.

        Raises:
            CodesError: as `compress`.
        """
        raise NotImplementedError

    def _encode(self, ids: Sequence[np.ndarray], known: Sequence[Known]) -> Iterable[np.ndarray]:
        """Words of the range coder for the ids (rows, cols, 4) of each image."""
        raise NotImplementedError

    def _decode(self, words: Sequence[np.ndarray], known: Sequence[Known]) -> list[np.ndarray]:
        """Ids (rows, cols, 4) of images; if the words are damaged, anything or a CodesError."""
        raise NotImplementedError

    def _completed(self, ids: Sequence[np.ndarray], known: Sequence[Known]) -> list[np.ndarray]:
        """Ids with those that are not stored made from the others."""
        return list(ids)

    def _known(self, size: Size, tile: int, counts: np.ndarray | None, meaning: bool) -> Known:
        """What this model uses of what is known."""
        grid = grid_of(size)
        if counts is None or not self.counted:
            return Known(grid)
        return Known(grid, counts.astype(np.int64), detail_slots(grid, tile, meaning))

    def _require_own(self, codes: Sequence[Codes]) -> None:
        for item in codes:
            if item.fingerprint and item.fingerprint != self.fingerprint:
                raise CodesError(
                    f"codes of the tokenizer {item.fingerprint}, but this entropy model belongs to "
                    f"{self.fingerprint}: take the one in the folder of that tokenizer"
                )
            if item.ids.size and int(item.ids.max()) >= math.prod(self.levels):
                raise CodesError(
                    f"code {int(item.ids.max())} is outside the codebook of "
                    f"{math.prod(self.levels)}: the codes are damaged"
                )

    def _batches(self, grids: Sequence[Grid]) -> Iterator[slice]:
        """Consecutive images of at most `batch_patches` patches together, or one larger image."""
        start = patches = 0
        for i, (rows, cols) in enumerate(grids):
            if patches and patches + rows * cols > self.batch_patches:
                yield slice(start, i)
                start, patches = i, 0
            patches += rows * cols
        if patches:
            yield slice(start, len(grids))

    def _damage(self) -> str:
        return (
            "the checksum of these compressed codes is wrong: they are damaged, or were not "
            f"written with the entropy model {self.digest}"
        )

    def _crc(self, words: bytes, size: Size, tile: int, ids_hwS: np.ndarray) -> bytes:
        about = f"{self.digest} {size} {tile}".encode()
        ids = ids_hwS.astype("<u2").tobytes()
        return _CRC.pack(zlib.crc32(ids, zlib.crc32(words, zlib.crc32(about))))


def constriction() -> Any:
    """The module `stream` of the library of that name: range coders and their models."""
    with require("constriction", "codec", "compression of codes"):
        return import_module("constriction").stream
