"""A small store of pictures whose keys and captions try to be markup."""

from __future__ import annotations

from pathlib import Path

import tiny

from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.report.samples import sample_pictures
from viq.store.columns import Extras
from viq.store.facts import Failure, write_ledger
from viq.store.folder import INDEX, LEDGER, Index, Shard, shard_name
from viq.store.rows import CodesWriter
from viq.store.schema import StoreInfo

HOSTILE = "<script>alert(1)</script>"
ROWS = 600  # of which all but the first are small noise


def write(folder: Path, tokenizer: VisualTokenizer) -> Path:
    """Two shards; row 0 is the bundled picture "shapes", row 7 has no picture, row 9 has a key and
    row 11 a caption that tries to be markup."""
    info = StoreInfo(
        model=tokenizer.config.name, fingerprint=tokenizer.fingerprint, levels=tokenizer.levels
    )
    noise = [tokenizer.encode(tiny.picture(i, 20, 24 + i))[0] for i in range(8)]
    shapes = tokenizer.encode(dict(sample_pictures())["shapes"])[0]
    extras, shards = Extras.inferred([{"caption": "words"}]), []
    for number, span in enumerate((range(0, 400), range(400, ROWS))):
        path = folder / shard_name(number)
        with CodesWriter(path, info, extras) as writer:
            for row in span:
                codes = shapes if row == 0 else None if row == 7 else noise[row % 8]
                key = HOSTILE if row == 9 else f"key{row:04}"
                caption = f'"><img src=x onerror="{row}">' if row == 11 else f"caption {row}"
                writer.add(key, codes, 0, extras.pack({"caption": caption}))
        shards.append(
            Shard(
                name=path.name,
                rows=len(span),
                inputs=(span.start, span.stop),
                bytes=path.stat().st_size,
                sha256="",
            )  # fmt: skip
        )
    totals = {"rows": ROWS, "failures": 0}
    index = Index(info=info, inputs=ROWS, shards=tuple(shards), totals=totals,
                  columns={"caption": "string"})  # fmt: skip
    (folder / INDEX).write_bytes(index.to_json())
    write_ledger(folder / LEDGER, [Failure(input=3, key="bad<b>.png", reason="is empty")])
    return folder
