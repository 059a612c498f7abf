"""What the commands share: their common options, errors as one line, and loading of the model."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from viq.models.tokenizer import VisualTokenizer

USAGE, SOME_FAILED, INTERRUPTED, STOPPED = 2, 3, 130, 143  # the last two: 128 + signal

Images = Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")]
Model = Annotated[str, typer.Option(help="Bundled name, model folder, or Hugging Face hub id.")]
Tile = Annotated[
    int | None,
    typer.Option(help="Encode in tiles above this side, px; 0 never. Default: the model's own."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto: cuda if there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16. Other dtypes than "
                                         "float32 change a few codes.")]  # fmt: skip
ImageColumn = Annotated[
    list[str] | None, typer.Option(help="Of tables: image columns. Default: image or images.")
]
KeyColumn = Annotated[str | None, typer.Option(help="Of tables. Default: key, __key__ or id.")]
Split = Annotated[str | None, typer.Option(help="Of Hugging Face data sets with several.")]
Root = Annotated[Path | None, typer.Option(help="Of JSON: the folder of relative image paths.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Anew = Annotated[
    bool,
    typer.Option("--overwrite", help="Begin anew: remove what an earlier run wrote into --out."),
]
Overwrite = Annotated[bool, typer.Option(help="Replace an existing output.")]

_EXTRAS = {"transformers", "tokenizers", "accelerate", "peft"}  # that not every install has

Command = TypeVar("Command", bound=Callable[..., Any])


def guarded(command: Command) -> Command:
    """Turn what can go wrong with input into one line and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        from viq.types import Stopped, ViqError

        try:
            return command(*args, **kwargs)
        except ViqError as error:
            message, code = str(error), STOPPED if isinstance(error, Stopped) else USAGE
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _EXTRAS:
                raise
            message, code = f"this needs {error.name}: pip install 'viq[train]'", USAGE
        except KeyboardInterrupt as stop:
            message = str(stop) or "interrupted; no unfinished file was left"
            code = INTERRUPTED
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(0) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            message, code = f"{where}{error.strerror or error}", USAGE
        if kwargs.get("as_json"):
            print(json.dumps({"error": message}))
        print(f"viq: {message}", file=sys.stderr)
        raise typer.Exit(code)

    return run  # type: ignore[return-value]


def load_tokenizer(model: str, device: str, dtype: str, local_rank: int = 0) -> VisualTokenizer:
    """A tokenizer as the options ask for it; `auto` gives ranks on one machine a GPU each."""
    import torch

    from viq.loading import load
    from viq.types import ViqError

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in dtypes:
        raise ViqError(f"--dtype {dtype}: give one of {', '.join(dtypes)}")
    return load(model, device=find_device(device, local_rank), dtype=dtypes[dtype])


def find_device(device: str, local_rank: int = 0) -> str:
    """The device that an option asks for, which is there."""
    import torch

    from viq.types import ViqError

    if device == "auto":
        count = torch.cuda.device_count()
        device = f"cuda:{local_rank % count}" if count else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ViqError(f"--device {device}: not available here; see viq doctor") from None
    return device


def conditions(where: list[str] | None) -> dict[str, str] | None:
    """Options COLUMN=VALUE as a mapping."""
    from viq.types import ViqError

    for condition in where or []:
        if "=" not in condition:
            raise ViqError(f"--where {condition}: give COLUMN=VALUE")
    return dict(condition.split("=", 1) for condition in where or []) or None
