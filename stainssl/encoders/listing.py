"""The encoders that are known by name, as a table: in the terminal, and in docs/encoders.md."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import try_to_load_from_cache

from stainssl.encoders.recipes import RECIPES, EncoderRecipe

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
    """A line an encoder: name, length of its vector, µm/px, license, access, where it is here."""
    yield f"{'name':<18} {'dim':>5}  {'µm/px':<16} {'license':<24} {'access':<13} here"
    for name, recipe in RECIPES.items():
        yield (
            f"{name:<18} {recipe.dim:>5}  {_mpp(recipe):<16} {recipe.license:<24} "
            f"{GATED[recipe.gated]:<13} {cached(recipe) or '-'}"
        )


def cached(recipe: EncoderRecipe) -> str | None:
    """A recipe's weights on this machine, in the hub's cache or a package, if they are there."""
    if recipe.package:
        return recipe.package if recipe.package_folder else None
    found = (try_to_load_from_cache(recipe.repository, file) for file in recipe.files)
    return next((path for path in found if isinstance(path, str)), None)


def table() -> str:
    """The table of docs/encoders.md."""
    head = (
        "| `weights:` | hub | vector | length | sees | mean, std | µm/px | license | access |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(f"| {' | '.join(_cells(n, r))} |\n" for n, r in RECIPES.items())


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


def _mpp(recipe: EncoderRecipe) -> str:
    return ", ".join(f"{mpp:g}" for mpp in recipe.mpp) or "–"
