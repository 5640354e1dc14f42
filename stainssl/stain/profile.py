"""Stain profiles of tiles, slides or sites, in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

# Invalid profiles are filled with these, so that everything computed from a profile is finite.
# Matrix and scales: the published reference of Veta's implementation of Macenko 2009 (natural
# logarithm). LAB: means over the tissue of 15 tiles of five CAMELYON17 centres.
REFERENCE_MATRIX = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
REFERENCE_SCALE = (1.9705, 1.0308)
REFERENCE_LAB_MEAN = (50.0, 26.0, -20.0)
REFERENCE_LAB_STD = (15.0, 6.0, 6.5)

# Distances between profiles are in degrees of their stain vectors; doubling a stain's scale counts
# as 7 degrees, a rotation that is about as visible.
DEGREES_PER_LOG_SCALE = 10.0


@dataclass(frozen=True)
class StainProfile:
    """Stain profiles of N images, or of one image (then without the leading axis).

    Attributes:
        method: estimation method, a key of `estimate.METHODS`.
        valid: (N,) bool; False if the image had too little tissue or not two stains. The other
            fields are then the published reference instead of an estimate.
    """

    method: str
    valid: Tensor

    REFERENCE: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by field name, `valid` last."""
        names = [f.name for f in fields(self) if f.name not in ("method", "valid")]
        return {name: getattr(self, name) for name in [*names, "valid"]}

    @property
    def is_batch(self) -> bool:
        """Whether there is a leading axis."""
        return self.valid.ndim == 1

    def _map(self, f: Any) -> Self:
        return replace(self, **{name: f(value) for name, value in self.tensors.items()})

    def __len__(self) -> int:
        """Number of images.

        Raises:
            TypeError: it is a single profile, without the leading axis.
        """
        if not self.is_batch:
            raise TypeError("a single profile has no length: batched() adds a leading axis")
        return len(self.valid)

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> Self:
        """Select images: an int gives a single profile, any other index a batch."""
        return self._map(lambda value: value[index])

    def batched(self) -> Self:
        """Return a batch: a single profile gets a leading axis of length 1."""
        return self if self.is_batch else self._map(lambda value: value[None])

    def to(self, device: torch.device | str) -> Self:
        """Move all tensors to a device."""
        return self._map(lambda value: value.to(device))

    def where_valid(self, fallback: StainProfile) -> Self:
        """Replace invalid profiles by those of a fallback.

        Args:
            fallback: one profile, or one per image, of the same family.

        Returns:
            Profiles that are valid wherever this or the fallback is.

        Raises:
            ValueError: `fallback` is of another family.
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
        """Average the valid profiles to one profile, which is invalid if none is valid."""
        raise NotImplementedError

    def coordinates(self) -> Tensor:
        """(N, D) float32 points; their Euclidean distance measures how different two stains are."""
        raise NotImplementedError

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all fields, including `valid`, as NumPy arrays by name."""
        return {name: value.detach().cpu().numpy() for name, value in self.tensors.items()}

    @staticmethod
    def from_arrays(method: str, arrays: Mapping[str, Any]) -> StainProfile:
        """Create a profile from the output of `to_arrays` (arrays or nested lists).

        Raises:
            ValueError: unknown method, or a field of its family is missing.
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
        """Return the published reference of a method's family as one valid profile.

        Raises:
            ValueError: unknown method.
        """
        family = family_of(method)
        return StainProfile.from_arrays(method, {**family.REFERENCE, "valid": True})

    @staticmethod
    def cat(profiles: Sequence[StainProfile]) -> StainProfile:
        """Concatenate batches or single profiles of one family to a batch.

        Raises:
            ValueError: they are of different families.
        """
        first = profiles[0]
        for profile in profiles[1:]:
            first._same_family(profile)
        parts = [profile.batched().tensors for profile in profiles]
        joined: dict[str, Any] = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        return replace(first, **joined)


@dataclass(frozen=True)
class TwoStain(StainProfile):
    """Stain vectors and scales of hematoxylin and eosin.

    Attributes:
        matrix: (N, 2, 3) float32 unit vectors in optical density over R, G, B; hematoxylin first.
        scale: (N, 2) float32, a high percentile of each stain's concentration over all pixels
            (by default the 99th).
    """

    matrix: Tensor
    scale: Tensor

    REFERENCE: ClassVar = {"matrix": REFERENCE_MATRIX, "scale": REFERENCE_SCALE}

    def pooled(self) -> TwoStain:
        """Mean stain vectors, scaled to unit length, and mean scales of the valid profiles."""
        batch = self.batched()
        matrix, scale = (_valid_mean(value, batch.valid) for value in (batch.matrix, batch.scale))
        matrix = matrix / matrix.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        one = TwoStain(self.method, batch.valid.any(), matrix, scale)
        return filled(one)

    def coordinates(self) -> Tensor:
        """(N, 8): both vectors times 180/π (chord in degrees), and 10 × log of the scales."""
        vectors = torch.rad2deg(self.matrix).flatten(-2)
        scales = DEGREES_PER_LOG_SCALE * self.scale.clamp_min(1e-6).log()
        return torch.cat([vectors, scales], -1)


@dataclass(frozen=True)
class LabStats(StainProfile):
    """Statistics of the tissue in CIE LAB (D65), after Reinhard et al. 2001.

    Attributes:
        mean: (N, 3) float32 mean of L (0–100), a, b.
        std: (N, 3) float32 standard deviation of L, a, b.
    """

    mean: Tensor
    std: Tensor

    REFERENCE: ClassVar = {"mean": REFERENCE_LAB_MEAN, "std": REFERENCE_LAB_STD}

    def pooled(self) -> LabStats:
        """Averages of the means and of the standard deviations of the valid profiles."""
        batch = self.batched()
        mean, std = (_valid_mean(value, batch.valid) for value in (batch.mean, batch.std))
        return filled(LabStats(self.method, batch.valid.any(), mean, std))

    def coordinates(self) -> Tensor:
        """(N, 6): means and standard deviations, in LAB units."""
        return torch.cat([self.mean, self.std], -1)


FAMILIES: dict[str, type[StainProfile]] = {
    "macenko": TwoStain,
    "vahadane": TwoStain,
    "ruifrok": TwoStain,
    "reinhard": LabStats,
}


def family_of(method: str) -> type[StainProfile]:
    """Return the profile class of a method.

    Raises:
        ValueError: unknown method.
    """
    if method not in FAMILIES:
        raise ValueError(f"Unknown stain method {method!r}; known: {', '.join(FAMILIES)}.")
    return FAMILIES[method]


P = TypeVar("P", bound=StainProfile)


def filled(profile: P) -> P:
    """Replace profiles that are not valid or not finite by the reference, and mark them invalid."""
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
