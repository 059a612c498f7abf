"""The commands encode and decode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viq.cli.common import (
    SOME_FAILED,
    Columns,
    Device,
    Drop,
    Dtype,
    ImageColumn,
    Json,
    KeyColumn,
    Model,
    ModelOfCodes,
    Overwrite,
    Root,
    Split,
    Strict,
    Tile,
    guarded,
    load_tokenizer,
    names_of,
    place_option,
)
from viq.cli.console import line, show_report
from viq.cli.groups import DataAccess, grouped
from viq.cli.progress import progress
from viq.core.files import DEFAULT_MODEL
from viq.core.interrupts import stoppable
from viq.core.remote import location

if TYPE_CHECKING:
    from viq.jobs.summary import Summary


_REASONS = 5  # that are shown; --json has all


@guarded
@grouped
@stoppable()
def encode(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, .tar, .parquet, .jsonl, .txt lists of paths or URLs, hf:NAME."
        ),
    ],
    out: Annotated[
        Any,
        place_option(
            "FOLDER, here or s3://.., gs://..; NAME.parquet; or NAME.viq for one image.", "PLACE"
        ),
    ],
    *,
    model: Model = DEFAULT_MODEL,
    tile: Tile = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Shrink larger images to this area. Default: never.")
    ] = None,
    packed: Annotated[
        int,
        typer.Option(help="Patches in one sequence, for CUDA: 16384. Flips a few codes."),
    ] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Threads that decode, and on a CPU encode. Default: all.")
    ] = None,
    bpp: Annotated[
        float | None,
        typer.Option(
            help="As many codes a patch as it needs, at most so many bits a pixel, "
            "compressed if --compress."
        ),
    ] = None,
    psnr: Annotated[
        float | None, typer.Option(help="The same, as few as keep so many dB of an image.")
    ] = None,
    nbytes: Annotated[
        int | None, typer.Option("--nbytes", "--bytes", help="The same, of a .viq file.")
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Of a folder: inputs in a shard.")] = 1000,
    compress: Annotated[
        bool, typer.Option("--compress", help="Fewer bytes, without loss (docs/codes.md).")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Of a folder: try again what failed.")
    ] = False,
    rank: Annotated[int | None, typer.Option(help="Which of --world processes this is.")] = None,
    world: Annotated[
        int | None, typer.Option(help="Processes on one folder. Default: torchrun's or Slurm's.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray.")] = "local",
    image_column: ImageColumn = None,
    key_column: KeyColumn = None,
    split: Split = None,
    root: Root = None,
    columns: Columns = None,
    drop: Drop = None,
    access: DataAccess,
    downloads: Annotated[int, typer.Option(min=1, help="Of URLs: fetched at a time.")] = 32,
    per_host: Annotated[int, typer.Option(min=1, help="Of URLs: at a time from a server.")] = 8,
    tries: Annotated[int, typer.Option(min=1, help="Of URLs: when a server is busy.")] = 3,
    strict: Strict = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Images to codes, at native resolution. A folder is resumed if begun.

    Examples:
        viq encode photos/ more.jpg -o codes.parquet
        viq encode "train-{0000..0127}.tar" -o codes --compress
        viq encode hf:OWNER/NAME --split train --columns caption -o codes
    """
    from viq.core.process import place_among
    from viq.core.types import ViqError
    from viq.jobs import encode as job
    from viq.jobs.inputs import open_inputs, require_not_among
    from viq.jobs.pipeline import EncodeOptions

    options = EncodeOptions(
        tile=tile, max_pixels=max_pixels, packed=packed, shard_size=shard_size, compress=compress,
        bpp=bpp, psnr=psnr, nbytes=nbytes,
    )  # fmt: skip
    place = place_among(rank, world)
    input_options = {
        "image_column": image_column, "key_column": key_column, "split": split, "root": root,
        "columns": names_of(columns), "drop": names_of(drop),
        "access": access.access(parallel=downloads, per_host=per_host, tries=tries),
    }  # fmt: skip
    source = open_inputs(inputs, **input_options)
    require_not_among(out, inputs)
    common = {"retry_failed": retry_failed, "overwrite": overwrite, "strict": strict}
    with progress("encoding", len(source), hidden=as_json) as advance:
        if engine not in ("local", "ray"):
            raise ViqError(f"--engine {engine}: give local or ray")
        if engine == "ray":
            from viq.jobs import ray_engine

            if place.world > 1:
                raise ViqError(
                    f"--engine ray: hands out the work itself, but this is rank {place.rank} of "
                    f"{place.world}; start it once"
                )

            tokenizer = load_tokenizer(model, "cpu", dtype)
            report = ray_engine.encode(
                tokenizer, model, inputs, input_options, source, out, options, actors=workers,
                progress=advance, **common,
            )  # fmt: skip
        else:
            tokenizer = load_tokenizer(model, device, dtype, place.local)
            report = job.encode(
                tokenizer, source, out, options, workers=workers, place=place, progress=advance,
                watch=advance, **common,
            )  # fmt: skip
    if not as_json:
        for remark in _remarks(report, max_pixels):
            line(remark)
    show_report(report, as_json)
    if report.failures:
        raise typer.Exit(SOME_FAILED)


def _remarks(report: Summary, max_pixels: int | None) -> Iterator[str]:
    """What a user should know of a job beside its figures."""
    if report.shrunk:
        yield f"{report.shrunk} images had more than {max_pixels:,} pixels and were made smaller"
    if report.left_over:
        listed = ", ".join(f"{count:,} {what}" for what, count in report.left_over.items())
        yield f"left over: {listed}"
    if report.resumed:
        yield f"{report.resumed} inputs were finished by an earlier run"
    for reason, count in list(report.failure_reasons().items())[:_REASONS]:
        yield f"{count} failed: {reason}"
    for place in report.kept:
        yield f"no codes were written; {place} is left as it was"


@guarded
@stoppable()
def decode(
    files: Annotated[
        list[Any],
        typer.Argument(
            parser=location,
            metavar="FILES...",
            help="Stores, .parquet or .viq files; the first two also behind URLs.",
        ),
    ],
    out: Annotated[Any, place_option("Folder for the PNG files, here or s3://.., gs://..")],
    model: ModelOfCodes = None,
    device: Device = "auto",
    any_tokenizer: Annotated[
        bool,
        typer.Option(
            "--any-tokenizer", help="Decode codes that another tokenizer made. They look wrong."
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Codes to PNG images at their original sizes. Run again to go on; exit code 3 if some fail.

    Examples:
        viq decode codes.parquet -o back/
        viq decode photo.viq -o back/ --model runs/tokenizer
    """
    from viq.jobs.decode import decode_files, maker_of

    tokenizer = load_tokenizer(model or maker_of(files[0]), device, "float32")
    with progress("decoding", 0, hidden=as_json) as advance:
        report = decode_files(
            tokenizer, files, out, any_tokenizer=any_tokenizer, overwrite=overwrite,
            begin=advance.expect, progress=advance,
        )  # fmt: skip
    if report.resumed and not as_json:
        line(f"{report.resumed} pictures were there from an earlier run")
    for made_in, count in () if as_json else report.other_dtypes.items():
        line(
            f"codes of {count} pictures were made in {made_in}: a few differ from those in float32"
        )
    show_report(report, as_json)
    if report.failures:
        raise typer.Exit(SOME_FAILED)
