"""Batched stain estimation, normalization and augmentation in torch."""

from __future__ import annotations

from stainssl.stain.density import Constants
from stainssl.stain.estimate import METHODS, estimate
from stainssl.stain.module import StainNormalizer
from stainssl.stain.normalize import normalize, separate
from stainssl.stain.profile import LabStats, StainProfile, TwoStain

__all__ = [
    "METHODS",
    "Constants",
    "LabStats",
    "StainNormalizer",
    "StainProfile",
    "TwoStain",
    "estimate",
    "normalize",
    "separate",
]
