"""Options that several commands take together: a class each, whose fields are the options.

A command takes one as a parameter of that class, and `grouped` gives its command line the options.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, get_type_hints

import typer

from viq.cli.common import (
    AllowAbsolute,
    AllowPrivateNetwork,
    AllowProtocol,
    Anew,
    Json,
    Root,
    Threads,
    Where,
    conditions,
    names_of,
)

if TYPE_CHECKING:
    from viq.data.corpora.corpora import RowCorpus
    from viq.data.sources.access import Access
    from viq.mllm.generation import Sampling

Command = TypeVar("Command", bound=Callable[..., Any])


def grouped(command: Command) -> Command:
    """A command with the fields of its parameters that are groups in place of these, as options.

    All fields need defaults; order, names and defaults of options are those of the fields.
    """
    parameters, groups = list[inspect.Parameter](), dict[str, Any]()
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind))
            continue
        groups[parameter.name] = kind
        inner = get_type_hints(kind, include_extras=True)
        parameters += [
            parameter.replace(name=field.name, default=field.default, annotation=inner[field.name])
            for field in fields(kind)
        ]

    @functools.wraps(command)
    def run(**options: Any) -> Any:
        for name, kind in groups.items():
            options[name] = kind(**{field.name: options.pop(field.name) for field in fields(kind)})
        return command(**options)

    shown: Any = run
    shown.__signature__ = inspect.Signature(parameters)
    shown.__annotations__ = {each.name: each.annotation for each in parameters}
    return cast(Command, run)


@dataclass
class DataAccess:
    """What paths and URLs inside the data of a command may open."""

    allow_protocol: AllowProtocol = None
    allow_absolute: AllowAbsolute = False
    allow_private_network: AllowPrivateNetwork = False

    def access(self, **limits: int) -> Access:
        """The same as the data layer takes it; `limits` as of `FetchLimits`."""
        from viq.data.sources.access import Access
        from viq.data.sources.fetch import FetchLimits

        return Access(
            protocols=tuple(names_of(self.allow_protocol) or ()),
            absolute=self.allow_absolute,
            private_network=self.allow_private_network,
            limits=FetchLimits(**limits),
        )


@dataclass
class QuestionData(DataAccess):
    """Pictures with questions that a probe is trained on and asked about."""

    data: Annotated[
        list[str] | None,
        typer.Option(help="Pictures with questions or labels, beside drawn ones; again for more."),
    ] = None
    where: Where = None
    root: Root = None

    def rows(self) -> list[tuple[RowCorpus, RowCorpus]]:
        """(train, held-out) corpora."""
        from viq.data.corpora.corpora import open_split

        where = conditions(self.where)
        return open_split(self.data or [], where=where, root=self.root, access=self.access())


@dataclass
class RunOptions:
    """How a recipe is trained, whatever it trains."""

    scale: Annotated[float, typer.Option(help="Times the steps of every stage.")] = 1.0
    threads: Threads = None
    track: Annotated[
        list[str] | None,
        typer.Option(help="Also log to tensorboard, wandb, mlflow or trackio; again for more."),
    ] = None
    tensorboard: Annotated[bool, typer.Option(hidden=True)] = False  # of release 0.1
    overwrite: Anew = False
    show_recipe: Annotated[
        bool, typer.Option("--print", help="Print the recipe as JSON and stop.")
    ] = False
    as_json: Json = False

    @property
    def report_to(self) -> list[str]:
        """Names of trackers."""
        from viq.train.old_names import trackers

        return trackers(self.track or [], self.tensorboard)


@dataclass
class SamplingOptions:
    """How pictures are drawn from sentences."""

    temperature: Annotated[
        float, typer.Option(help="Of sampling; 0 takes the likeliest levels.")
    ] = 1.0
    top_p: Annotated[
        float, typer.Option(help="Only the likeliest levels of this share together.")
    ] = 0.95
    guidance: Annotated[
        float, typer.Option(help="How strongly the caption is followed; 1 plainly.")
    ] = 2.0
    candidates: Annotated[
        int,
        typer.Option(
            help="Pictures drawn of each sentence; the one that the model best describes is kept."
        ),
    ] = 1
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0

    def sampling(self) -> Sampling:
        from viq.mllm.generation import Sampling

        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            guidance=self.guidance,
            candidates=self.candidates,
        )
