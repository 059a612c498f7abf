"""The index of a store: its files, and what they were made with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from viq.core.types import FLOAT32, CodesError, ViqError
from viq.core.untrusted import fingerprint, parse_json, printable, sha256, whole_number
from viq.store.schema import StoreInfo

FORMAT = 1
INDEX, JOB, LEDGER = "_index.json", "_job.json", "_failures.jsonl"
CARD = ".huggingface.yaml"  # read by `datasets`, which else takes the JSON files for the samples
CARD_TEXT = b"""configs:
- config_name: default
  data_files: "part-*.parquet"
"""


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"part-{number:05d}.parquet"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a store, as the index lists it.

    Attributes:
        inputs: the half-open range of inputs it was made of, failed ones included.
        sha256: of the file, hex.
    """

    name: str
    rows: int
    inputs: tuple[int, int]
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Index:
    """What `_index.json` holds; without shards and totals, what `_job.json` holds.

    Attributes:
        options: of encoding, by name; only those that change the codes or the shards.
        columns: Arrow type of every column that rides along, by name.
        inputs: how many the store is made of.
        keys: digest of their keys, in order.
        totals: rows, images, pixels, codes, failures, bytes of the whole store.
    """

    info: StoreInfo
    options: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    inputs: int = 0
    keys: str = ""
    shards: tuple[Shard, ...] = ()
    totals: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Deterministic: equal stores have equal bytes."""
        values = asdict(self)
        values = {"format": FORMAT, **values.pop("info"), **values}
        if self.info.dtype == FLOAT32:  # as it was written before there were others
            del values["dtype"]
        if not self.info.refinement:  # the same
            del values["refinement"], values["meaning"]
        if not self.totals:
            del values["shards"], values["totals"]
        return (json.dumps(values, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Index:
        """Read what `to_json` wrote.

        Raises:
            CodesError: of another format, or damaged; names `where`.
        """
        try:
            values = parse_json(data, where)
            if not isinstance(values, dict):
                raise CodesError("is no object")
            if values.pop("format") != FORMAT:
                raise _NewerError(f"{where}: of a newer format; update viq")
            return _index_of(values)
        except _NewerError:
            raise
        except (ViqError, KeyError, TypeError, AttributeError, ValueError) as error:
            reason = str(error).removeprefix(f"{where}: ")
            if not isinstance(error, ViqError):
                reason = f"{type(error).__name__}: {printable(reason, 80)}"
            raise CodesError(f"{where}: damaged ({reason}); mend with viq store index") from None


class _NewerError(CodesError):
    pass


def _index_of(values: dict[str, Any]) -> Index:
    """What an index says, each value checked: it may come from anybody."""
    about = {name: values.pop(name) for name in ("model", "fingerprint", "levels")}
    about |= {"entropy": values.pop("entropy", ""), "dtype": _dtype(values)}
    about |= {name: values.pop(name) for name in ("refinement", "meaning") if name in values}
    info = StoreInfo.checked(about)
    index = Index(
        info=info,
        options={_text(k, "options"): _scalar(v, k) for k, v in values.pop("options", {}).items()},
        columns={_text(k, "columns"): _text(v, k) for k, v in values.pop("columns", {}).items()},
        inputs=whole_number(values.pop("inputs", 0), "inputs"),
        keys=fingerprint(values.pop("keys", ""), "keys"),
        shards=tuple(_shards(values.pop("shards", []))),
        totals={
            _text(k, "totals"): whole_number(v, k) for k, v in values.pop("totals", {}).items()
        },
    )
    if values:
        raise CodesError(f"unknown {printable(next(iter(values)), 80)}")
    if index.shards and index.shards[-1].inputs[1] != index.inputs:
        raise CodesError(f"the shards end at input {index.shards[-1].inputs[1]} of {index.inputs}")
    rows = sum(shard.rows for shard in index.shards)
    if index.totals and index.totals.get("rows", rows) != rows:
        raise CodesError(f"{index.totals['rows']} rows, but its shards have {rows}")
    return index


def _dtype(values: dict[str, Any]) -> Any:
    """Of the model; before it had a name of its own it stood among the options, if anywhere."""
    options = values.get("options", {})
    return values.pop("dtype", options.get("dtype", FLOAT32))


def _shards(values: Any) -> Iterator[Shard]:
    """The shards of an index: numbered in order, and of neighbouring inputs."""
    first = 0
    for number, shard in enumerate(values):
        start, stop = (whole_number(place, "inputs") for place in shard["inputs"])
        if shard.keys() != _SHARD_FIELDS or shard["name"] != shard_name(number):
            raise CodesError(
                f"shard {number} is {printable(str(shard.get('name')), 80)!r}, not "
                f"{shard_name(number)}"
            )
        if start != first or stop < start:
            raise CodesError(f"shard {number} is of inputs {start} to {stop}, not from {first} on")
        yield Shard(
            name=shard["name"],
            rows=whole_number(shard["rows"], "rows"),
            inputs=(start, stop),
            bytes=whole_number(shard["bytes"], "bytes"),
            sha256=sha256(shard["sha256"], "sha256"),
        )
        first = stop


_SHARD_FIELDS = {"name", "rows", "inputs", "bytes", "sha256"}


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise CodesError(f"{what} is no text")
    return value


def _scalar(value: Any, what: str) -> Any:
    if value is not None and not isinstance(value, (str, int, float, bool)):
        raise CodesError(f"{what} is neither number nor text")
    return value
