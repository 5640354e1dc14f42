"""Stain profiles: what is known of the stain of one tile, slide or site, in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

# Fields of an invalid profile are filled with these, so that whatever is computed from one is
# finite. Matrix and scales: the published reference of Veta's implementation of Macenko 2009
# (natural logarithm). LAB: means over the tissue of 15 tiles of five CAMELYON17 centres.
REFERENCE_MATRIX = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
REFERENCE_SCALE = (1.9705, 1.0308)
REFERENCE_LAB_MEAN = (50.0, 26.0, -20.0)
REFERENCE_LAB_STD = (15.0, 6.0, 6.5)

# How far apart two profiles are is counted in degrees of their stain vectors; a doubling of a
# stain's scale counts as much as 7 degrees, a turn of a vector that one sees as easily.
DEGREES_PER_LOG_SCALE = 10.0


@dataclass(frozen=True)
class StainProfile:
    """The stain of N images, or of one (then without the leading axis).

    Attributes:
        method: what estimated it: a key of `estimate.METHODS`.
        valid: (N,) bool; where False the image had not the tissue or the two stains to tell, and
            the other fields hold the published reference instead of an estimate.
    """

    method: str
    valid: Tensor

    REFERENCE: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name, `valid` last."""
        names = [f.name for f in fields(self) if f.name not in ("method", "valid")]
        return {name: getattr(self, name) for name in [*names, "valid"]}

    @property
    def is_batch(self) -> bool:
        """Whether there is a leading axis."""
        return self.valid.ndim == 1

    def _map(self, f: Any) -> Self:
        return replace(self, **{name: f(value) for name, value in self.tensors.items()})

    def __len__(self) -> int:
        """Number of images; a profile without the leading axis has none."""
        if not self.is_batch:
            raise TypeError("a single profile has no length: batched() adds a leading axis")
        return len(self.valid)

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> Self:
        """Select images: an int gives one profile, anything else a batch."""
        return self._map(lambda value: value[index])

    def batched(self) -> Self:
        """The same with a leading axis, also where it is one profile."""
        return self if self.is_batch else self._map(lambda value: value[None])

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self._map(lambda value: value.to(device))

    def where_valid(self, fallback: StainProfile) -> Self:
        """This profile where it is valid, `fallback` elsewhere.

        Args:
            fallback: of the same family; one profile, or one an image.

        Returns:
            A profile that is valid wherever this or the fallback is.
        """
        self._same_family(fallback)
        keep, other = self.valid, fallback.to(self.valid.device).tensors
        chosen: dict[str, Any] = {
            name: torch.where(_as(keep, value), value, other[name])
            for name, value in self.tensors.items()
        }
        return replace(self, **chosen)

    def _same_family(self, other: StainProfile) -> None:
        if type(self) is not type(other):
            raise ValueError(
                f"A {self.method} profile ({type(self).__name__}) and a {other.method} profile "
                f"({type(other).__name__}) are not comparable: estimate both with methods of one "
                "family."
            )

    def pooled(self) -> Self:
        """One profile for all: the mean over the valid ones (invalid where there is none)."""
        raise NotImplementedError

    def coordinates(self) -> Tensor:
        """(N, D) float32 points whose Euclidean distance says how far apart two stainings are."""
        raise NotImplementedError

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Fields by name, `valid` among them, as numpy arrays with the leading axis."""
        return {name: value.detach().cpu().numpy() for name, value in self.tensors.items()}

    @staticmethod
    def from_arrays(method: str, arrays: Mapping[str, Any]) -> StainProfile:
        """The profile whose `to_arrays` gave `arrays` (arrays or nested lists).

        Raises:
            ValueError: unknown method, or a field that its family has is missing.
        """
        family = family_of(method)
        names = [*family.REFERENCE, "valid"]
        if missing := [name for name in names if name not in arrays]:
            raise ValueError(f"A {method} profile needs {missing}; found {sorted(arrays)}.")
        tensors = {name: torch.as_tensor(np.asarray(arrays[name])).clone() for name in names}
        valid = tensors.pop("valid").bool()
        return family(method, valid, **{name: value.float() for name, value in tensors.items()})

    @staticmethod
    def reference(method: str) -> StainProfile:
        """The published reference that stands in for invalid profiles, as one valid profile."""
        family = family_of(method)
        return StainProfile.from_arrays(method, {**family.REFERENCE, "valid": True})

    @staticmethod
    def cat(profiles: Sequence[StainProfile]) -> StainProfile:
        """One batch of several batches or single profiles of the same method."""
        first = profiles[0]
        for profile in profiles[1:]:
            first._same_family(profile)
        parts = [profile.batched().tensors for profile in profiles]
        joined: dict[str, Any] = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        return replace(first, **joined)


@dataclass(frozen=True)
class TwoStain(StainProfile):
    """Hematoxylin and eosin as directions in optical density, and how strong they are.

    Attributes:
        matrix: (N, 2, 3) float32 unit vectors in OD over R, G, B; hematoxylin first.
        scale: (N, 2) float32, 99th percentile of each stain's concentration over all pixels.
    """

    matrix: Tensor
    scale: Tensor

    REFERENCE: ClassVar = {"matrix": REFERENCE_MATRIX, "scale": REFERENCE_SCALE}

    def pooled(self) -> TwoStain:
        """Mean directions, of unit length, and mean scales over the valid profiles."""
        batch = self.batched()
        matrix, scale = (_valid_mean(value, batch.valid) for value in (batch.matrix, batch.scale))
        matrix = matrix / matrix.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        one = TwoStain(self.method, batch.valid.any(), matrix, scale)
        return filled(one)

    def coordinates(self) -> Tensor:
        """(N, 8): both vectors in degrees (of chord) and 10 × the logarithms of the scales."""
        vectors = torch.rad2deg(self.matrix).flatten(-2)
        scales = DEGREES_PER_LOG_SCALE * self.scale.clamp_min(1e-6).log()
        return torch.cat([vectors, scales], -1)


@dataclass(frozen=True)
class LabStats(StainProfile):
    """Color statistics of the tissue in CIE LAB (D65), after Reinhard et al. 2001.

    Attributes:
        mean: (N, 3) float32 mean of L (0–100), a, b.
        std: (N, 3) float32 standard deviation of L, a, b.
    """

    mean: Tensor
    std: Tensor

    REFERENCE: ClassVar = {"mean": REFERENCE_LAB_MEAN, "std": REFERENCE_LAB_STD}

    def pooled(self) -> LabStats:
        """Mean of the means and of the deviations over the valid profiles."""
        batch = self.batched()
        mean, std = (_valid_mean(value, batch.valid) for value in (batch.mean, batch.std))
        return filled(LabStats(self.method, batch.valid.any(), mean, std))

    def coordinates(self) -> Tensor:
        """(N, 6): the six numbers, in LAB units (Euclidean: ΔE of the means and of the spreads)."""
        return torch.cat([self.mean, self.std], -1)


FAMILIES: dict[str, type[StainProfile]] = {
    "macenko": TwoStain,
    "vahadane": TwoStain,
    "ruifrok": TwoStain,
    "reinhard": LabStats,
}


def family_of(method: str) -> type[StainProfile]:
    """The class of a method's profiles.

    Raises:
        ValueError: no such method.
    """
    if method not in FAMILIES:
        raise ValueError(f"Unknown stain method {method!r}; known: {', '.join(FAMILIES)}.")
    return FAMILIES[method]


P = TypeVar("P", bound=StainProfile)


def filled(profile: P) -> P:
    """`profile` with the published reference in place of what is not valid or not finite."""
    finite = profile.valid
    for value in profile.tensors.values():
        rest = tuple(range(profile.valid.ndim, value.ndim))
        finite = finite & (value.isfinite().all(rest) if rest else value.isfinite())
    whole = replace(profile, valid=finite)
    reference = StainProfile.reference(profile.method)
    return replace(whole.where_valid(reference), valid=finite)


def _as(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))


def _valid_mean(value: Tensor, valid: Tensor) -> Tensor:
    weight = _as(valid, value).to(value.dtype)
    return (value * weight).sum(0) / weight.sum(0).clamp_min(1)
