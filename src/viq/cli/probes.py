"""The commands that train readers of features: `viq eval naming`, `understanding`, `features`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viq.cli.common import (
    SOME_FAILED,
    Json,
    JsonOut,
    Model,
    Overwrite,
    Threads,
    Where,
    conditions,
    guarded,
    load_tokenizer,
    names_of,
    save_json,
    use_threads,
)
from viq.cli.console import (
    show,
    show_failures,
    show_json,
    show_quality,
    show_towers,
    show_understanding,
    table,
)
from viq.cli.groups import QuestionData, grouped
from viq.cli.progress import progress
from viq.core.files import DEFAULT_MODEL

if TYPE_CHECKING:
    from viq.eval.probes.benchmark import ProbeBenchmark, ProbeConfig
    from viq.eval.probes.photos import LabelledPhotos

_SEEDS, _SEEDS_OF_TOWERS = 3, 5

Label = Annotated[str, typer.Option(help="Column that says what is in a photo.")]
Steps = Annotated[int, typer.Option(help="Training steps of each.")]


@guarded
def naming(
    data: Annotated[
        list[str], typer.Argument(help="Photos with a column of labels: Parquet files, folders, ..")
    ],
    model: Model = DEFAULT_MODEL,
    label: Label = "label",
    where: Where = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """How many held-out photos a linear classifier on code features names, beside baselines.

    Examples:
        viq eval naming photos.parquet --model viq-transform --label name
    """
    from viq.data.sources.open import concatenate, open_source
    from viq.eval.probes.naming import evaluate

    use_threads(threads)
    source = concatenate([open_source(place) for place in data])
    tokenizer = load_tokenizer(model, "auto", "float32")
    with progress("naming", 0, hidden=as_json) as advance:
        result = evaluate(tokenizer, source, label=label, where=conditions(where), progress=advance)
    if as_json:
        show_json(result)
        return
    probes = result.pop("probes")
    show(result, False)
    table(
        ["features", "named, %", "± 95%"],
        (
            [kind, f"{found['percent']:.1f}", f"{found['interval']:.1f}"]
            for kind, found in probes.items()
        ),
    )


@guarded
@grouped
def understanding(
    models: Annotated[list[str], typer.Argument(help="Models whose codes are examined.")],
    *,
    questions: QuestionData,
    continuous: Annotated[
        list[str] | None, typer.Option(help="Examine this model's features before quantization.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Language models trained a model.")] = 3,
    steps: Steps = 1000,
    threads: Threads = None,
    out: JsonOut = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a small language model on frozen codes and ask it about held-out pictures.

    Examples:
        viq eval understanding runs/mine/model viq-tiny
        viq eval understanding viq-tiny --continuous viq-tiny --seeds 5
    """
    from viq.core.outputs import require_free
    from viq.eval.probes.benchmark import ProbeConfig, make_benchmark
    from viq.eval.probes.understanding import Features, compare
    from viq.models.tokenizer.tokenizer import VisualTokenizer

    require_free(out, overwrite=overwrite)
    use_threads(threads)
    rows = questions.rows()
    config = ProbeConfig(seeds=seeds, steps=steps)
    benchmark = make_benchmark(rows, config)
    kinds: tuple[tuple[Features, list[str]], ...] = (
        ("codes", models),
        ("continuous", continuous or []),
    )
    candidates: list[tuple[str, VisualTokenizer, Features]] = [
        (f"{name} ({kind})", load_tokenizer(name, "cpu", "float32"), kind)
        for kind, names in kinds
        for name in names
    ]

    with progress("examining", len(candidates) * seeds * steps, hidden=as_json) as advance:
        result = compare(
            benchmark,
            candidates,
            config,
            progress=lambda step: advance(),
            done=partial(save_json, out),
        )
    if as_json:
        show_json(result)
    else:
        show_understanding(result)


@guarded
@grouped
def features(
    *,
    model: Model = "viq-transform",
    towers: Annotated[
        list[str] | None,
        typer.Option(help="Compare these instead, by commas: models of ours, and siglip2:DIR, "
                          "qlip:DIR, unitok:DIR, simvq:DIR."),
    ] = None,
    photos: Annotated[
        list[str] | None,
        typer.Option(help="With --towers: photos with labels, to name from features; again for "
                          "more."),
    ] = None,
    label: Label = "label",
    questions: QuestionData,
    seeds: Annotated[
        int | None,
        typer.Option(help="Language models trained on each kind. Default: 3; of --towers 5."),
    ] = None,
    steps: Steps = 1000,
    pictures: Annotated[int, typer.Option(help="To train on.")] = 3000,
    threads: Threads = None,
    out: JsonOut = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train the same language model on codes, on what they round, and on nothing; compare them.

    Examples:
        viq eval features --model viq-transform
        viq eval features --towers viq-tiny,siglip2:DIR --photos photos.parquet -o towers.json
    """
    from viq.core.outputs import require_free
    from viq.core.types import ViqError
    from viq.eval.probes.benchmark import FEW, WIDE, ProbeConfig, make_benchmark
    from viq.recipes.mllm import tiny

    require_free(out, overwrite=overwrite)
    use_threads(threads)
    if photos and not towers:
        raise ViqError("--photos: give --towers too, whose features are to name what is in them")
    if seeds is None:
        seeds = _SEEDS_OF_TOWERS if towers else _SEEDS
    recipe = tiny()  # whose rate and initial weights let a small language model look
    config = ProbeConfig(
        seeds=seeds, steps=steps, language=recipe.language,
        learning_rate=recipe.stages[-1].loop.optim.learning_rate,
        train_pictures=pictures, test_pictures=max(20, pictures * 3 // 10),
    )  # fmt: skip
    found = _labelled(photos, label, questions.where)
    benchmark = make_benchmark(questions.rows(), config, drawn=FEW if towers else WIDE)
    if towers:
        _compare_towers(names_of(towers) or [], benchmark, config, found, out, as_json)
    else:
        _compare_kinds(model, benchmark, config, out, as_json)


def _labelled(
    photos: list[str] | None, label: str, where: list[str] | None
) -> LabelledPhotos | None:
    from viq.data.sources.open import concatenate, open_source
    from viq.eval.probes.photos import LabelledPhotos

    if not photos:
        return None
    source = concatenate([open_source(place) for place in photos])
    return LabelledPhotos(source, label, conditions(where))


def _compare_kinds(
    model: str, benchmark: ProbeBenchmark, config: ProbeConfig, out: Path | None, as_json: bool
) -> None:
    """Codes and continuous features of one model."""
    from viq.eval.probes.features import compare_features, compared

    kinds = compared(model)
    with progress("training", config.seeds * len(kinds), hidden=as_json) as advance:
        result = compare_features(
            benchmark, model, kinds, config, progress=advance, done=partial(save_json, out)
        )
    if as_json:
        show_json(result)
    else:
        show_quality(result)


def _compare_towers(
    names: list[str],
    benchmark: ProbeBenchmark,
    config: ProbeConfig,
    photos: LabelledPhotos | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Features of several models; the reasons of those that are left out go to stderr."""
    from viq.eval.probes.tower_comparison import compare_towers, loadable, steps_of

    kinds, left_out = loadable(names)
    total = steps_of(kinds, benchmark, config, photos)
    with progress("reading and training", total, hidden=as_json) as advance:
        result: dict[str, Any] = compare_towers(
            benchmark, kinds, config, photos=photos, left_out=left_out,
            progress=advance, done=partial(save_json, out),
        )  # fmt: skip
    if as_json:
        show_json(result)
    else:
        show_towers(result)
    if result["left_out"]:
        show_failures([{"reason": _told(*item)} for item in result["left_out"].items()])
        raise typer.Exit(SOME_FAILED)


def _told(name: str, reason: str) -> str:
    """A reason that says which tower it is of."""
    return reason if reason.startswith(name) else f"{name}: {reason}"
