"""Stain normalization as a `torch.nn.Module`, usable as a torchvision-style transform."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from stainssl.stain.density import DEFAULTS, Constants
from stainssl.stain.estimate import estimate
from stainssl.stain.normalize import normalize
from stainssl.stain.profile import StainProfile


class StainNormalizer(nn.Module):
    """Normalize tiles to the stain of a target profile.

    The stain profile of each tile is estimated and mapped to the target. For a tile without a
    valid profile, `fallback` is used; without a fallback, it is returned unchanged. The target is
    stored in buffers: it moves with `.to(device)` and is saved in the `state_dict`.

    Args:
        target: one valid profile, e.g. `estimate(image[None])[0]` or `StainProfile.reference(...)`.
        fallback: one profile for tiles without a valid one, e.g. that of their slide.
        keep_residual: keep the residual outside the plane of the two stains.
        constants: constants of the estimation.

    Raises:
        ValueError: `target` is not one valid profile, or `fallback` is of another family.
    """

    def __init__(
        self,
        target: StainProfile,
        fallback: StainProfile | None = None,
        *,
        keep_residual: bool = False,
        constants: Constants = DEFAULTS,
    ) -> None:
        super().__init__()
        if target.is_batch or not bool(target.valid):
            raise ValueError("target must be one valid profile: select or pool one from the batch")
        if fallback is not None:
            target._same_family(fallback)
        self.method = target.method
        self.keep_residual = keep_residual
        self.constants = constants
        self._has_fallback = fallback is not None
        for prefix, profile in (("target", target), ("fallback", fallback)):
            for name, value in profile.tensors.items() if profile is not None else ():
                self.register_buffer(f"{prefix}_{name}", value.clone())

    @classmethod
    def fit(cls, images: Tensor, method: str = "macenko", *, keep_residual: bool = False) -> Self:
        """Create a normalizer whose target is the mean stain profile of the given tiles.

        Args:
            images: (B, 3, H, W) RGB, uint8 or float in [0, 1].
            method: `macenko`, `vahadane`, `ruifrok` or `reinhard`.
            keep_residual: keep the residual outside the plane of the two stains.

        Raises:
            ValueError: no tile has a valid profile.
        """
        return cls(estimate(images, method).pooled(), keep_residual=keep_residual)

    def _profile(self, prefix: str) -> StainProfile:
        names = (n for n, _ in self.named_buffers() if n.startswith(f"{prefix}_"))
        values = {name.removeprefix(f"{prefix}_"): getattr(self, name) for name in names}
        valid = values.pop("valid")
        return type(StainProfile.reference(self.method))(self.method, valid, **values)

    @property
    def target(self) -> StainProfile:
        """The profile that tiles are normalized to."""
        return self._profile("target")

    def forward(self, images: Tensor) -> Tensor:
        """Normalize a batch of tiles, or one tile.

        Args:
            images: (B, 3, H, W) or (3, H, W) RGB, uint8 or float in [0, 1]; float is
                differentiable.

        Returns:
            Normalized images of the same shape, dtype and device.
        """
        batch = images if images.ndim == 4 else images[None]
        source = estimate(batch, self.method, self.constants)
        if self._has_fallback:
            source = source.where_valid(self._profile("fallback"))
        mapped = normalize(
            batch, source, self.target, constants=self.constants, keep_residual=self.keep_residual
        )
        out = torch.where(source.valid[:, None, None, None], mapped, batch)
        return out if images.ndim == 4 else out[0]

    def extra_repr(self) -> str:
        """Settings shown in the module's `repr`."""
        return f"method={self.method!r}, keep_residual={self.keep_residual}"
