"""The commands on stores of codes: `viq store`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from viq.cli.common import (
    SOME_FAILED,
    Columns,
    Drop,
    Json,
    ModelOfCodes,
    Overwrite,
    Split,
    Store,
    Stores,
    guarded,
    load_tokenizer,
    names_of,
    place_option,
)
from viq.cli.console import line, show, show_json
from viq.cli.help import App
from viq.cli.progress import progress
from viq.core.files import DEFAULT_MODEL
from viq.core.interrupts import stoppable
from viq.core.remote import location

store_app = App(
    help="""Work on stores of codes.

    Examples:
        viq store lint codes
        viq store merge a b -o both
    """
)

OutFolder = Annotated[Any, place_option("Folder, here or behind a URL; resumed if begun.")]
ShardSize = Annotated[int, typer.Option(min=1, help="Samples in a shard.")]
_SHOWN = 20  # problems or pairs without --json


@store_app.command()
@guarded
def index(
    folder: Annotated[
        Any, typer.Argument(parser=location, metavar="FOLDER", help="What viq encode writes.")
    ],
    as_json: Json = False,
) -> None:
    """Write ledger and index anew, as after several ranks or damage to the index.

    Examples:
        viq store index codes
    """
    from viq.core.types import ViqError
    from viq.store.remote_job import write_index_at

    found, missing = write_index_at(folder)
    if found is None:
        raise ViqError(
            f"{folder}: {len(missing)} shards are missing, the first is {missing[0]}; run the same "
            "viq encode again"
        )
    show({"shards": len(found.shards), **found.totals}, as_json)


@store_app.command()
@guarded
def lint(store: Store, as_json: Json = False) -> None:
    """Checksums, ranges, grids, duplicates, missing shards. Exit code 3 if anything is wrong.

    Examples:
        viq store lint codes
        viq store lint codes --json
    """
    from viq.jobs.store.lint import lint as run

    with progress("checking", 0, hidden=as_json) as advance:
        result = run(store, advance)
    if as_json:
        show_json(result)
    else:
        for item in result["listed"][:_SHOWN]:
            line(f"{item['where']}: {item['problem']}")
        more = result["problems"] - _SHOWN
        if more > 0:
            print(f"and {more} more; --json lists the first 1,000")
        print(f"{result['rows']} rows, {result['shards']} shards, {result['problems']} problems")
    if result["problems"]:
        raise typer.Exit(SOME_FAILED)


@store_app.command()
@guarded
def stats(store: Store, as_json: Json = False) -> None:
    """Counts, sizes, bits a code, use of the codebook and of levels.

    Examples:
        viq store stats codes
    """
    from viq.jobs.store.stats import stats as run

    show(run(store), as_json)


@store_app.command()
@guarded
def diff(first: Store, second: Store, as_json: Json = False) -> None:
    """What differs, row by row, whatever the shards. Exit code 3 if anything does.

    Examples:
        viq store diff codes again
    """
    from viq.jobs.store.stats import diff as run

    result = run(first, second)
    show(result, as_json)
    if not result["equal"]:
        raise typer.Exit(SOME_FAILED)


@store_app.command()
@guarded
@stoppable()
def merge(
    stores: Stores,
    out: OutFolder,
    compress: Annotated[bool, typer.Option("--compress", help="As viq encode does.")] = False,
    model: ModelOfCodes = None,
    skip_duplicates: Annotated[
        bool, typer.Option("--skip-duplicates", help="Keep the first of a key, not refuse it.")
    ] = False,
    shard_size: ShardSize = 1000,
    as_json: Json = False,
) -> None:
    """Stores into one; or one written anew, with other shards or compressed.

    Examples:
        viq store merge a b -o both
        viq store merge codes -o smaller --compress --shard-size 5000
    """
    from viq.jobs.decode import maker_of
    from viq.jobs.store.merge import merge as run

    entropy = None
    if compress:
        entropy = load_tokenizer(model or maker_of(stores[0]), "cpu", "float32").entropy
    with progress("merging", 0, hidden=as_json) as advance:
        result = run(
            stores, out, shard_size=shard_size, entropy=entropy,
            skip_duplicates=skip_duplicates, progress=advance,
        )  # fmt: skip
    show(result, as_json)


@store_app.command("add-columns")
@guarded
@stoppable()
def add_columns(
    store: Store,
    table: Annotated[
        str, typer.Argument(help="Parquet, JSON, JSONL or hf:NAME: rows with the key of a sample.")
    ],
    out: OutFolder,
    key_column: Annotated[str, typer.Option(help="Of the table: the key of a sample.")] = "key",
    split: Split = None,
    columns: Columns = None,
    drop: Drop = None,
    replace_columns: Annotated[
        bool, typer.Option("--replace-columns", help="In place of columns of the same name.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Every sample and row must have its partner.")
    ] = False,
    shard_size: ShardSize = 1000,
    as_json: Json = False,
) -> None:
    """Join captions, labels or conversations to a store by key, into a new store.

    Examples:
        viq store add-columns codes captions.jsonl -o captioned
        viq store add-columns codes labels.parquet -o labelled --key-column id --strict
    """
    from viq.data.sources.open import open_source
    from viq.jobs.store.add_columns import add_columns as run

    chosen = {"columns": _with(key_column, columns), "drop": names_of(drop), "split": split}
    rows = open_source(table, image_column=(), **chosen)
    with progress("joining", 0, hidden=as_json) as advance:
        result = run(
            store, rows, out, key_column=key_column, replace_columns=replace_columns, strict=strict,
            shard_size=shard_size, progress=advance,
        )  # fmt: skip
    show(result, as_json)


def _with(key: str, columns: list[str] | None) -> list[str] | None:
    names = names_of(columns)
    return None if names is None else [key, *names]


@store_app.command("import")
@guarded
@stoppable()
def import_(
    files: Annotated[
        list[Path], typer.Argument(help=".viq, .npy, .npz or .tar files, or folders of them.")
    ],
    out: OutFolder,
    model: Annotated[str, typer.Option(help="The tokenizer that made the codes.")] = DEFAULT_MODEL,
    shard_size: ShardSize = 1000,
    as_json: Json = False,
) -> None:
    """Codes that lie in arrays, .viq files or WebDataset tars, into a store.

    Examples:
        viq store import arrays/ image.viq -o codes
        viq store import shard-00000.tar -o codes --model runs/tokenizer
    """
    from viq.jobs.store.import_codes import import_codes
    from viq.store.folder import StoreInfo

    tokenizer = load_tokenizer(model, "cpu", "float32")
    info = StoreInfo(
        model=tokenizer.config.name, fingerprint=tokenizer.fingerprint, levels=tokenizer.levels
    )
    with progress("importing", 0, hidden=as_json) as advance:
        result = import_codes(files, out, info, shard_size=shard_size, progress=advance)
    show(result, as_json)


@store_app.command()
@guarded
@stoppable()
def export(
    store: Store,
    out: Annotated[Any, place_option("New folder, here or behind a URL.")],
    webdataset: Annotated[bool, typer.Option("--webdataset", help="As .tar shards.")] = False,
    shard_size: ShardSize = 10000,
    as_json: Json = False,
) -> None:
    """Into another format: --webdataset, tars of .viq and .json files.

    Examples:
        viq store export codes -o tars --webdataset
    """
    from viq.core.types import ViqError
    from viq.jobs.store.merge import export_webdataset

    if not webdataset:
        raise ViqError("export: say into what: --webdataset")
    with progress("exporting", 0, hidden=as_json) as advance:
        result = export_webdataset(store, out, shard_size=shard_size, progress=advance)
    show(result, as_json)


@store_app.command()
@guarded
def preview(
    store: Store,
    out: Annotated[Path, typer.Option("-o", "--out", help="NAME.png or NAME.html.")],
    model: ModelOfCodes = None,
    rows: Annotated[int, typer.Option(min=1, help="How many are shown.")] = 24,
    seed: Annotated[int | None, typer.Option(help="Draw them. Default: evenly spread.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Decode some rows into one picture or page.

    Examples:
        viq store preview codes -o page.html
        viq store preview codes -o sheet.png --rows 12 --seed 1
    """
    from viq.core.outputs import require_free
    from viq.jobs.decode import maker_of
    from viq.report.preview import preview as run

    require_free(out, overwrite=overwrite)
    tokenizer = load_tokenizer(model or maker_of(store), "auto", "float32")
    show(run(tokenizer, store, out, count=rows, seed=seed), as_json)


@store_app.command("near-duplicates")
@guarded
def near_duplicates(
    store: Store,
    by: Annotated[
        str, typer.Option(help="codes: share of common codes; pooled: cosine.")
    ] = "codes",
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Default: 0.5 of codes, 0.95 of pooled.")
    ] = None,
    model: ModelOfCodes = None,
    as_json: Json = False,
) -> None:
    """Pairs of pictures that are nearly the same.

    Examples:
        viq store near-duplicates codes
        viq store near-duplicates codes --by pooled --threshold 0.97
    """
    from viq.core.types import ViqError
    from viq.jobs.decode import maker_of
    from viq.jobs.store import near_duplicates as duplicates

    chosen: dict[str, Any] = {} if threshold is None else {"threshold": threshold}
    with progress("comparing", 0, hidden=as_json) as advance:
        if by == "codes":
            result = duplicates.by_overlap(store, **chosen)
        elif by == "pooled":
            tokenizer = load_tokenizer(model or maker_of(store), "auto", "float32")
            result = duplicates.by_pooled(tokenizer, store, progress=advance, **chosen)
        else:
            raise ViqError(f"--by {by}: give codes or pooled")
    if as_json:
        show_json(result)
        return
    for pair in result["pairs"][:_SHOWN]:
        line(f"{pair['similarity']:.3f}  {pair['a']}  {pair['b']}")
    if len(result["pairs"]) > _SHOWN:
        print(f"and {len(result['pairs']) - _SHOWN} more; --json lists all", file=sys.stderr)
    print(f"{result['images']} images, {len(result['pairs'])} pairs at {result['threshold']}")
