"""Codes to fewer bytes and back, without loss: what all entropy models share.

A model gives each symbol of an image a probability, in integers, so that reader and writer agree on
any machine; the range coder of the `constriction` library does the rest. There are several kinds,
each with a format number in its file:

1   `level_network`: a network on three neighbours, level by level, for FSQ codes.
2   `class_tables`: tables of counts, for transform codes.
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
from typing import Any, ClassVar

import numpy as np

from viq.core.codes import Codes
from viq.core.errors import require
from viq.core.files import require_regular, write_atomically
from viq.core.types import CodesError, Grid, Size, ViqError, bounded_grid, grid_of
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

        The CRC covers the digest, size, tile, the words and the ids.

        Raises:
            CodesError: codes of another tokenizer, or outside its codebook.
        """
        self._require_own(codes)
        payloads: list[bytes] = []
        for batch in self._batches([item.grid for item in codes]):
            encoded = self._encode([item.ids for item in codes[batch]])
            for item, found in zip(codes[batch], encoded, strict=True):
                words = found.astype("<u4").tobytes()
                short = -(-item.ids.shape[0] * item.ids.shape[1] // _PATCHES_PER_BYTE) - len(words)
                words += bytes(-(-max(0, short) // 4) * 4)
                payloads.append(self._crc(words, item) + words)
        return payloads

    def decompress(
        self, payloads: Sequence[bytes], sizes: Sequence[Size], tiles: Sequence[int]
    ) -> list[Codes]:
        """Codes of payloads, of the sizes (height, width) and tiles they were written with.

        Raises:
            CodesError: a payload is damaged, or was written with another model or size.
        """
        grids = [grid_of(size) for size in sizes]
        for payload, size, (rows, cols) in zip(payloads, sizes, grids, strict=True):
            if min(rows, cols) < 1 or rows * cols > _PATCHES_PER_BYTE * len(payload):
                raise CodesError(
                    f"{len(payload)} bytes of compressed codes are too few for an image of "
                    f"{rows}x{cols} patches: the row is damaged"
                )
            bounded_grid(size)
        codes: list[Codes] = []
        for batch in self._batches(grids):
            words = [np.frombuffer(p[_CRC.size : len(p) // 4 * 4], "<u4") for p in payloads[batch]]
            found = self._decode([w.astype(np.uint32) for w in words], grids[batch])
            for payload, ids, size, tile in zip(
                payloads[batch], found, sizes[batch], tiles[batch], strict=True
            ):
                item = Codes(ids, size, tile, self.fingerprint)
                checksum, rest = payload[: _CRC.size], payload[_CRC.size :]
                if len(rest) % 4 or self._crc(rest, item) != checksum:
                    raise CodesError(self._damage())
                codes.append(item)
        return codes

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

    def _encode(self, ids: Sequence[np.ndarray]) -> Iterable[np.ndarray]:
        """Words of the range coder for the ids (rows, cols, 4) of each image."""
        raise NotImplementedError

    def _decode(self, words: Sequence[np.ndarray], grids: Sequence[Grid]) -> list[np.ndarray]:
        """Ids (rows, cols, 4) of images; if the words are damaged, anything or a CodesError."""
        raise NotImplementedError

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

    def _crc(self, words: bytes, codes: Codes) -> bytes:
        about = f"{self.digest} {codes.size} {codes.tile}".encode()
        ids = codes.ids.astype("<u2").tobytes()
        return _CRC.pack(zlib.crc32(ids, zlib.crc32(words, zlib.crc32(about))))


def constriction() -> Any:
    """The module `stream` of the library of that name: range coders and their models."""
    with require("constriction", "codec", "compression of codes"):
        return import_module("constriction").stream
