"""What the commands share: their common options, errors as one line, and loading of the model."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from viq.cli.console import versioned
from viq.core.remote import location
from viq.core.terminal import give_up_on, plain_streams
from viq.core.untrusted import printable

if TYPE_CHECKING:
    from viq.models.tokenizer.tokenizer import VisualTokenizer

USAGE, SOME_FAILED, INTERRUPTED, STOPPED = 2, 3, 130, 143  # the last two: 128 + signal


def place_option(help: str, metavar: str = "FOLDER") -> Any:
    """The option of what is written, here or behind a URL."""
    return typer.Option("-o", "--out", parser=location, metavar=metavar, help=help)


Images = Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")]
Store = Annotated[
    Any, typer.Argument(parser=location, metavar="STORE", help="A store, a Parquet file of codes, "
                        "or a folder of these; here or behind a URL (s3://, gs://, hf://, ..).")
]  # fmt: skip
Stores = Annotated[
    list[Any], typer.Argument(parser=location, metavar="STORES...", help="Stores, Parquet files of "
                              "codes or folders of these; here or behind URLs.")
]  # fmt: skip
Model = Annotated[str, typer.Option(help="Bundled name, model folder, or Hugging Face hub id.")]
ModelOfCodes = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Bundled name, model folder, or Hugging Face hub id. Default: the bundled one that "
        "made the codes.",
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(help="Encode in tiles above this side, px; 0 never. Default: the model's own."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto: cuda if there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16. Other dtypes than "
                                         "float32 change a few codes.")]  # fmt: skip
ImageColumn = Annotated[
    list[str] | None,
    typer.Option(help="Of tables and JSON: what holds images. Default: image, images, ..."),
]
KeyColumn = Annotated[str | None, typer.Option(help="Of tables. Default: key, __key__ or id.")]
Split = Annotated[str | None, typer.Option(help="Of Hugging Face data sets with several.")]
Root = Annotated[
    Path | None, typer.Option(help="The folder of relative image paths. Default: that of the file.")
]
Where = Annotated[list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(help="Only these columns or fields ride along, by commas. Default: all."),
]
Drop = Annotated[list[str] | None, typer.Option(help="Columns or fields that do not ride along.")]
AllowProtocol = Annotated[
    list[str] | None,
    typer.Option(help="Paths in the data may be of this protocol (s3, gs, ...); again for more."),
]
AllowAbsolute = Annotated[
    bool, typer.Option("--allow-absolute", help="Paths in the data may lead anywhere.")
]
AllowPrivateNetwork = Annotated[
    bool,
    typer.Option("--allow-private-network", help="URLs in the data may be of this machine or net."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Nothing of the inputs may be left over without an error.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Tokens = Annotated[int, typer.Option(help="Length of an answer at most.")]
Batch = Annotated[int, typer.Option(help="Questions at a time.")]
JsonOut = Annotated[Path | None, typer.Option("-o", "--out", help="Also write JSON here.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what is there, even if this job did not make it."),
]
Anew = Annotated[
    bool,
    typer.Option("--overwrite", help="Begin anew: remove what an earlier run wrote into --out."),
]

# Imports that not every install has, and the extras that bring them.
_EXTRAS = {"transformers": "chat", "tokenizers": "chat", "accelerate": "train", "peft": "train"}

Command = TypeVar("Command", bound=Callable[..., Any])


def guarded(command: Command) -> Command:
    """Turn what can go wrong with input into one line and an exit code; show plain text alone."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        with plain_streams():
            try:
                done = command(*args, **kwargs)
                sys.stdout.flush()  # a full disk shows only here, else at the end of Python
                return done
            except BrokenPipeError:
                give_up_on(sys.stdout)
                raise typer.Exit(0) from None
            except (Exception, KeyboardInterrupt) as error:
                told = _told(error)
                if told is None:
                    raise
            message, code = told
            _say_last(message, as_json=bool(kwargs.get("as_json")))
        raise typer.Exit(code)

    return cast(Command, run)


def _told(error: BaseException) -> tuple[str, int] | None:
    """One line and the exit code for what a user can mend; None for a fault of ours."""
    from viq.core.types import Stopped, ViqError

    if isinstance(error, ViqError):
        return str(error), STOPPED if isinstance(error, Stopped) else USAGE
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        return (f"this needs {error.name}: pip install 'viq[{extra}]'", USAGE) if extra else None
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted; no unfinished file was left", INTERRUPTED
    if isinstance(error, MemoryError):
        return "does not fit into the memory of this machine", USAGE
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", USAGE
    return None


def _say_last(message: str, as_json: bool) -> None:
    """The one line of an error, if there still is somewhere to say it."""
    message = printable(message)
    for stream, text in (
        (sys.stdout, json.dumps(versioned({"error": message})) if as_json else ""),
        (sys.stderr, f"viq: {message}"),
    ):
        try:
            if text:
                print(text, file=stream)
            stream.flush()
        except (OSError, ValueError):
            give_up_on(stream)


def load_tokenizer(model: str, device: str, dtype: str, local_rank: int = 0) -> VisualTokenizer:
    """A tokenizer as the options ask for it; `auto` gives ranks on one machine a GPU each."""
    import torch

    from viq.core.types import ViqError
    from viq.models.tokenizer.loading import load

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in dtypes:
        raise ViqError(f"--dtype {dtype}: give one of {', '.join(dtypes)}")
    return load(model, device=find_device(device, local_rank), dtype=dtypes[dtype])


def load_mllm(model: str, device: str) -> tuple[Any, Any]:
    """A multimodal language model and its processor, in bfloat16 where the device has it."""
    import torch

    from viq.mllm.loading import load_mllm as load

    device = find_device(device)
    half = device.startswith("cuda") and torch.cuda.is_bf16_supported()
    return load(model, device=device, dtype=torch.bfloat16 if half else torch.float32)


def find_device(device: str, local_rank: int = 0) -> str:
    """The device that an option asks for, which is there."""
    import torch

    from viq.core.types import ViqError

    if device == "auto":
        count = torch.cuda.device_count()
        device = f"cuda:{local_rank % count}" if count else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ViqError(f"--device {device}: not available here; see viq doctor") from None
    return device


def use_threads(count: int | None) -> None:
    """Let torch use so many CPU threads, where `--threads` says so."""
    import torch

    from viq.core.types import ViqError

    if count is not None and count < 0:
        raise ViqError(f"--threads {count}: give at least 1")
    if count:
        torch.set_num_threads(count)


def names_of(options: list[str] | None) -> list[str] | None:
    """Names given by commas, again and again, or both."""
    return [name for text in options for name in text.split(",") if name] if options else None


def conditions(where: list[str] | None) -> dict[str, str] | None:
    """Options COLUMN=VALUE as a mapping."""
    from viq.core.types import ViqError

    for condition in where or []:
        if "=" not in condition:
            raise ViqError(f"--where {condition}: give COLUMN=VALUE")
    return dict(condition.split("=", 1) for condition in where or []) or None


def save_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write a result where `--out` says, if it does; the command has checked that it may."""
    from viq.core.files import write_atomically

    if path is not None:
        write_atomically(path, (json.dumps(versioned(result), indent=1) + "\n").encode())
