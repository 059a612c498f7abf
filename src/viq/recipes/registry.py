"""Recipes by name, with their places and length."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from viq.core.types import ViqError
from viq.recipes.ablations import ablation
from viq.recipes.tokenizer import (
    train_debug,
    train_g,
    train_small,
    train_so400m,
    train_tiny,
    train_transform,
)
from viq.train.old_names import with_new_names
from viq.train.tokenizer.recipe import TokenizerRecipe
from viq.weights.checkpoint import from_dict, read_object

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")  # a recipe


RECIPES: Mapping[str, Callable[[], TokenizerRecipe]] = {
    "tiny": train_tiny,
    "transform": train_transform,
    "small": train_small,
    "debug": train_debug,
    "ablation-full": ablation,
    "ablation-reconstruction": lambda: ablation(text=False, distill=False),
    "ablation-no-distill": lambda: ablation(distill=False),
    "ablation-straight-to-fsq": lambda: ablation(proximal=False),
    "ablation-l2": lambda: ablation(limit="l2"),
    "ablation-no-rope": lambda: ablation(rope=False),
    "so400m": train_so400m,
    "g": train_g,
}


def find_recipe(name: str) -> TokenizerRecipe:
    """A recipe of a tokenizer by name, or from a JSON file.

    Raises:
        ViqError: no such recipe, or a file that is none.
    """
    return find(name, RECIPES, TokenizerRecipe)


def find(name: str, recipes: Mapping[str, Callable[[], R]], kind: type[R]) -> R:
    """One of `recipes` by name, or one of this kind from a JSON file. Raises as `find_recipe`."""
    if name in recipes:
        return recipes[name]()
    path = Path(name)
    if path.suffix != ".json":
        raise ViqError(
            f"no recipe {name}: choose one of {', '.join(recipes)}, or give a FILE.json made with "
            "--print"
        )
    try:
        values = read_object(path)
    except FileNotFoundError:
        raise ViqError(f"{path}: no such file") from None
    return from_dict(kind, with_new_names(values, str(path)), str(path))


def scaled(recipe: R, factor: float) -> R:
    """The same recipe, of any kind, with so many times the steps in every stage.

    Raises:
        ViqError: not a factor.
    """
    if not 0 < factor < math.inf:
        raise ViqError(f"--scale {factor:g}: give a number above 0")

    def longer(part: Any) -> Any:  # what has a loop: a stage, or a recipe of one stage
        steps = max(1, round(part.loop.steps * factor))
        return replace(part, loop=replace(part.loop, steps=steps))

    stages = getattr(recipe, "stages", None)
    if stages is None:
        return longer(recipe)
    return replace(recipe, stages=tuple(map(longer, stages)))


def with_places(recipe: R, places: Mapping[str, Any]) -> R:
    """The recipe, of any kind, with folders and names filled in, where given."""
    given = {name: value for name, value in places.items() if value is not None}
    name, language = given.pop("language", None), getattr(recipe, "language", None)
    if name is not None and language is not None:
        given["language"] = replace(language, name=name)
    return replace(recipe, **given)
