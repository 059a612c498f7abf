"""What `--help` looks like: options in panels, examples below them.

A command says its examples at the end of its docstring, one a line, after a line `Examples:`. The
panel of an option goes by its name, so the same option is in the same panel of every command.
"""

from __future__ import annotations

import inspect
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

OTHER = "Other"

# Panels in the order in which help shows them, and the parameters of commands that are in each.
PANELS: dict[str, tuple[str, ...]] = {
    "Output": (
        "out", "to", "part", "check", "webdataset", "shard_size", "sheet", "chart",
        "retry_failed", "overwrite",
    ),
    "Model": (
        "model", "tokenizer", "any_tokenizer", "language", "start", "teacher", "sentences", "vae",
        "alignment", "towers", "continuous", "methods", "peers", "llm", "levels", "heads", "name",
        "rope_angle", "chat", "draw", "counts_only",
    ),
    "Input": (
        "data", "kodak", "codes", "synthetic", "text", "photos", "pictures", "label", "where",
        "root", "image_column", "key_column", "split", "columns", "drop", "replace_columns",
        "strict",
        "transcript", "answers", "tasks", "each", "limit", "rows", "by", "store", "run",
    ),
    "Access": (
        "allow_protocol", "allow_absolute", "allow_private_network", "downloads", "per_host",
        "tries",
    ),
    "Codes": (
        "tile", "max_pixels", "packed", "bpp", "psnr", "nbytes", "crops", "compress",
        "skip_duplicates", "threshold",
    ),
    "Text and pictures": (
        "prompt", "max_tokens", "temperature", "min_confidence", "top_p", "guidance", "candidates",
        "seed",
        "size", "count",
    ),
    "Measurement": (
        "crop", "codecs", "sizes", "perceptual", "ocr", "random_sizes", "side", "length", "full",
        "checkpointing", "like", "repeats", "timed", "memory", "quick", "only", "shown",
    ),
    "Training": ("recipe", "steps", "scale", "seeds", "track", "show_recipe"),
    "Server": (
        "host", "port", "token", "hostname", "max_upload", "max_kept", "max_seconds", "max_waiting",
    ),
    "Machine": (
        "device", "dtype", "jobs", "threads", "workers", "batch", "rank", "world", "engine",
        "cache",
    ),
    OTHER: ("as_json", "help"),
}  # fmt: skip
_PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}
_PLACE = {panel: place for place, panel in enumerate(PANELS)}


def split_examples(text: str | None) -> tuple[str, str]:
    """The two parts of a help text: what it says, and its examples, which may be none."""
    said, _, examples = inspect.cleandoc(text or "").partition("\n\nExamples:\n")
    return said, inspect.cleandoc(examples)


class _Exemplified:
    """Shows examples as they are written: a terminal wraps them, so that they can be copied."""

    examples = ""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)  # type: ignore[misc]
        lines = "".join(f"   {example}\n" for example in self.examples.splitlines())
        formatter.write(f"\n Examples:\n{lines}" if lines else "")


class Command(_Exemplified, TyperCommand):
    """A command with its options in panels."""

    def __init__(self, name: str | None, *, help: str | None = None, **settings: Any) -> None:
        said, self.examples = split_examples(help)
        super().__init__(name, help=said, **settings)
        for parameter in self.params:
            _into_panel(parameter)
        self.params.sort(key=lambda parameter: _PLACE.get(_panel_of(parameter), -1))

    def get_help_option(self, ctx: Any) -> Any:
        return _into_panel(super().get_help_option(ctx))


class Group(_Exemplified, TyperGroup):
    """A group of commands."""

    def __init__(self, *, help: str | None = None, **settings: Any) -> None:
        said, self.examples = split_examples(help)
        super().__init__(help=said, **settings)


class App(typer.Typer):
    """A group whose commands are of the class `Command`."""

    def __init__(self, *, cls: type[TyperGroup] = Group, **settings: Any) -> None:
        super().__init__(cls=cls, no_args_is_help=True, **settings)

    def command(
        self, name: str | None = None, *, cls: type[TyperCommand] | None = Command, **settings: Any
    ) -> Any:
        return super().command(name, cls=cls, **settings)


def _into_panel(parameter: Any) -> Any:
    """Give an option its panel, unless it names one; arguments stay in that of all arguments."""
    if parameter is not None and parameter.param_type_name == "option":
        parameter.rich_help_panel = parameter.rich_help_panel or _PANEL_OF.get(parameter.name)
    return parameter


def _panel_of(parameter: Any) -> str:
    return getattr(parameter, "rich_help_panel", None) or ""
