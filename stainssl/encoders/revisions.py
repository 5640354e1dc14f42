"""Which commit of the hub a source's weights are of, as far as this machine's cache tells."""

from __future__ import annotations

from stainssl.encoders import hub, recipes, slide_recipes
from stainssl.encoders.weights import FILE, HUB, REVISION, read_source


def repository_of(source: str) -> tuple[str, tuple[str, ...], str | None] | None:
    """Repository, names of its weights and the revision asked for; None: they are not the hub's.

    Args:
        source: as `loading.load` and `of_slides.load` take it.
    """
    if found := recipes.find(source) or slide_recipes.find(source):
        _, recipe, given = found
        is_here = given is not None or getattr(recipe, "package", None) or not recipe.repository
        return None if is_here else (recipe.repository, recipe.files, recipe.revision)
    weights, keys = read_source(source)
    if not weights.startswith(HUB):
        return None
    repository, _, revision = weights.removeprefix(HUB).partition(FILE)
    return repository, hub.FILES, keys.get(REVISION) or revision or None


def commit(source: str) -> str | None:
    """The commit of a source's weights; None where they are not the hub's or not in the cache."""
    found = repository_of(source)
    return hub.commit(*found) if found else None


def at_commit(source: str) -> str:
    """A model of the hub that has no recipe, as timm takes it: `OWNER/NAME@COMMIT`.

    At the commit that the cache has, so that nothing is asked of the hub and nothing changes.
    """
    found = repository_of(source)
    assert found is not None
    at = hub.commit(*found) or found[2]
    return f"{found[0]}{FILE}{at}" if at else found[0]
