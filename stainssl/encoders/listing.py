"""The encoders that are known by name, as tables: in the terminal, and in docs/encoders.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from stainssl.encoders import recipes, slide_recipes
from stainssl.encoders.recipes import RECIPES, EncoderRecipe
from stainssl.encoders.slide_recipes import SlideRecipe

GATED = {True: "gated", False: "open", None: "see the card"}
VECTOR = {
    "cls": "class token",
    "cls+mean": "class token, mean of patches",
    "average": "average of the last map",
    "two scales": "class token, mean of the quarters' at twice the size",
    "attention": "attention pooling",
    "attention without bias": "attention pooling",
    "projection": "class token, projected, of length 1",
}


def lines() -> Iterator[str]:
    """A line an encoder: name, length of its vector, µm/px, license, access, where it is here.

    Those of slides are the last ones, with the encoder whose vectors they take.
    """
    yield f"{'name':<18} {'dim':>5}  {'µm/px':<16} {'license':<24} {'access':<13} here"
    every: dict[str, EncoderRecipe | SlideRecipe] = {**RECIPES, **slide_recipes.RECIPES}
    for name, recipe in every.items():
        of = f" (of {' or '.join(recipe.tiles)})" if isinstance(recipe, SlideRecipe) else ""
        yield (
            f"{name:<18} {recipe.dim:>5}  {_mpp(recipe):<16} {recipe.license:<24} "
            f"{GATED[recipe.gated]:<13} {cached(recipe) or '-'}{of}"
        )


def cached(recipe: EncoderRecipe | SlideRecipe) -> str | None:
    """A recipe's weights on this machine, in the hub's cache or a package, if they are there."""
    if isinstance(recipe, EncoderRecipe) and recipe.package:
        return recipe.package if recipe.package_folder else None
    if not recipe.repository:
        return None
    found = (try_to_load_from_cache(recipe.repository, file) for file in recipe.files)
    return next((path for path in found if isinstance(path, str)), None)


def described(source: str) -> dict[str, Any]:
    """What a store of vectors tells of weights that are known by name; nothing of others.

    Args:
        source: as `loading.load` takes it.

    Returns:
        `recipe`, its name; `trained_mpp`, µm/px; and `revision`, that of the hub's repository
        whose file is in this machine's cache, where the file is not one that was given.
    """
    found = recipes.find(source)
    if found is None:
        return {}
    name, recipe, given = found
    told = {"recipe": name, "trained_mpp": list(recipe.mpp)}
    file = Path((not given and not recipe.package and cached(recipe)) or "")
    return told | ({"revision": file.parent.name} if file.parent.parent.name == "snapshots" else {})


def table() -> str:
    """The table of docs/encoders.md."""
    head = (
        "| `weights:` | hub | vector | length | sees | mean, std | µm/px | license | access |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(f"| {' | '.join(_cells(n, r))} |\n" for n, r in RECIPES.items())


def slides_table() -> str:
    """The table of docs/encoders.md of encoders of slides."""
    head = (
        "| `weights:` | where | of the vectors of | length | µm/px, tiles | license | access |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(
        f"| `{name}` | [{r.repository or r.page.rpartition('.com/')[2]}]({r.address}) |"
        f" {' or '.join(f'`{one}`' for one in r.tiles)} | {r.dim} | {_mpp(r)}, {r.tile_px} px |"
        f" {r.license} | {GATED[r.gated]} |\n"
        for name, r in slide_recipes.RECIPES.items()
    )


def _cells(name: str, recipe: EncoderRecipe) -> list[str]:
    sees = f"{recipe.input_px} px, {recipe.interpolation}"
    if recipe.resize_px:
        sees = f"{recipe.resize_px} px, of it the middle {recipe.input_px}, {recipe.interpolation}"
    mean, std = (", ".join(f"{v:.4g}" for v in values) for values in recipe.normalization)
    return [
        f"`{name}`", _link(recipe),
        VECTOR[recipe.pooling], str(recipe.dim), sees, f"{mean}; {std}", _mpp(recipe),
        recipe.license, GATED[recipe.gated],
    ]  # fmt: skip


def _link(recipe: EncoderRecipe) -> str:
    return recipe.address if recipe.package else f"[{recipe.repository}]({recipe.address})"


def _mpp(recipe: EncoderRecipe | SlideRecipe) -> str:
    return ", ".join(f"{mpp:g}" for mpp in recipe.mpp) or "–"
