"""Commits of weights from the hub, as far as they are in the local cache."""

from __future__ import annotations

from stainssl.encoders import hub, recipes, slide_recipes
from stainssl.encoders.weights import FILE, HUB, REVISION, read_source


def repository_of(source: str) -> tuple[str, tuple[str, ...], str | None] | None:
    """Repository, possible file names and requested revision of a source on the hub; else None.

    Args:
        source: as accepted by `loading.load` or `slide_encoders.load`.
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
    """Commit of a source's weights; None if they are not from the hub or not cached."""
    found = repository_of(source)
    return hub.commit(*found) if found else None


def at_commit(source: str) -> str:
    """timm's name of a hub model without recipe, at its cached commit: `OWNER/NAME@COMMIT`.

    With the commit, nothing is requested from the hub and the weights cannot change. If nothing is
    cached, the requested revision takes its place.
    """
    found = repository_of(source)
    assert found is not None
    at = hub.commit(*found) or found[2]
    return f"{found[0]}{FILE}{at}" if at else found[0]
