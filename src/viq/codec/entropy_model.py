"""Codes to fewer bytes and back, without loss: a small causal network drives a range coder.

A code is a mixed-radix number of FSQ levels. The levels of an image are coded one after another,
each with the probabilities that a network gives it from the patches to the left, above and above
left, and from the levels of its own patch that were coded before:

    context = MLP(levels of the three neighbours)                 once a patch
    hidden  = clip(context + sum over j < i of embed[j, level j])   for level i of the patch
    logits  = head[i] @ hidden

Patches on one anti-diagonal depend on earlier diagonals alone. A diagonal is therefore one step,
and images that are read together share their steps.

The reader must arrive at exactly the probabilities of the writer, on any machine, and matrix
libraries promise no order of summation. So all arithmetic is on integers: weights are multiples
of 1/256, values of 1/128, hidden values lie in 0..4, the exponential is a table. The integers are
held in float32 for the speed of its matrix products; no partial sum reaches 2**24, which is checked
when a model is made, so nothing is ever rounded and the order does not matter.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from viq.codec.layout import (
    _NEIGHBOURS,
    CAP,
    EXACT,
    LEVEL_UNIT,
    VALUE_UNIT,
    WEIGHT_UNIT,
    Layout,
    _centred,
)
from viq.core.codes import Codes
from viq.core.errors import require
from viq.core.files import require_regular, write_atomically
from viq.core.types import CODES_PER_PATCH, CodesError, Grid, Size, ViqError, bounded_grid, grid_of
from viq.core.untrusted import fingerprint, levels_of, parse_json

ENTROPY_FILE = "entropy.safetensors"  # in the folder of its tokenizer
ENTROPY_BYTES = 1 << 26  # of that file, at most; ours take a hundredth
FORMAT = 1
_LOGIT_STEPS = 32  # steps in 1 of logits, as the table of exponentials has them
_LOGIT_SCALE = _LOGIT_STEPS / (WEIGHT_UNIT * VALUE_UNIT)
# In float64: the coder scales sums of it to 2**24, and float32 can round them beyond the end.
_EXP = np.array(
    [round(65536 * math.exp(-i / _LOGIT_STEPS)) for i in range(12 * _LOGIT_STEPS)], np.float64
)
_CRC = struct.Struct("<I")
_LENGTH = struct.Struct("<Q")  # of the header that begins a safetensors file
# A payload has at least a byte for so many patches (zeros are appended): a damaged row of few
# bytes that claims a huge image is refused before memory is taken for it.
_PATCHES_PER_BYTE = 256
_BATCH = 1 << 14  # patches that are coded together: bounds memory


def beside(digest: str) -> str:
    """Name of the file of an entropy model in a folder of codes that it compressed."""
    return f"_entropy-{digest}.safetensors"


class EntropyModel:
    """Probabilities of FSQ levels given their neighbours, and the coder that they drive.

    T = patches of all images, K = levels of a patch (slots times dims), l = greatest number of
    levels, U = hidden width.

    Args:
        tensors: integers. `context.N.weight` (out, in) and `context.N.bias` (out) for N = 0, 1,
            ..; `embed` (K, l, U); `head.weight` (K, l, U) and `head.bias` (K, l). The first layer
            reads 3 * (K + 1) values (see `Layout`). Unit of weights: 1/WEIGHT_UNIT, of embed:
            1/VALUE_UNIT, of biases: the product of both.
        levels: FSQ levels of the tokenizer.
        fingerprint: of the tokenizer whose codes the model was fitted to.

    Attributes:
        digest: 16 hex digits over all of the above. A payload can only be read with the model of
            the digest that wrote it.

    Raises:
        ViqError: tensors of wrong names or shapes, or so large that sums could be rounded.
    """

    def __init__(
        self, tensors: Mapping[str, np.ndarray], levels: Sequence[int], fingerprint: str
    ) -> None:
        self.levels, self.fingerprint = levels_of(list(levels), "entropy model"), fingerprint
        self.tensors = dict(tensors)
        self._sizes = np.array(self.levels * CODES_PER_PATCH)
        self._basis = np.cumprod([1, *self.levels[:-1]])
        depth = sum(name.startswith("context.") for name in tensors) // 2
        _check(tensors, self._sizes, depth)
        values = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        self._context = [
            (values[f"context.{i}.weight"].T.copy(), values[f"context.{i}.bias"])
            for i in range(depth)
        ]
        self._embed = values["embed"]
        # What stands for no level gets no probability.
        absent = np.arange(self._sizes.max()) >= self._sizes[:, None]
        self._head = np.where(absent[..., None], 0, values["head.weight"]).transpose(0, 2, 1).copy()
        self._bias = np.where(absent, -np.float32(EXACT), values["head.bias"])
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
                if about.get("format") != str(FORMAT):
                    raise ViqError("of another format; update viq")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            levels = parse_json(about["levels"], "levels")
            digest = fingerprint(about["fingerprint"], "fingerprint")
            model = cls(tensors, levels, digest)
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
            "format": str(FORMAT),
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
        digest = hashlib.sha256(f"{FORMAT}{self.levels}{self.fingerprint}".encode())
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
        payloads: list[bytes] = []
        for batch in _batches([item.grid for item in codes]):
            payloads += self._compress(codes[batch])
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
        for batch in _batches(grids):
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
        """Information content of all codes under the model, in bits; payloads come close to it."""
        total = 0.0
        for batch in _batches([item.grid for item in codes]):
            layout, levels_TK = self._levels(codes[batch])
            for i, table_Tl in enumerate(self._tables(layout, levels_TK)):
                p_T = np.take_along_axis(table_Tl, levels_TK[:, i, None], 1)[:, 0]
                total -= float(np.log2(np.maximum(p_T, 2**-8) / table_Tl.sum(1)).sum())
        return total

    def _compress(self, codes: Sequence[Codes]) -> Iterator[bytes]:
        layout, levels_TK = self._levels(codes)
        tables_TKl = np.stack(list(self._tables(layout, levels_TK)), axis=1)
        coder, family = _constriction()
        dims = levels_TK.shape[1]
        for image, item in enumerate(codes):
            mine = np.flatnonzero(layout.image_T == image)
            # Coding order: diagonal, then level of the patch, then patch on the diagonal.
            place_TK = layout.step_T[mine, None] * dims + np.arange(dims)
            order = np.argsort(place_TK.ravel(), kind="stable")
            encoder = coder.RangeEncoder()
            encoder.encode(
                levels_TK[mine].ravel()[order],
                family,
                tables_TKl[mine].reshape(len(order), -1)[order],
            )
            words = encoder.get_compressed().astype("<u4").tobytes()
            short = max(0, -(-len(mine) // _PATCHES_PER_BYTE) - len(words))
            words += bytes(-(-short // 4) * 4)
            yield self._crc(words, item) + words

    def _decode(self, words: Sequence[np.ndarray], grids: Sequence[Grid]) -> list[np.ndarray]:
        """Ids (rows, cols, 4) of images; if the words are damaged, anything or a CodesError."""
        coder, family = _constriction()
        layout, dims = Layout.of(grids), len(self._sizes)
        decoders = [coder.RangeDecoder(w) for w in words]
        levels_TK = np.zeros((len(layout.step_T), dims), np.int32)
        values = layout.values(levels_TK, self._sizes)
        for start, stop, parts in layout.steps():
            hidden_TU = self._hidden(values[layout.neighbours_T3[start:stop]])
            clipped_TU = np.empty_like(hidden_TU)
            for i in range(dims):
                table_Tl = self._table(i, hidden_TU, clipped_TU)
                try:
                    found = [decoders[image].decode(family, table_Tl[a:b]) for image, a, b in parts]
                except AssertionError:  # no symbol can begin like this
                    raise CodesError(self._damage()) from None
                level_T = found[0] if len(found) == 1 else np.concatenate(found)
                levels_TK[start:stop, i] = level_T
                hidden_TU += self._embed[i][level_T]
            values[start + 1 : stop + 1, :dims] = _centred(levels_TK[start:stop], self._sizes)
        slots = levels_TK.reshape(-1, CODES_PER_PATCH, len(self.levels))
        ids_TS = (slots @ self._basis.astype(np.int32)).astype(np.uint16)
        return [
            ids_TS[places].reshape(*grid, CODES_PER_PATCH)
            for places, grid in zip(layout.places, grids, strict=True)
        ]

    def _levels(self, codes: Sequence[Codes]) -> tuple[Layout, np.ndarray]:
        """Layout of images, and their levels (T, K) int32 in coding order."""
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
        layout = Layout.of([item.grid for item in codes])
        return layout, layout.levels([item.ids for item in codes], self.levels)

    def _tables(self, layout: Layout, levels_TK: np.ndarray) -> Iterator[np.ndarray]:
        """Tables (T, l) of every level in turn, all patches at once, since all are known."""
        values = layout.values(levels_TK, self._sizes)
        hidden_TU = self._hidden(values[layout.neighbours_T3])
        clipped_TU = np.empty_like(hidden_TU)
        for i in range(len(self._sizes)):
            yield self._table(i, hidden_TU, clipped_TU)
            hidden_TU += self._embed[i][levels_TK[:, i]]

    def _hidden(self, values_T3I: np.ndarray) -> np.ndarray:
        """What the context gives to hidden (T, U), not yet clipped."""
        x_TI = values_T3I.reshape(len(values_T3I), -1)
        for i, (weight, bias) in enumerate(self._context):
            x_TI = x_TI if i == 0 else np.clip(x_TI, 0, CAP)
            x_TI = np.floor((x_TI @ weight + bias) * np.float32(1 / WEIGHT_UNIT))
        return x_TI

    def _table(self, i: int, hidden_TU: np.ndarray, clipped_TU: np.ndarray) -> np.ndarray:
        """Unnormalised probabilities (T, l) of level i, integers; `clipped_TU` is overwritten."""
        np.clip(hidden_TU, 0, CAP, out=clipped_TU)
        logits_Tl = clipped_TU @ self._head[i] + self._bias[i]
        below = (logits_Tl.max(1, keepdims=True) - logits_Tl) * np.float32(_LOGIT_SCALE)
        return _EXP[np.minimum(below, len(_EXP) - 1).astype(np.intp)]

    def _damage(self) -> str:
        return (
            "the checksum of these compressed codes is wrong: they are damaged, or were not "
            f"written with the entropy model {self.digest}"
        )

    def _crc(self, words: bytes, codes: Codes) -> bytes:
        about = f"{self.digest} {codes.size} {codes.tile}".encode()
        ids = codes.ids.astype("<u2").tobytes()
        return _CRC.pack(zlib.crc32(ids, zlib.crc32(words, zlib.crc32(about))))


def _check(tensors: Mapping[str, np.ndarray], sizes: np.ndarray, depth: int) -> None:
    """Names and shapes fit, and no sum can leave the integers that float32 holds."""
    if not len(sizes) or not all(t.dtype.kind in "iu" for t in tensors.values()):
        raise ViqError("an entropy model without levels, or not of integers: copy it again")
    if (sizes.max() - 1) * LEVEL_UNIT > CAP:
        raise ViqError(f"entropy models take FSQ levels up to {CAP // LEVEL_UNIT + 1}")
    try:
        hidden, wide = tensors["embed"].shape[2], tensors["context.0.weight"].shape[0]
        shapes = {
            "embed": (len(sizes), sizes.max(), hidden),
            "head.weight": (len(sizes), sizes.max(), hidden),
            "head.bias": (len(sizes), sizes.max()),
        }
        inputs = _NEIGHBOURS * (len(sizes) + 1)
        for i in range(depth):
            outputs = hidden if i == depth - 1 else wide
            shapes |= {f"context.{i}.weight": (outputs, inputs), f"context.{i}.bias": (outputs,)}
            inputs = outputs
        found = {name: tensor.shape for name, tensor in tensors.items()}
    except (KeyError, IndexError):
        raise ViqError("an entropy model without its tensors: copy it again") from None
    if found != shapes:
        raise ViqError(f"an entropy model of shapes {found}, expected {shapes}: copy it again")
    for name in [f"context.{i}" for i in range(depth)] + ["head"]:
        weight = np.abs(tensors[f"{name}.weight"].astype(np.int64)).sum(-1)
        if (weight * CAP + np.abs(tensors[f"{name}.bias"].astype(np.int64))).max() >= EXACT:
            raise ViqError(f"the weights of {name} are too large to add up exactly in float32")
    # Hidden sums: the context, below EXACT / WEIGHT_UNIT, and one row of embed for every level.
    if (
        np.abs(tensors["embed"].astype(np.int64)).max(1).sum(0).max() + EXACT // WEIGHT_UNIT
        >= EXACT
    ):
        raise ViqError("the weights of embed are too large to add up exactly in float32")


def _batches(grids: Sequence[Grid]) -> Iterator[slice]:
    """Consecutive images of at most _BATCH patches together, or one larger image."""
    start = patches = 0
    for i, (rows, cols) in enumerate(grids):
        if patches and patches + rows * cols > _BATCH:
            yield slice(start, i)
            start, patches = i, 0
        patches += rows * cols
    if patches:
        yield slice(start, len(grids))


def _constriction() -> tuple[Any, Any]:
    """The coder, and the family of its models."""
    with require("constriction", "codec", "compression of codes"):
        stream: Any = import_module("constriction").stream
    return stream.queue, stream.model.Categorical(perfect=False)
