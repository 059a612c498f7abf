"""Columns that ride along with the codes: captions, conversations, labels, whatever there is.

A column gets a type if the values of the first rows all fit one exactly. Whatever does not fit its
column, or has none, goes as JSON into one column of text called `extras`. So nothing is lost or
bent, and the schema is the same in all shards, whatever comes after the first rows. What not even
JSON can hold (half characters, objects of other libraries, nesting without an end) is a `ViqError`
of its row.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from viq.core.types import CodesError, ViqError
from viq.core.untrusted import printable

if TYPE_CHECKING:
    import pyarrow as pa

REST = "extras"  # the column of what fits no other
MAKER = "viq"  # the column that says who made the codes, see `store.maker`
_OWN = "viq."  # how the names of our own objects begin
_MICROSECOND = timedelta(microseconds=1)
_TYPED = 1000  # columns at most; a file of more is slow to open, and the rest goes as JSON
_DEPTH = 16  # of lists and objects in a column with a type
_REST_MARK = {b"viq.rest": b"1"}
OURS = frozenset(
    (
        "key",
        "image_index",
        "height",
        "width",
        "rows",
        "cols",
        "tile",
        "codes",
        MAKER,
        REST,
        "code_counts",
        "extra_codes",
    )
)  # names an extra column may not take


class Extras:
    """The extra columns of a file, and how values go in and come out.

    Args:
        fields: Arrow fields. One marked as the rest takes, as JSON, what fits no other.
        wanted: names to give back when reading; None for all.
    """

    def __init__(
        self, fields: Iterable[pa.Field] = (), wanted: Sequence[str] | None = None
    ) -> None:
        self.fields = tuple(fields)
        self._wanted = wanted
        self.types = {
            f.name: f.type for f in self.fields if (f.metadata or {}).get(b"viq.rest") is None
        }
        self._has_rest = len(self.types) < len(self.fields)  # always, unless there are no columns

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Extras) and self.fields == other.fields

    @classmethod
    def of_others(cls, fields: Iterable[pa.Field]) -> Extras:
        """Columns of a file that another program wrote, which marks none as the rest."""
        return cls(
            f.with_metadata(_REST_MARK) if f.name == REST and "string" in str(f.type) else f
            for f in fields
        )

    @classmethod
    def inferred(cls, samples: Sequence[Mapping[str, Any]], unseen: bool = False) -> Extras:
        """Columns for the values of the first rows.

        Args:
            unseen: whether rows follow that may have values, even if these have none.
        """
        import pyarrow as pa

        if not any(samples) and not unseen:
            return cls()
        names = dict.fromkeys(name for values in samples for name in values)
        fields: dict[str, pa.Field] = {}
        for name in names:
            column = [values.get(name) for values in samples]
            kind = _type_of(column)
            if kind is None or len(fields) == _TYPED or free_name(name) in fields:
                continue
            if all(_fits(value, kind) for value in column) and _can_be_written(name, kind):
                fields[free_name(name)] = pa.field(free_name(name), kind)
        return cls([*fields.values(), pa.field(REST, pa.string(), metadata=_REST_MARK)])

    def pack(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values of one sample, by name of column, ready for `columns`.

        Raises:
            ViqError: a value fits nowhere; names it.
        """
        packed, rest = {}, {}
        for name, value in values.items():
            column = free_name(name)
            while column in packed or column in rest:  # "key" and "input_key" in one sample
                column = f"input_{column}"
            if column in self.types and _fits(value, self.types[column]):
                packed[column] = value
            elif value is not None:
                rest[column] = value
        if rest:
            packed[REST] = self._rest(rest)
        return packed

    def _rest(self, values: Mapping[str, Any]) -> str:
        try:
            if not self._has_rest:
                raise ValueError("no columns at all in the first rows")
            try:
                text = _dumped(values)
            except ValueError:  # NaN, which JSON has not, or what goes round in a circle
                text = ""
            if not text or f'"{_OWN}' in text:
                text = _dumped(_escaped(values))
            text.encode()
            return text
        except UnicodeEncodeError:
            why = "half a character (a lone surrogate, as of an emoji that was cut)"
        except (TypeError, ValueError, RecursionError) as error:
            why = f"what is neither of the type of the first rows nor JSON ({error})"
        names = printable(" or ".join(map(str, values)), 100)
        raise ViqError(f"column {names} holds {why}: mend or drop it")

    def columns(self, rows: Sequence[Mapping[str, Any]]) -> list[pa.Array]:
        """Arrow arrays of packed rows, in the order of the fields."""
        import pyarrow as pa

        return [pa.array([row.get(f.name) for row in rows], f.type) for f in self.fields]

    def rows(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        """The values of each row, as they were before `pack`; columns without value are None."""
        rows: list[dict[str, Any]] = [{} for _ in range(batch.num_rows)]
        for name in self.types:
            for row, value in zip(rows, batch[name].to_pylist(), strict=True):
                row[name] = value
        if self._has_rest:
            for row, text in zip(rows, batch[REST].to_pylist(), strict=True):
                more = _unpacked(text) if text is not None else {}
                row |= {k: v for k, v in more.items() if self._wanted is None or k in self._wanted}
        return rows

    def only(self, names: Sequence[str], where: str) -> Extras:
        """These columns alone, with the rest if there is one (any of them may be in it).

        Raises:
            CodesError: there is no such column; names `where`.
        """
        unknown = [name for name in names if name not in self.types]
        if unknown and not self._has_rest:
            raise CodesError(
                f"{where}: has no column {unknown[0]}; it has {', '.join(self.types) or 'none'}"
            )
        if not names:
            return Extras()
        kept = (f for f in self.fields if f.name in names or f.name not in self.types)
        return Extras(kept, wanted=names)


# What Parquet has and JSON has not: an object with one name, which says what it is, and a text.
_AS_TEXT: Mapping[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "viq.base64": (
        bytes,
        lambda value: base64.b64encode(value).decode(),
        lambda text: base64.b64decode(text, validate=True),
    ),
    "viq.datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "viq.date": (date, date.isoformat, date.fromisoformat),
    "viq.time": (time, time.isoformat, time.fromisoformat),
    "viq.microseconds": (
        timedelta,
        lambda value: str(value // _MICROSECOND),
        lambda text: int(text) * _MICROSECOND,
    ),
    "viq.decimal": (Decimal, str, Decimal),
    "viq.float": (float, str, float),  # only those that are no numbers
}


def _to_json(value: Any) -> dict[str, str]:
    for name, (kind, to_text, _) in _AS_TEXT.items():
        if type(value) is kind:
            return {name: to_text(value)}
    raise TypeError(f"{type(value).__name__} is not JSON")


def _dumped(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False, default=_to_json)


def _escaped(value: Any) -> Any:
    """The same with objects for what are no numbers, and objects that look like ours renamed."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"viq.float": str(value)}
    if isinstance(value, Mapping):
        own = _OWN if len(value) == 1 and str(next(iter(value))).startswith(_OWN) else ""
        return {(own + name if own else name): _escaped(item) for name, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list | tuple) else value


def _unpacked(text: str) -> dict[str, Any]:
    """The values of the rest. Raises `CodesError`."""
    try:
        values = json.loads(text, object_hook=_from_json)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise CodesError(f"damaged (column {REST} holds no JSON object)")
    return values


def _from_json(values: dict[str, Any]) -> Any:
    """What such an object stands for; an object of the user's own is left as it is."""
    ((name, text), *more) = values.items() if values else [("", None)]
    if not more and name.startswith(_OWN * 2):  # one of the user's own, renamed by `_escaped`
        return {name.removeprefix(_OWN): text}
    if more or name not in _AS_TEXT or not isinstance(text, str):
        return values
    try:
        return _AS_TEXT[name][2](text)
    except (ValueError, ArithmeticError):
        return values


def free_name(name: str) -> str:
    """The name of a column of the source in a file of codes: not one of ours."""
    while name in OURS:
        name = f"input_{name}"
    return name


def _type_of(values: list[Any]) -> pa.DataType | None:
    import pyarrow as pa

    if any(_is_deep(value) for value in values):
        return None
    try:
        kind = pa.array(values).type
    except Exception:  # of many types, for what no column can hold
        return None
    return None if pa.types.is_null(kind) else kind


def _can_be_written(name: str, kind: pa.DataType) -> bool:
    """Whether Parquet has a column of this name and type: it has no empty objects, for one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pa.schema([pa.field(free_name(name), kind)])
        with pa.BufferOutputStream() as stream, pq.ParquetWriter(stream, schema):
            return True
    except Exception:
        return False


def _is_deep(value: Any, depth: int = _DEPTH) -> bool:
    """Whether it holds lists and objects in each other that Arrow should not be asked to take."""
    if not isinstance(value, list | tuple | Mapping):
        return False
    inner = value.values() if isinstance(value, Mapping) else value
    return depth == 0 or any(_is_deep(item, depth - 1) for item in inner)


def _fits(value: Any, kind: pa.DataType) -> bool:
    """Whether `value` comes back as it was; a whole number may come back as a float."""
    import pyarrow as pa

    if value is None:
        return True
    try:
        back = pa.scalar(value, kind).as_py()
        same = type(back) is type(value) or (type(value) is int and type(back) is float)
        return bool(same and (back == value or (back != back and value != value)))
    except Exception:  # of many types, for what the column cannot hold
        return False
