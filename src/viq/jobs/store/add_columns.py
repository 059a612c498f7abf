"""Columns of a table joined to a store by key: `viq store add-columns`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from viq.core.remote import Location, location
from viq.core.types import ViqError
from viq.core.untrusted import printable
from viq.data.sources.base import Source
from viq.jobs.store.merge import TYPED_BY, write_samples
from viq.store.columns import Extras, free_name
from viq.store.folder import Index, Store
from viq.store.job import MERGED, SHARD_SIZE, digest
from viq.store.rows import CodeRow
from viq.store.schema import samples_of


def add_columns(
    path: Location,
    table: Source,
    out: Location,
    *,
    key_column: str = "key",
    replace_columns: bool = False,
    strict: bool = False,
    shard_size: int = 1000,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write a store anew with the columns of a table beside its own; resumes if begun.

    The codes are copied as they are, uncompressed. A sample whose key the table lacks gets none.

    Args:
        table: rows with the key of a sample, as their key or in the column `key_column`.
        replace_columns: let columns of the table take the place of those of the same name.
        strict: whether samples without a row of the table, and rows of it without a sample, are
            an error.
        progress: called for each shard that is done.

    Returns:
        Totals of the new store, and how many samples and rows found no partner.

    Raises:
        ViqError: a key comes twice in the table, a column is there already, or as `open_job`.
    """
    store, out = Store(path), location(out)
    joined = _Joined(table, key_column, replace_columns)
    keys = [sample[0].key for sample in samples_of(store.rows(columns=()))]
    without = sum(key not in joined.places for key in keys)
    unused = len(joined.places.keys() - set(keys))
    if strict and (without or unused):
        raise ViqError(
            f"--strict: {without:,} samples have no row in the table, and {unused:,} rows no sample"
        )
    first = [sample[0].extras for sample in islice(joined.samples(store), TYPED_BY)]
    extras = Extras.inferred(first)
    inputs, sequence = digest(keys)
    _, columns_of = digest(joined.places)
    wanted = Index(
        info=replace(store.info, entropy=""),
        options={SHARD_SIZE: shard_size, MERGED: True, "columns_of": columns_of},
        columns={f.name: str(f.type) for f in extras.fields},
        inputs=inputs,
        keys=sequence,
    )
    totals = write_samples(out, wanted, extras, joined.samples(store), progress=progress)
    return {"output": str(out), "without_row": without, "unused_rows": unused, **totals}


class _Joined:
    """The samples of a store, each with what a table says of its key."""

    def __init__(self, table: Source, key_column: str, replace_columns: bool) -> None:
        self._table, self._key_column, self._replaces = table, key_column, replace_columns
        self.places: dict[str, int] = {}  # rows of the table by key
        for place in range(len(table)):
            row = table[place]
            key = str(row.extras.get(key_column, row.key))
            if key in self.places:
                raise ViqError(f"{row.where}: key {printable(key, 80)} was there before; keep one")
            self.places[key] = place

    def samples(self, store: Store) -> Iterator[Sequence[CodeRow]]:
        for sample in samples_of(store.rows()):
            place = self.places.get(sample[0].key)
            more = {} if place is None else dict(self._table[place].extras)
            more.pop(self._key_column, None)
            more = {free_name(name): value for name, value in more.items()}
            before = {name for name, value in sample[0].extras.items() if value is not None}
            if (clash := sorted(before & more.keys())) and not self._replaces:
                raise ViqError(
                    f"{sample[0].key}: has a column {printable(clash[0], 80)} already; give "
                    "--columns without it, or --replace-columns"
                )
            yield [replace(row, extras={**row.extras, **more}) for row in sample]
