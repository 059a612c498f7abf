"""What a file of codes says of itself, and the columns and rows it has; see `store.rows`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from viq.core.codes import Codes
from viq.core.types import DTYPES, FLOAT32, CodesError
from viq.core.untrusted import fingerprint, levels_of, printable
from viq.store.arrays import COUNTED
from viq.store.columns import Extras

if TYPE_CHECKING:
    import pyarrow as pa

NUMBERS = ("image_index", "height", "width", "rows", "cols", "tile")
COLUMNS = ("key", *NUMBERS, "codes")


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """Who made the codes of a file.

    Attributes:
        entropy: digest of the entropy model that compressed them; "" if none did.
        dtype: in which the tokenizer computed, as in `Codes`.
        refinement: of codes with counts, as in `Codes`; "" for codes without.
        meaning: of codes with counts, as in `Codes`.
    """

    model: str
    fingerprint: str
    levels: tuple[int, ...]
    entropy: str = ""
    dtype: str = FLOAT32
    refinement: str = ""
    meaning: bool = False

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> StoreInfo:
        """What a file says of who made its codes: it may come from anybody.

        Args:
            values: by the names of the attributes; those that are missing are unknown.

        Raises:
            ViqError: one is not what it may be; names it.
        """
        model, dtype = values.get("model", ""), values.get("dtype") or FLOAT32
        if not isinstance(model, str):
            raise CodesError("model is no text")
        if dtype not in DTYPES:
            raise CodesError(f"dtype {printable(str(dtype), 80)} is unknown; update viq")
        return cls(
            model=model,
            fingerprint=fingerprint(values.get("fingerprint", ""), "fingerprint"),
            levels=levels_of(values.get("levels") or [], "levels"),
            entropy=fingerprint(values.get("entropy", ""), "entropy"),
            dtype=dtype,
            refinement=fingerprint(values.get("refinement", ""), "refinement"),
            meaning=values.get("meaning", False) is True,
        )

    def metadata(self) -> dict[str, str]:
        """As Parquet file metadata."""
        values = {
            "viq.model": self.model,
            "viq.fingerprint": self.fingerprint,
            "viq.levels": json.dumps(list(self.levels)),
        }
        values |= {"viq.dtype": self.dtype} if self.dtype != FLOAT32 else {}
        if self.refinement:
            values |= {"viq.refinement": self.refinement, "viq.meaning": json.dumps(self.meaning)}
        return values | ({"viq.entropy": self.entropy} if self.entropy else {})


@dataclass(frozen=True)
class CodeRow:
    """One row: the codes of one image, or of none, and what rides along.

    Attributes:
        codes: None for a sample without images.
        image_index: place of the image among the images of its sample.
        extras: columns that came with the sample.
    """

    key: str
    codes: Codes | None
    image_index: int = 0
    extras: Mapping[str, Any] = field(default_factory=dict)


def counted_columns(info: StoreInfo) -> tuple[str, ...]:
    """The columns that codes with counts have beside the others."""
    return COUNTED if info.refinement else ()


def schema(info: StoreInfo, extras: Extras | None = None) -> pa.Schema:
    """The one Parquet schema of the project, with the columns that ride along."""
    import pyarrow as pa

    codes = pa.binary() if info.entropy else pa.list_(pa.uint16())
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            *(pa.field(name, pa.int32(), nullable=False) for name in NUMBERS),
            pa.field("codes", codes, nullable=False),
            *(pa.field(name, pa.binary(), nullable=False) for name in counted_columns(info)),
            *(extras.fields if extras else ()),
        ],
        metadata=info.metadata(),
    )


def samples_of(rows: Iterable[CodeRow]) -> Iterator[list[CodeRow]]:
    """Rows by sample; `image_index` 0 begins one."""
    number = 0

    def sample_of(row: CodeRow) -> int:
        nonlocal number
        number += row.image_index == 0
        return number

    return (list(group) for _, group in groupby(rows, key=sample_of))
