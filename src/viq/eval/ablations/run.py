"""All arms, all seeds, in a folder that another run of the same command goes on in.

OUT/settings.json           sizes, budgets and data; other ones are refused
OUT/features.safetensors    what the pretrained network sees in the pictures
OUT/seed-N/ARM.json         measures of a finished arm
OUT/seed-N/features-KIND.json   those of the reader of the base arm's codes and their alternatives
OUT/seed-N/looked-ARM.json  those of the reader of places and numbers
OUT/seed-N/STAGE-*.safetensors  weights after a stage
OUT/ablations.json, .md, .svg   the results so far
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from viq.core.errors import ViqError
from viq.core.files import write_atomically
from viq.core.locks import locked
from viq.data.sources.open import concatenate, open_source
from viq.eval.ablations.arms import (
    ABLATIONS,
    CLAIMS,
    CONTINUOUS,
    FEATURE_CLAIM,
    FEATURES,
    ROPE,
    AblationConfig,
    arms_of,
)
from viq.eval.ablations.material import Material, gather
from viq.eval.ablations.measures import exam, features_of, look, measure, whitener_of
from viq.eval.ablations.model import SeenBatch
from viq.eval.ablations.training import train_arm
from viq.eval.ablations.verdict import judge, judge_features
from viq.metrics.intervals import of_seeds
from viq.models.layers.ambient import tiny_as_zero
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.report.ablation_page import chart_svg, page
from viq.weights.checkpoint import read_object

_SETTINGS, _RESULT, _LOOKED = "settings.json", "ablations", "looked-"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is run, where, on what.

    Attributes:
        photos: places of photos with names.
        crops: places of pictures for the quality of reconstruction.
        ablations: names in `ABLATIONS`.
    """

    config: AblationConfig
    out: Path
    photos: tuple[str, ...]
    crops: tuple[str, ...]
    label: str = "label"
    where: tuple[tuple[str, str], ...] = ()
    ablations: tuple[str, ...] = ABLATIONS
    seeds: int = 5
    threads: int = 1


def ablate(
    study: Study, *, jobs: int = 1, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Train and measure what `study.out` lacks; gives, and writes, the results of all of it.

    Ablations are run in their order, each with all seeds.

    Args:
        jobs: processes, each of which has its share of the seeds.
        say: called with lines of progress.

    Raises:
        ViqError: the folder belongs to other settings or another process, or there is no such
            ablation, or too little data.
    """
    arms_of(study.ablations)
    if min(study.seeds, jobs) < 1:
        raise ViqError("--seeds and --jobs: give at least 1")
    made = not study.out.is_dir()
    if not made and any(study.out.iterdir()) and not (study.out / _SETTINGS).is_file():
        raise ViqError(f"--out {study.out}: holds other things; give an empty or a new folder")
    study.out.mkdir(parents=True, exist_ok=True)
    with locked(study.out):
        _check_settings(study)
        material = _material(study, say)  # what the network sees is then there for all processes
        if jobs == 1:
            _work(study, range(study.seeds), material, say)
        else:
            del material
            jobs = min(jobs, study.seeds)
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, context) as pool:
                shares = [range(first, study.seeds, jobs) for first in range(jobs)]
                for done in as_completed([pool.submit(_alone, study, share) for share in shares]):
                    done.result()
        return collect(study)


def _check_settings(study: Study) -> None:
    path = study.out / _SETTINGS
    now = json.loads(json.dumps({
        "config": asdict(study.config), "photos": list(study.photos), "crops": list(study.crops),
        "label": study.label, "where": dict(study.where),
    }))  # fmt: skip
    if path.is_file():
        before = read_object(path)
        if differing := sorted(k for k in now if before.get(k) != now[k]):
            raise ViqError(
                f"{path}: this study was begun with other settings ({', '.join(differing)}): give "
                "the same, or another --out"
            )
    write_atomically(path, (json.dumps(now, indent=1) + "\n").encode())


def _material(study: Study, say: Callable[[str], None]) -> Material:
    begun = time.perf_counter()
    crops = concatenate([open_source(place) for place in study.crops])
    material = gather(
        concatenate([open_source(place) for place in study.photos]), study.label,
        dict(study.where), _images(crops), study.config, study.out,
        looking=ROPE in study.ablations,
    )  # fmt: skip
    facts = material.labels.facts(0)
    say(
        f"{len(material.pictures.pixels)} pictures, {facts['train']} and {facts['held_out']} of "
        f"them photos of {facts['names']} names; {time.perf_counter() - begun:.0f} s"
    )
    return material


def _images(source: Any) -> list[Image.Image]:
    return [source[index].open() for index in range(len(source))]


def _alone(study: Study, seeds: Sequence[int]) -> None:
    """Some seeds in a process of its own."""
    torch.set_num_threads(study.threads)
    _work(study, seeds, _material(study, lambda line: None), lambda line: None)


def _work(
    study: Study, seeds: Sequence[int], material: Material, say: Callable[[str], None]
) -> None:
    for ablation in study.ablations:
        for seed in seeds:
            _seed(study, ablation, seed, material, say)
            collect(study)


@tiny_as_zero()
def _seed(
    study: Study, ablation: str, seed: int, material: Material, say: Callable[[str], None]
) -> None:
    """Every arm of an ablation that has no measures of this seed yet."""
    folder = study.out / f"seed-{seed}"
    folder.mkdir(exist_ok=True)
    for arm in arms_of((ablation,)):
        path = folder / f"{arm.name}.json"
        if path.is_file():
            continue
        begun = time.perf_counter()
        log: list[dict[str, Any]] = []
        tokenizer, reader = train_arm(arm, seed, material, study.config, folder, log.append)
        trained = time.perf_counter()
        measures = measure(tokenizer, reader, material, study.config)
        record = {
            "measures": measures, "seconds_trained": round(trained - begun, 1),
            "seconds_measured": round(time.perf_counter() - trained, 1), "log": log,
        }  # fmt: skip
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
        say(
            f"seed {seed}, {arm.name}: understanding {measures['understanding']:.1f}, "
            f"{measures['kodak_db']:.2f} dB; {record['seconds_trained']:.0f} + "
            f"{record['seconds_measured']:.0f} s"
        )
    if ablation == ROPE:
        _looked(study, seed, material, folder, say)
    if ablation == CONTINUOUS:
        _features(study, seed, material, folder, say)


def _looked(
    study: Study, seed: int, material: Material, folder: Path, say: Callable[[str], None]
) -> None:
    """A reader of places and numbers, trained anew, on the codes of the arms with and without
    positions."""
    assert material.looking is not None
    for arm in arms_of((ROPE,)):
        path = folder / f"{_LOOKED}{arm.name}.json"
        if path.is_file():
            continue
        tokenizer, _ = train_arm(arm, seed, material, study.config, folder, lambda record: None)
        measures = look(tokenizer, material.looking, study.config, seed)
        write_atomically(path, (json.dumps({"measures": measures}, indent=1) + "\n").encode())
        say(f"seed {seed}, {arm.name}: places and numbers {measures['looked']:.1f}")


def _features(
    study: Study, seed: int, material: Material, folder: Path, say: Callable[[str], None]
) -> None:
    """A reader, trained anew, on the base arm's codes, on what they are made of, and on nothing."""
    paths = {kind: folder / f"features-{kind}.json" for kind in FEATURES}
    paths = {kind: path for kind, path in paths.items() if not path.is_file()}
    if not paths:
        return
    base = arms_of((CONTINUOUS,))[0]
    tokenizer, _ = train_arm(base, seed, material, study.config, folder, lambda record: None)
    for kind, path in paths.items():
        features = _of_kind(kind, tokenizer, material)
        if kind != "blind":
            white = whitener_of(features, material.benchmark)
            features = [white(feature) for feature in features]
        measures = exam(features, material, study.config, seed)
        write_atomically(path, (json.dumps({"measures": measures}, indent=1) + "\n").encode())
        say(f"seed {seed}, features {kind}: reader {measures['reader']:.1f}")


def _of_kind(kind: str, tokenizer: VisualTokenizer, material: Material) -> Sequence[Tensor]:
    """Features (patches, channels) of each picture: of codes, before them, the teacher's, none."""
    if kind == "teacher":
        return [vector.float() for vector in material.vectors]
    if kind == "blind":
        return [vector.new_zeros(len(vector), 1).float() for vector in material.vectors]

    def given(batch: SeenBatch) -> Tensor:
        if kind == "codes":
            return tokenizer(batch).features_TC
        return tokenizer.continuous_features(batch)

    return features_of(material.pictures, given)


# Results


def collect(study: Study) -> dict[str, Any]:
    """The results of all finished arms; written as JSON, a table and a plot."""
    runs = _read(study, [arm.name for arm in arms_of(study.ablations)], "")
    for name, looked in _read(study, list(runs), _LOOKED).items():
        for seed, measures in looked.items():
            if seed in runs[name]:
                runs[name][seed] |= measures
    features = _read(study, FEATURES, "features-") if CONTINUOUS in study.ablations else {}
    claims = [judge(c, runs) for c in CLAIMS if c.ablation in study.ablations]
    claims.append(judge_features(FEATURE_CLAIM, features))
    result = {
        "settings": asdict(study.config),
        "seeds": study.seeds,
        "torch": torch.__version__,
        "claims": [claim for claim in claims if claim is not None],
        "arms": _means(runs),
        "features": _means(features),
        "not_run": [name for name in ABLATIONS if name not in study.ablations],
    }
    out = study.out / _RESULT
    for suffix, text in (
        (".json", json.dumps(result, indent=1) + "\n"),
        (".svg", chart_svg(result["claims"])),
        (".md", page(result, f"{_RESULT}.svg")),
    ):
        write_atomically(out.with_suffix(suffix), text.encode())
    return result


def _read(
    study: Study, names: Sequence[str], prefix: str
) -> dict[str, dict[int, dict[str, float]]]:
    """Measures by name and seed, of those that have ended."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for name in names:
        for seed in range(study.seeds):
            path = study.out / f"seed-{seed}" / f"{prefix}{name}.json"
            if path.is_file():
                found.setdefault(name, {})[seed] = read_object(path)["measures"]
    return found


def _means(runs: dict[str, dict[int, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """`of_seeds` of every measure, by arm, over the seeds that have it."""
    found: dict[str, dict[str, Any]] = {}
    for name, by_seed in runs.items():
        values: dict[str, list[float]] = {}
        for seed in sorted(by_seed):
            for outcome, value in by_seed[seed].items():
                values.setdefault(outcome, []).append(value)
        found[name] = {outcome: of_seeds(list_) for outcome, list_ in values.items()}
    return found
