"""What the tokenizers of others have in common: a frozen network, and the files it is read from.

n = images, S = side of a picture in px, P = places of a picture that have codes, C = channels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from viq.core.errors import CodesError, ViqError
from viq.core.untrusted import printable, whole_number
from viq.eval.peers.pictures import Pictures
from viq.eval.peers.protocol import Peer
from viq.image.open import ImageInput
from viq.models.layers.ambient import by_default
from viq.weights.checkpoint import CheckpointError, load_strictly, require_shapes

_CPU = torch.device("cpu")


class Network(Protocol):
    """Modules that turn values of pictures into codes, and codes into features and pictures."""

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Of the codes of one picture."""
        ...

    @property
    def code_count(self) -> int:
        """Codes are from 0 to below it."""
        ...

    @property
    def code_dtype(self) -> type[np.signedinteger[Any]]:
        """Of the arrays that users get."""
        ...

    def codes(self, values_n3SS: Tensor) -> Tensor:
        """int64 (n, *code_shape)."""
        ...

    def features(self, codes: Tensor) -> Tensor:
        """(n, P, C)."""
        ...

    def pixels(self, codes: Tensor) -> Tensor:
        """Values (n, 3, S, S)."""
        ...


class SquarePeer(Peer):
    """A `Peer` of a network for square pictures of one size. Pictures are computed one by one, so
    that none depends on those beside it."""

    def __init__(
        self, network: Network, pictures: Pictures, *, name: str, licence: str, bits: float
    ) -> None:
        """`bits`: of the codes of one picture."""
        self.network, self.pictures = network, pictures
        self.name, self.licence = name, licence
        self.bits_per_pixel = bits / pictures.side**2

    def prepare(self, image: ImageInput) -> Image.Image:
        """The RGB picture that the network sees. Raises `ImageError`."""
        return self.pictures.prepare(image)

    @torch.inference_mode()
    def encode(self, images: Sequence[ImageInput]) -> list[np.ndarray]:
        """Codes of each image, of the network's shape and dtype. Raises `ImageError`."""
        with by_default(_CPU):
            codes = [self._codes(image)[0].numpy() for image in images]
        return [one.astype(self.network.code_dtype) for one in codes]

    @torch.inference_mode()
    def decode(self, codes: Sequence[np.ndarray]) -> list[Image.Image]:
        """Pictures of the size of `prepare`. Raises `CodesError`: no codes of this network."""
        with by_default(_CPU):
            checked = [self._checked(one) for one in codes]
            return [self.pictures.to_image(self.network.pixels(one)[0]) for one in checked]

    @torch.inference_mode()
    def features(self, images: Sequence[ImageInput]) -> list[np.ndarray]:
        """(P, C) float32 of the codes of each image. Raises `ImageError`."""
        with by_default(_CPU):
            return [self.network.features(self._codes(image))[0].numpy() for image in images]

    def _codes(self, image: ImageInput) -> Tensor:
        return self.network.codes(self.pictures.to_values(self.prepare(image)))

    def _checked(self, codes: np.ndarray) -> Tensor:
        """int64 (1, *code_shape)."""
        codes = np.asarray(codes)
        wanted, most = self.network.code_shape, self.network.code_count
        if codes.shape != wanted or codes.dtype.kind not in "iu":
            raise CodesError(
                f"{self.name}: codes of a picture are whole numbers of shape {wanted}, got "
                f"{codes.dtype} of shape {codes.shape}: give what encode gave"
            )
        if codes.min() < 0 or codes.max() >= most:
            raise CodesError(
                f"{self.name}: codes from {codes.min()} to {codes.max()}, where they are from 0 to "
                f"{most - 1}: they are damaged, or of another tokenizer"
            )
        return torch.from_numpy(codes.astype(np.int64))[None]


def named(kind: str, path: str | os.PathLike[str]) -> str:
    """How a user names a peer on the command line."""
    return f"{kind}:{os.fspath(path)}"


def find_weights(path: Path, patterns: Sequence[str], what: str) -> Path:
    """The weight file that `path` is or holds.

    Args:
        patterns: of names in a folder, the first that fits is taken.
        what: the file belongs to, in messages.

    Raises:
        CheckpointError: none, or several that fit the same pattern.
    """
    if path.is_file():
        return path
    for pattern in patterns:
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            names = ", ".join(printable(one.name, 80) for one in found[:4])
            raise CheckpointError(f"{path}: holds several files for {what} ({names}); give one")
        if found:
            return found[0]
    missing = "no weights in this folder" if path.is_dir() else "no such file or folder"
    raise CheckpointError(f"{path}: {missing}; {what} needs {' or '.join(patterns)}")


def section(content: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    """A dictionary inside a weight file.

    Raises:
        CheckpointError: it is not there; tells what is.
    """
    inner = content.get(name)
    if isinstance(inner, Mapping) and all(isinstance(key, str) for key in inner):
        return inner
    held = printable(", ".join(sorted(map(str, content))[:6]), 200) or "nothing"
    raise CheckpointError(
        f"{source}: has no dictionary {name!r} (it holds {held}): not the published file; "
        "download it again"
    )


def whole(value: Any, where: str, most: int) -> int:
    """A number of a config, from 1 to `most`. Raises `CheckpointError`, which names `where`."""
    try:
        return whole_number(value, where, 1, most)
    except ViqError as error:
        raise CheckpointError(str(error)) from None


def first_size(
    shapes: Mapping[str, Sequence[int]], name: str, source: str, what: str, axis: int = 0
) -> int:
    """The size of an axis of a weight.

    Args:
        what: the network is called, in messages.

    Raises:
        CheckpointError: there is no such weight, or no such axis, or nothing in it.
    """
    if len(shapes.get(name, ())) <= axis or not shapes[name][axis]:
        raise CheckpointError(
            f"{source}: no {what}: it has no weight {name}; give the published file"
        )
    return shapes[name][axis]


def count_of(names: Iterable[str], prefix: str) -> int:
    """Length of the list of modules whose names start with `prefix` and a number, to the first that
    is missing."""
    matches = (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in names)
    numbers = {int(match.group(1)) for match in matches if match}
    return next(i for i in range(len(numbers) + 1) if i not in numbers)


def wanted_weights(
    content: Mapping[str, Any], ignored: Callable[[str], bool], source: str
) -> dict[str, Tensor]:
    """The tensors of a state dict, less those that are of no use here.

    Raises:
        CheckpointError: one is no plain tensor of real numbers.
    """
    wanted = {name: value for name, value in content.items() if not ignored(name)}
    for name, value in wanted.items():
        plain = isinstance(value, Tensor) and value.layout is torch.strided
        if not plain or not value.is_floating_point() or value.device != _CPU:
            raise CheckpointError(
                f"{source}: {printable(name, 100)} is no plain tensor of real numbers, as every "
                "weight is; download the file again"
            )
    return wanted


def load_frozen(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load float32 copies of weights that fit a network on the meta device exactly; freeze it.

    Shapes are compared before memory is taken for them.

    Raises:
        CheckpointError: names or shapes differ; both sides are listed.
    """
    require_shapes(network, {name: tuple(t.shape) for name, t in weights.items()}, source)
    # Copies: what is mapped from a file would change with it, and lies at other addresses, on
    # which the last bit of a product can depend.
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}
    load_strictly(network, copies, source)
    network.requires_grad_(False).eval()
