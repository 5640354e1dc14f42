"""What each method shows the network: two views of every tile of a batch.

A new method is one class with `views` and one line in `PRETRAINING_METHODS`. Crops and color come
from the same random numbers under every method, so that methods differ in nothing else. All is
drawn for the whole step and each process takes its rows, so that a step is the same on any number
of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from stainssl.pretrain.data import Batch
from stainssl.pretrain.views import (
    COLORS,
    ViewGeometry,
    apply_color,
    apply_geometry,
    draw_color,
    draw_geometry,
    generator,
)
from stainssl.stain import StainProfile, normalize
from stainssl.stain.augment import BatchShare, LabSpread, hed_jitter, rand_stain_na, stain_mix
from stainssl.stain.targets import TargetPolicy

GEOMETRY, COLOR, TARGET, JITTER = range(4)  # streams of random numbers
DEFAULT_GEOMETRY = ViewGeometry()
Views = tuple[Tensor, Tensor]
Ints = npt.NDArray[np.int64]


class StainJitter(Protocol):
    """Changes the stain of views by chance, beside color jitter."""

    def __call__(self, images: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """(B, 3, S, S) float in [0, 1] views of a batch, each with a stain of its own draw.

        Drawn for all processes' tiles, of which each takes its rows.
        """
        ...


def _share(batch: Batch) -> BatchShare:
    return BatchShare(len(batch.everyone), batch.rows)


@dataclass(frozen=True)
class HedJitter:
    """Hematoxylin, eosin and DAB scaled and shifted (Tellez et al. 2018)."""

    strength: float

    def __call__(self, images: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """See `StainJitter`."""
        return hed_jitter(images, rng, self.strength, share=_share(batch))


class RandStainNA:
    """Normalized to a virtual template each (Shen et al. 2022).

    Args:
        profiles: `reinhard` profiles of the N training tiles, whose spread templates come from.
        strength: of the spread about its centre.
    """

    def __init__(self, profiles: StainProfile, strength: float) -> None:
        self._profiles, self._strength = profiles, strength
        self._spread = LabSpread.of(profiles)

    def __call__(self, images: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """See `StainJitter`."""
        own = self._profiles[torch.from_numpy(batch.tile)].to(images.device)
        return rand_stain_na(images, rng, own, self._spread, self._strength, _share(batch))


@dataclass(frozen=True)
class StainMix:
    """Stain vectors between a tile's own and another's (Chang et al. 2021).

    Attributes:
        profiles: two-stain profiles of the N training tiles.
        strength: half width of the concentrations' factor.
    """

    profiles: StainProfile
    strength: float

    def __call__(self, images: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """See `StainJitter`."""
        own, all_of_step = (
            self.profiles[torch.from_numpy(t)] for t in (batch.tile, batch.everyone)
        )
        return stain_mix(images, rng, own, all_of_step, self.strength, _share(batch))


@dataclass(frozen=True)
class TileNormalizer:
    """Stain normalization as preprocessing: every tile to one target.

    Attributes:
        profiles: of the N training tiles; a tile without a valid one keeps its colors, as it does
            where the encoder is used.
        target: one profile.
    """

    profiles: StainProfile
    target: StainProfile

    def __call__(self, images: Tensor, tile: Ints) -> Tensor:
        """(B, 3, S, S) float in [0, 1] views of tiles (B,), normalized."""
        return _restained(images, self.profiles[torch.from_numpy(tile)], self.target)


@dataclass(frozen=True)
class ViewSettings:
    """What every method does alike.

    Attributes:
        size_px: side of a view.
        color: `none`, `weak` or `strong`: jitter of each view.
        seed: of crops, color and targets.
        geometry: how views are cut out.
        stain_jitter: changes the stain of each view, before color; None: nothing.
        standard: normalizes every view first; None: nothing.
    """

    size_px: int
    color: str
    seed: int
    geometry: ViewGeometry = DEFAULT_GEOMETRY
    stain_jitter: StainJitter | None = None
    standard: TileNormalizer | None = None

    def crops(self, batch: Batch, step: int, count: int = 2) -> tuple[Tensor, ...]:
        """Random crops of each of B tiles, `count` of (B, 3, S, S) float32 in [0, 1]."""
        rng = generator(self.seed, step, GEOMETRY)
        pixels = batch.images.float().div_(255)

        def crop() -> Tensor:
            drawn = draw_geometry(len(batch.everyone), rng, self.geometry)[batch.rows]
            view = apply_geometry(pixels, drawn, self.size_px)
            return self.standard(view, batch.tile) if self.standard else view

        return tuple(crop() for _ in range(count))

    def colored(self, views: tuple[Tensor, ...], batch: Batch, step: int) -> tuple[Tensor, ...]:
        """The views with the settings' stain and color jitter."""
        if self.stain_jitter:
            rng = generator(self.seed, step, JITTER)
            views = tuple(self.stain_jitter(view, batch, rng) for view in views)
        if (color := COLORS[self.color]) is None:
            return views
        rng, count = generator(self.seed, step, COLOR), len(batch.everyone)
        return tuple(apply_color(v, draw_color(color, count, rng).rows(batch.rows)) for v in views)


@dataclass(frozen=True)
class NormalizerState:
    """The training tiles as one normalizer sees them.

    Attributes:
        profiles: of the N tiles, in the order of their numbers.
        policy: draws the target of a step.
    """

    profiles: StainProfile
    policy: TargetPolicy


@dataclass(frozen=True)
class StainTargets:
    """What the stain-invariant method knows and does.

    Attributes:
        stainings: one, or several of which each step draws one.
        sites: of the N tiles.
        normalized: `one` view, or both to the `same`, or both to `different` targets.
        probability: that a view which is to be normalized is.
    """

    stainings: Sequence[NormalizerState]
    sites: Callable[[Ints], Sequence[str]]
    normalized: str = "one"
    probability: float = 1.0


class Method(Protocol):
    """One way to make views."""

    trains: ClassVar[bool]  # False: the random weights are the result
    needs_stain: ClassVar[bool]

    def __init__(self, settings: ViewSettings, stain: StainTargets | None) -> None: ...

    def views(self, batch: Batch, step: int) -> Views:
        """Two views of each tile.

        Args:
            batch: the tiles.
            step: number of the iteration: with the seed it decides all that is random.

        Returns:
            Two of (B, 3, S, S) float32 in [0, 1], on the images' device.
        """
        ...


class SimClr:
    """Two crops of each tile, their colors jittered (Chen et al. 2020)."""

    trains: ClassVar[bool] = True
    needs_stain: ClassVar[bool] = False

    def __init__(self, settings: ViewSettings, stain: StainTargets | None) -> None:
        self._settings = settings

    def views(self, batch: Batch, step: int) -> Views:
        """See `Method.views`."""
        first, second = self._settings.colored(self._settings.crops(batch, step), batch, step)
        return first, second


class StainInvariant:
    """The second view of each tile carries the stain of this iteration's target.

    Tiard et al. 2022 (arXiv 2211.07590). The map is per pixel, so it is applied to the crops,
    which are smaller than the tiles. A tile without a valid profile keeps its colors.
    """

    trains: ClassVar[bool] = True
    needs_stain: ClassVar[bool] = True

    def __init__(self, settings: ViewSettings, stain: StainTargets | None) -> None:
        assert stain is not None
        self._settings, self._stain = settings, stain

    def views(self, batch: Batch, step: int) -> Views:
        """See `Method.views`."""
        rng = generator(self._settings.seed, step, TARGET)
        staining = self._staining(rng)
        # The targets depend on the whole step's tiles, so that all processes draw the same.
        targets = self._targets(staining, batch.everyone, rng)
        source = staining.profiles[torch.from_numpy(batch.tile)]
        views = self._settings.crops(batch, step)
        restained = tuple(
            view if target is None else self._restained(view, source, target, batch, rng)
            for view, target in zip(views, targets, strict=True)
        )
        first, second = self._settings.colored(restained, batch, step)
        return first, second

    def _staining(self, rng: Generator) -> NormalizerState:
        several = self._stain.stainings
        drawn = int(torch.randint(len(several), (), generator=rng)) if len(several) > 1 else 0
        return several[drawn]

    def _targets(
        self, staining: NormalizerState, everyone: Ints, rng: Generator
    ) -> tuple[StainProfile | None, StainProfile | None]:
        """Targets of the first and the second view; None leaves a view as it is."""
        profiles = staining.profiles[torch.from_numpy(everyone)]
        sites = self._stain.sites(everyone)
        target = staining.policy.draw(profiles, rng, sites)
        if self._stain.normalized == "one":
            return None, target
        if self._stain.normalized == "same":
            return target, target
        return staining.policy.draw(profiles, rng, sites), target

    def _restained(
        self, view: Tensor, source: StainProfile, target: StainProfile, batch: Batch, rng: Generator
    ) -> Tensor:
        if (share := self._stain.probability) < 1:
            chosen = torch.rand(len(batch.everyone), generator=rng)[batch.rows] < share
            source = replace(source, valid=source.valid & chosen)
        return _restained(view, source, target[batch.rows] if target.is_batch else target)


def _restained(images: Tensor, source: StainProfile, target: StainProfile) -> Tensor:
    source, target = source.to(images.device), target.to(images.device)
    changed = normalize(images, source=source, target=target)
    return torch.where(source.valid[:, None, None, None], changed, images)


class Untrained:
    """The random weights that every method starts from."""

    trains: ClassVar[bool] = False
    needs_stain: ClassVar[bool] = False

    def __init__(self, settings: ViewSettings, stain: StainTargets | None) -> None:
        pass

    def views(self, batch: Batch, step: int) -> Views:
        """Never called."""
        raise NotImplementedError("random weights are not trained")


PRETRAINING_METHODS: dict[str, type[Method]] = {
    "stain-invariant": StainInvariant,
    "simclr": SimClr,
    "random": Untrained,
}
