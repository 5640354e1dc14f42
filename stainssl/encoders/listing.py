"""Tables of the encoders available by name, for the terminal and for docs/encoders.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stainssl.encoders import recipes, revisions, slide_recipes
from stainssl.encoders.recipes import RECIPES, EncoderRecipe
from stainssl.encoders.slide_recipes import SlideRecipe

VECTOR = {
    "cls": "class token",
    "mean": "mean of patches",
    "cls+mean": "class token, mean of patches",
    "average": "average of the last feature map",
    "two scales": "class token, mean of those of the quarters at twice the size",
    "attention": "attention pooling",
    "attention without bias": "attention pooling",
    "projection": "class token, projected, of length 1",
}


def lines() -> Iterator[str]:
    """Lines of the terminal's table: name, dimension, µm/px, license, access, place of the weights.

    Slide encoders come last, with the tile encoders that they need. A note on how to get weights
    that are not on this machine follows.
    """
    yield f"{'name':<18} {'dim':>5}  {'µm/px':<16} {'license':<24} {'access':<10} on this machine"
    every: dict[str, EncoderRecipe | SlideRecipe] = {**RECIPES, **slide_recipes.RECIPES}
    for name, recipe in every.items():
        of = f" (of {' or '.join(recipe.tiles)})" if isinstance(recipe, SlideRecipe) else ""
        yield (
            f"{name:<18} {recipe.dim:>5}  {_mpp(recipe):<16} {recipe.license:<24} "
            f"{access(recipe):<10} {place(recipe) or '-'}{of}"
        )
    yield (
        "\nopen: downloaded on first use. gated: accept the license on its hub page, then"
        " `hf auth login`.\non request: from its authors. Weights downloaded elsewhere: weights:"
        " NAME@FOLDER (docs/encoders.md)."
    )


def place(recipe: EncoderRecipe | SlideRecipe) -> str | None:
    """Local place of a recipe's weights: path in the hub's cache, or package; None if neither."""
    if isinstance(recipe, EncoderRecipe) and recipe.package:
        return recipe.package if recipe.package_folder else None
    return str(recipe.cached) if recipe.cached else None


def access(recipe: EncoderRecipe | SlideRecipe) -> str:
    """How a recipe's weights are obtained: `open`, `gated` or `on request`."""
    if not recipe.gated:
        return "open"
    return "gated" if recipe.repository else "on request"


def described(source: str) -> dict[str, Any]:
    """Metadata of weights that an embedding store records.

    Args:
        source: as accepted by `loading.load` or `slide_encoders.load`.

    Returns:
        `revision`, the commit of the hub's repository, if the weights are in the local cache; and
        for weights with a recipe `recipe`, its name, `trained_mpp`, µm/px, and `license`.
    """
    found = recipes.find(source) or slide_recipes.find(source)
    commit = revisions.commit(source)
    told: dict[str, Any] = {"revision": commit} if commit else {}
    if found is not None:
        name, recipe, _ = found
        told |= {
            "recipe": name,
            "trained_mpp": list(recipe.mpp),
            "license": recipe.license,
        }
    return told


CARD, AUTHORS, ZOO = "card", "authors' code", "LazySlide"
COMPARED_WITH = {  # what their embeddings were compared with in tests/encoders
    CARD: (
        "uni", "uni2-h", "virchow", "virchow2", "prov-gigapath", "h-optimus-0", "h0-mini", "phikon",
        "phikon-v2", "midnight", "hibou-b", "hibou-l", "gpfm", "kaiko-vits16", "kaiko-vits8",
        "kaiko-vitb16", "kaiko-vitb8", "kaiko-vitl14", "lunit-vits16",
    ),
    AUTHORS: (
        "conch", "conch-madeleine", "conch-v1.5", "keep", "musk", "ctranspath", "retccl",
    ),
    "its true weights": ("efficientnet-lite0",),
    ZOO: (
        "uni", "uni2-h", "virchow", "virchow2", "prov-gigapath", "h-optimus-0", "h-optimus-1",
        "h0-mini", "gpfm", "midnight", "lunit-vits16", "lunit-vits8",
    ),
}  # fmt: skip


def compared_with(name: str) -> str:
    """What a recipe's embeddings were compared with; "layout": only others of its layout were."""
    return ", ".join(by for by, names in COMPARED_WITH.items() if name in names) or "layout"


def table() -> str:
    """The Markdown table of tile encoders in docs/encoders.md."""
    head = (
        "| `weights:` | hub | embedding | dim | input | mean, std | µm/px | license | access |"
        " compared with |\n|---|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(f"| {' | '.join(_cells(n, r))} |\n" for n, r in RECIPES.items())


def slides_table() -> str:
    """The Markdown table of slide encoders in docs/encoders.md."""
    head = (
        "| `weights:` | source | tile encoder | dim | µm/px, tiles | license | access |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(
        f"| `{name}` | [{r.repository or r.page.rpartition('.com/')[2]}]({r.address}) |"
        f" {' or '.join(f'`{one}`' for one in r.tiles)} | {r.dim} | {_mpp(r)}, {r.tile_px} px |"
        f" {r.license} | {access(r)} |\n"
        for name, r in slide_recipes.RECIPES.items()
    )


def _cells(name: str, recipe: EncoderRecipe) -> list[str]:
    sees = f"{recipe.input_px} px, {recipe.interpolation}"
    if recipe.resize_px:
        sees = f"{recipe.resize_px} px, center crop {recipe.input_px}, {recipe.interpolation}"
    mean, std = (", ".join(f"{v:.4g}" for v in values) for values in recipe.normalization)
    return [
        f"`{name}`", _link(recipe),
        VECTOR[recipe.pooling], str(recipe.dim), sees, f"{mean}; {std}", _mpp(recipe),
        recipe.license, access(recipe), compared_with(name),
    ]  # fmt: skip


def _link(recipe: EncoderRecipe) -> str:
    return recipe.address if recipe.package else f"[{recipe.repository}]({recipe.address})"


def _mpp(recipe: EncoderRecipe | SlideRecipe) -> str:
    return ", ".join(f"{mpp:g}" for mpp in recipe.mpp) or "–"
