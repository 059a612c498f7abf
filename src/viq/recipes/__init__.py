"""Complete configurations of training, by name."""

from viq.recipes.registry import RECIPES, find, find_recipe, scaled, with_places

__all__ = ["RECIPES", "find", "find_recipe", "scaled", "with_places"]
