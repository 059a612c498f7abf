"""The command that tests the paper's choices: `viq ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viq.cli.common import Json, Threads, conditions, guarded, names_of, use_threads
from viq.cli.console import line, show_json, table


@guarded
def ablate(
    data: Annotated[
        list[str], typer.Option(help="Photos with names; again for more. A quarter is held out.")
    ],
    kodak: Annotated[
        list[str], typer.Option(help="Pictures to measure reconstruction on, as Kodak's.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the study; resumed if begun.")
    ] = Path("ablations"),
    only: Annotated[
        list[str] | None,
        typer.Option(help="By commas: proximal, distill, reconstruction, rope, simvq, limit, "
                          "continuous. Default: all."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each arm.")] = 5,
    jobs: Annotated[int, typer.Option(help="Processes; each has its share of the seeds.")] = 1,
    recipe: Annotated[str, typer.Option(help="short, or debug, which takes seconds.")] = "short",
    label: Annotated[str, typer.Option(help="The column that names a photo.")] = "label",
    where: Annotated[
        list[str] | None, typer.Option(help="Only photos with COLUMN=VALUE, as for a licence.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Test the paper's choices: train tokenizers that differ in one, say what the runs can tell.

    Run again to go on: what has ended is not trained again. Results are OUT/ablations.md, .svg and
    .json.

    Examples:
        viq ablate --data photos.parquet --kodak kodak/ --seeds 5 --out ablations
        viq ablate --data photos.parquet --kodak kodak/ --only rope,simvq
    """
    from viq.core.errors import ViqError
    from viq.eval.ablations.arms import ABLATIONS, SIZES
    from viq.eval.ablations.run import Study
    from viq.eval.ablations.run import ablate as run

    if recipe not in SIZES:
        raise ViqError(f"--recipe {recipe}: choose from {', '.join(SIZES)}")
    use_threads(threads or 1)
    study = Study(
        config=SIZES[recipe](), out=out, photos=tuple(data), crops=tuple(kodak), label=label,
        where=tuple((conditions(where) or {}).items()),
        ablations=tuple(names_of(only) or ABLATIONS), seeds=seeds, threads=threads or 1,
    )  # fmt: skip
    result = run(study, jobs=jobs, say=(lambda text: None) if as_json else line)
    if as_json:
        show_json(result)
        return
    table(
        ["claim", "difference", "95%", "seeds", "verdict"],
        [
            [c["claim"], f"{c['mean']:+.2f}", f"± {c['half_width']:.2f}", str(len(c["seeds"])),
             c["verdict"]]
            for c in result["claims"]
        ],
    )  # fmt: skip
    line(f"{out / 'ablations.md'}")
