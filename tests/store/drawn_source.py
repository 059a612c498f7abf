"""Sources of images that are made when they are read."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from viq.data.sources.base import ImageRef, Row, Source, SourceError
from viq.image.open import ImageError


@dataclass(frozen=True)
class Drawn:
    """An image made when it is read."""

    seed: int
    size: tuple[int, int]

    def read(self) -> bytes:
        import io

        if self.size == (0, 0):
            raise ImageError("is broken; mend it")
        pixels = np.random.default_rng(self.seed).integers(0, 256, (*self.size, 3), np.uint8)
        with io.BytesIO() as stream:
            Image.fromarray(pixels).save(stream, "PNG")
            return stream.getvalue()


class SyntheticSource(Source):
    """Samples of some images each; those at `broken` fail until they are mended."""

    def __init__(self, images: Sequence[int], broken: Iterable[int] = (), **extras: list) -> None:
        self.images, self.broken, self.extras = images, set(broken), extras

    def __len__(self) -> int:
        return len(self.images)

    def keys(self) -> Iterator[str]:
        return (f"sample/{i}" for i in range(len(self)))

    def _row(self, index: int) -> Row:
        if index in self.broken and index % 2:
            raise SourceError(f"sample/{index}: is no row; mend it")
        images: list[ImageRef] = [
            Drawn(index * 10 + i, (0, 0) if index in self.broken else (9 + index, 30 - i))
            for i in range(self.images[index])
        ]
        return Row(
            key=f"sample/{index}",
            images=tuple(images),
            extras={name: values[index] for name, values in self.extras.items()},
            where=f"place {index}",
        )
