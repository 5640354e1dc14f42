"""What each method shows the network: two views of every tile of a batch.

A new method is one class with `views` and one line in `METHODS`. Crops and colour come from the
same random numbers under every method, so that methods differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from stainssl.pretrain.views import COLOURS, apply_geometry, draw_geometry, generator, jitter
from stainssl.stain import StainProfile, normalize
from stainssl.stain.targets import TargetPolicy

GEOMETRY, COLOUR, TARGET = range(3)  # streams of random numbers
Views = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """What every method does alike.

    Attributes:
        size_px: side of a view.
        colour: `none`, `weak` or `strong`: jitter of each view.
        seed: of crops, colour and targets.
    """

    size_px: int
    colour: str
    seed: int

    def crops(self, images: Tensor, step: int) -> Views:
        """Two random crops of each of (B, 3, H, W) uint8 tiles: (B, 3, S, S) float32 in [0, 1]."""
        rng = generator(self.seed, step, GEOMETRY)
        pixels = images.float().div_(255)
        first, second = (draw_geometry(len(images), rng) for _ in range(2))
        return (
            apply_geometry(pixels, first, self.size_px),
            apply_geometry(pixels, second, self.size_px),
        )

    def coloured(self, views: Views, step: int) -> Views:
        """Both views with the recipe's colour jitter."""
        rng = generator(self.seed, step, COLOUR)
        colour = COLOURS[self.colour]
        return jitter(views[0], colour, rng), jitter(views[1], colour, rng)


@dataclass(frozen=True)
class Stain:
    """What is known of the stain of the training tiles.

    Attributes:
        profiles: of the N tiles, in the order of their numbers.
        sites: of the N tiles.
        policy: draws the target of a step.
        normalised: `one` view, or both to the `same`, or both to `different` targets.
    """

    profiles: StainProfile
    sites: Sequence[str]
    policy: TargetPolicy
    normalised: str = "one"


class Method(Protocol):
    """One way to pretrain."""

    trains: ClassVar[bool]  # False: the random weights are the result
    needs_stain: ClassVar[bool]

    def __init__(self, recipe: Recipe, stain: Stain | None) -> None: ...

    def views(self, images: Tensor, tile: Tensor, step: int) -> Views:
        """Two views of each tile.

        Args:
            images: (B, 3, H, W) uint8.
            tile: (B,) numbers of the tiles.
            step: number of the iteration: with the seed it decides all that is random.

        Returns:
            Two of (B, 3, S, S) float32 in [0, 1], on the images' device.
        """
        ...


class SimClr:
    """Two crops of each tile, their colours jittered (Chen et al. 2020)."""

    trains: ClassVar[bool] = True
    needs_stain: ClassVar[bool] = False

    def __init__(self, recipe: Recipe, stain: Stain | None) -> None:
        self._recipe = recipe

    def views(self, images: Tensor, tile: Tensor, step: int) -> Views:
        """See `Method.views`."""
        return self._recipe.coloured(self._recipe.crops(images, step), step)


class StainInvariant:
    """The second view of each tile carries the stain of this iteration's target.

    Tiard et al. 2022 (arXiv 2211.07590). The map is per pixel, so it is applied to the crops,
    which are smaller than the tiles. A tile without a valid profile keeps its colours.
    """

    trains: ClassVar[bool] = True
    needs_stain: ClassVar[bool] = True

    def __init__(self, recipe: Recipe, stain: Stain | None) -> None:
        assert stain is not None
        self._recipe, self._stain = recipe, stain
        self._profiles = stain.profiles

    def views(self, images: Tensor, tile: Tensor, step: int) -> Views:
        """See `Method.views`."""
        first, second = self._recipe.crops(images, step)
        self._profiles = self._profiles.to(images.device)
        profiles = self._profiles[tile]
        targets = self._targets(profiles, tile, step)
        if targets[0] is not None:
            first = _restained(first, profiles, targets[0])
        if targets[1] is not None:
            second = _restained(second, profiles, targets[1])
        return self._recipe.coloured((first, second), step)

    def _targets(
        self, profiles: StainProfile, tile: Tensor, step: int
    ) -> tuple[StainProfile | None, StainProfile | None]:
        """Targets of the first and the second view; None leaves a view as it is."""
        rng = generator(self._recipe.seed, step, TARGET)
        sites = [self._stain.sites[i] for i in tile.tolist()]
        target = self._stain.policy.draw(profiles, rng, sites)
        if self._stain.normalised == "one":
            return None, target
        if self._stain.normalised == "same":
            return target, target
        return self._stain.policy.draw(profiles, rng, sites), target


def _restained(images: Tensor, source: StainProfile, target: StainProfile) -> Tensor:
    changed = normalize(images, source=source, target=target)
    return torch.where(source.valid[:, None, None, None], changed, images)


class Untrained:
    """The random weights that every method starts from."""

    trains: ClassVar[bool] = False
    needs_stain: ClassVar[bool] = False

    def __init__(self, recipe: Recipe, stain: Stain | None) -> None:
        pass

    def views(self, images: Tensor, tile: Tensor, step: int) -> Views:
        """Never asked for."""
        raise NotImplementedError("random weights are not trained")


METHODS: dict[str, type[Method]] = {
    "stain-invariant": StainInvariant,
    "simclr": SimClr,
    "random": Untrained,
}
