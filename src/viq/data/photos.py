"""Photos for training: Parquet files with an `image` column of encoded bytes, or image files.

Pictures are decoded once and kept in memory, because random crops come back to each many times.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from viq.image import ImageError, list_images, open_image


class Photos:
    """A list of RGB images, decoded on first use.

    Attributes:
        skipped: (key, reason) of every picture that could not be read.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._images: list[Image.Image] = []
        self.skipped: list[tuple[str, str]] = []
        for path in map(Path, paths):
            if path.suffix == ".parquet":
                self._read_parquet(path)
            else:
                for file in list_images([path]):
                    self._add(str(file), file.read_bytes())

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Image.Image:
        return self._images[index]

    def _read_parquet(self, path: Path) -> None:
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(path, columns=["key", "image"]).to_pylist()
        except (OSError, ValueError) as error:
            raise ImageError(
                f"{path}: not a Parquet file with columns key and image ({error})"
            ) from None
        for row in rows:
            self._add(f"{path.name}:{row['key']}", row["image"])

    def _add(self, key: str, data: bytes) -> None:
        try:
            self._images.append(open_image(data, name=key))
        except ImageError as error:
            self.skipped.append((key, str(error)))
