"""Two copies of each labelled photo, one mirrored, one cropped: more to learn names from.

    python scripts/varied_photos.py photos-varied.parquet photos/*.parquet

No copy is made of a photo that training holds out, and none of a copy's keys is held out.
"""

from __future__ import annotations

import io
import random
import sys
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from viq.data.corpora.corpora import split_of

_LONGEST = 400  # px
_SHARES = (0.75, 0.95)  # of a side, that a crop keeps


def main() -> None:
    out, *files = sys.argv[1:]
    rows: list[dict[str, object]] = []
    rng = random.Random(0)
    columns = ["key", "image", "label", "licence_tier"]
    for file in files:
        for row in pq.read_table(file, columns=columns).to_pylist():
            permissive = row["licence_tier"] == "permissive"
            if not row["label"] or not permissive or split_of(row["key"]) != "train":
                continue
            keys = (key for n in count() if split_of(key := f"{row['key']}-{n}") == "train")
            for copy in copies(row["image"], rng):
                rows.append({**row, "key": next(keys), "image": copy})
    pq.write_table(pa.Table.from_pylist(rows), out)
    print(f"{out}: {len(rows)} pictures")


def copies(data: bytes, rng: random.Random) -> list[bytes]:
    """A picture mirrored, and a crop of it, half of them mirrored; WebP."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    width, height = picture.size
    share = rng.uniform(*_SHARES)
    left, top = rng.random() * (1 - share) * width, rng.random() * (1 - share) * height
    crop = picture.crop(
        tuple(map(int, (left, top, left + share * width, top + share * height)))  # pyright: ignore
    )
    found = []
    for copy in (ImageOps.mirror(picture), crop if rng.random() < 0.5 else ImageOps.mirror(crop)):
        copy.thumbnail((_LONGEST, _LONGEST))
        buffer = io.BytesIO()
        copy.save(buffer, "WEBP", quality=90)
        found.append(buffer.getvalue())
    return found


if __name__ == "__main__":
    main()
