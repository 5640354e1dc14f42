"""Pretraining methods: each makes two views of every tile of a batch.

A new method is one class with `views` and one line in `PRETRAINING_METHODS`. Crops and color jitter
use the same random numbers under every method, so that methods differ in nothing else. Random
numbers are drawn for the whole step and each process takes its rows, so that a step is the same on
any number of devices.
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
from stainssl.stain.augment import LabSpread, StepRows, hed_jitter, rand_stain_na, stain_mix
from stainssl.stain.targets import TargetPolicy

GEOMETRY, COLOR, TARGET, JITTER = range(4)  # streams of random numbers
DEFAULT_GEOMETRY = ViewGeometry()
Views = tuple[Tensor, Tensor]
Ints = npt.NDArray[np.int64]


class StainJitter(Protocol):
    """Random change of the stain of views, in addition to color jitter."""

    def __call__(self, images: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Change the stain of each view of a batch.

        Args:
            images: (B, 3, S, S) float views in [0, 1].
            batch: the tiles of the views; random numbers are drawn for those of all processes.
            rng: generator on the CPU.

        Returns:
            The same shape, in [0, 1].
        """
        ...


def _step_rows(batch: Batch) -> StepRows:
    return StepRows(len(batch.everyone), batch.rows)


@dataclass(frozen=True)
class HedJitter:
    """Scale and shift hematoxylin, eosin and DAB (Tellez et al. 2018)."""

    strength: float

    def __call__(self, images: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """See `StainJitter`."""
        return hed_jitter(images, rng, self.strength, step_rows=_step_rows(batch))


class RandStainNA:
    """Normalize each view to its own virtual template (Shen et al. 2022).

    Args:
        profiles: `reinhard` profiles of the N training tiles; templates are drawn from their
            distribution.
        strength: factor of the distribution's standard deviations.
    """

    def __init__(self, profiles: StainProfile, strength: float) -> None:
        self._profiles, self._strength = profiles, strength
        self._spread = LabSpread.of(profiles)

    def __call__(self, images: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """See `StainJitter`."""
        own = self._profiles[torch.from_numpy(batch.tile)].to(images.device)
        return rand_stain_na(images, rng, own, self._spread, self._strength, _step_rows(batch))


@dataclass(frozen=True)
class StainMix:
    """Interpolate between the stain vectors of a tile and another one (Chang et al. 2021).

    Attributes:
        profiles: two-stain profiles of the N training tiles.
        strength: half width of the range of the concentrations' factor.
    """

    profiles: StainProfile
    strength: float

    def __call__(self, images: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """See `StainJitter`."""
        own, all_of_step = (
            self.profiles[torch.from_numpy(t)] for t in (batch.tile, batch.everyone)
        )
        return stain_mix(images, rng, own, all_of_step, self.strength, _step_rows(batch))


@dataclass(frozen=True)
class TileNormalizer:
    """Stain normalization as preprocessing: map every tile to one target profile.

    Attributes:
        profiles: of the N training tiles; a tile without a valid profile keeps its colors, as it
            does when the encoder is used.
        target: one profile.
    """

    profiles: StainProfile
    target: StainProfile

    def __call__(self, images: Tensor, tile: Ints) -> Tensor:
        """Normalize (B, 3, S, S) float views in [0, 1] of the (B,) tiles."""
        return _restained(images, self.profiles[torch.from_numpy(tile)], self.target)


@dataclass(frozen=True)
class ViewSettings:
    """Settings of views that all methods share.

    Attributes:
        size_px: side of a view in px.
        color: color jitter of each view: `none`, `weak` or `strong`.
        seed: of crops, color and targets.
        geometry: of the crops.
        stain_jitter: applied to each view before color jitter; None: no stain jitter.
        tile_normalizer: normalizes every view first; None: no normalization.
    """

    size_px: int
    color: str
    seed: int
    geometry: ViewGeometry = DEFAULT_GEOMETRY
    stain_jitter: StainJitter | None = None
    tile_normalizer: TileNormalizer | None = None

    def crops(self, batch: Batch, step: int, count: int = 2) -> tuple[Tensor, ...]:
        """`count` random crops of each tile, normalized by `tile_normalizer`.

        Returns:
            `count` tensors (B, 3, S, S), float32 in [0, 1].
        """
        rng = generator(self.seed, step, GEOMETRY)
        pixels = batch.images.float().div_(255)

        def crop() -> Tensor:
            drawn = draw_geometry(len(batch.everyone), rng, self.geometry)[batch.rows]
            view = apply_geometry(pixels, drawn, self.size_px)
            return self.tile_normalizer(view, batch.tile) if self.tile_normalizer else view

        return tuple(crop() for _ in range(count))

    def colored(self, views: tuple[Tensor, ...], batch: Batch, step: int) -> tuple[Tensor, ...]:
        """Apply stain jitter, then color jitter, to each view."""
        if self.stain_jitter:
            rng = generator(self.seed, step, JITTER)
            views = tuple(self.stain_jitter(view, batch, rng) for view in views)
        if (color := COLORS[self.color]) is None:
            return views
        rng, count = generator(self.seed, step, COLOR), len(batch.everyone)
        return tuple(apply_color(v, draw_color(color, count, rng).rows(batch.rows)) for v in views)


@dataclass(frozen=True)
class NormalizerState:
    """Profiles and target policy of one normalizer.

    Attributes:
        profiles: of the N training tiles, by tile number.
        policy: draws the target of a step.
    """

    profiles: StainProfile
    policy: TargetPolicy


@dataclass(frozen=True)
class StainTargets:
    """Settings of the stain-invariant method.

    Attributes:
        stainings: one per normalizer; each step draws one of them.
        sites: (n,) tile numbers → their sites.
        normalized: `one` (the second view), or both views to the `same` or `different` targets.
        probability: that a view is normalized to its target.
    """

    stainings: Sequence[NormalizerState]
    sites: Callable[[Ints], Sequence[str]]
    normalized: str = "one"
    probability: float = 1.0


class Method(Protocol):
    """A pretraining method: makes two views of each tile."""

    trains: ClassVar[bool]  # False: the random weights are the result
    needs_stain: ClassVar[bool]  # whether it takes `StainTargets`

    def __init__(self, settings: ViewSettings, stain: StainTargets | None) -> None: ...

    def views(self, batch: Batch, step: int) -> Views:
        """Make two views of each tile.

        Args:
            batch: the tiles.
            step: its number and the seed determine all random numbers.

        Returns:
            Two tensors (B, 3, S, S), float32 in [0, 1], on the device of the images.
        """
        ...


class SimClr:
    """SimCLR: two crops of each tile with color jitter (Chen et al. 2020)."""

    trains: ClassVar[bool] = True
    needs_stain: ClassVar[bool] = False

    def __init__(self, settings: ViewSettings, stain: StainTargets | None) -> None:
        self._settings = settings

    def views(self, batch: Batch, step: int) -> Views:
        """See `Method.views`."""
        first, second = self._settings.colored(self._settings.crops(batch, step), batch, step)
        return first, second


class StainInvariant:
    """Two crops of each tile, the second normalized to the stain target of the step.

    Tiard et al. 2022 (arXiv 2211.07590). Normalization maps single pixels and is therefore applied
    to the crops, which are smaller than the tiles. A tile without a valid profile keeps its colors.
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
        # Targets are drawn from the tiles of the whole step, so that all processes draw the same.
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
        """Targets of the first and second view; None: the view is not normalized."""
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
    """No training: the random weights that every other method starts from."""

    trains: ClassVar[bool] = False
    needs_stain: ClassVar[bool] = False

    def __init__(self, settings: ViewSettings, stain: StainTargets | None) -> None:
        pass

    def views(self, batch: Batch, step: int) -> Views:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError("random weights are not trained")


PRETRAINING_METHODS: dict[str, type[Method]] = {
    "stain-invariant": StainInvariant,
    "simclr": SimClr,
    "random": Untrained,
}
