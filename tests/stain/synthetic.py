"""Synthetic tiles rendered from known stain vectors."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

H_AND_E = np.array([[0.56, 0.72, 0.41], [0.22, 0.80, 0.56]])


def stain_vectors(rng: np.random.Generator) -> np.ndarray:
    """(2, 3) unit vectors of hematoxylin and eosin within the range of real sites."""
    while True:
        h = np.array([rng.uniform(0.52, 0.72), 0.70, rng.uniform(0.25, 0.45)])
        e = np.array([rng.uniform(0.08, 0.30), 0.85, rng.uniform(0.15, 0.55)])
        matrix = np.stack([h, e]) / np.linalg.norm([h, e], axis=1, keepdims=True)
        if 17 < np.degrees(np.arccos(matrix[0] @ matrix[1])) < 45:
            return matrix


def smooth(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """(size, size) smooth random field whose values are evenly spread over 0–1."""
    field = gaussian_filter(rng.normal(size=(size, size)), sigma)
    return np.argsort(np.argsort(field, axis=None)).reshape(field.shape) / field.size


def mixture(rng: np.random.Generator, share: float, size: int, pure: float = 0.06) -> np.ndarray:
    """(size, size) share of hematoxylin per pixel: mean `share`, smooth, `pure` of 0 and of 1."""
    rank = smooth(rng, size, 3)
    inner = (share - pure) / (1 - 2 * pure)
    ramp = np.clip((rank - pure) / (1 - 2 * pure), 0, 1)
    return np.where(rank < pure, 0, np.where(rank > 1 - pure, 1, ramp ** (1 / inner - 1)))


def render(concentration: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(H, W, 3) float grey levels of (H, W, 2) concentrations under Beer–Lambert."""
    return np.clip(256 * np.exp(-concentration @ matrix) - 1, 0, 255)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """The (H, W, 3) uint8 image after JPEG compression."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer).convert("RGB"))


def tile(
    rng: np.random.Generator,
    matrix: np.ndarray = H_AND_E,
    share: float = 0.5,
    noise: float = 2.0,
    quality: int | None = 80,
    size: int = 128,
) -> np.ndarray:
    """(size, size, 3) uint8 tile of tissue with known stain vectors."""
    fraction = mixture(rng, share, size)
    amount = 0.6 + 0.9 * smooth(rng, size, 4)
    strength = rng.uniform(0.8, 1.3, 2)
    concentration = np.stack([fraction, 1 - fraction], -1) * amount[..., None] * strength
    grey = render(concentration, matrix / np.linalg.norm(matrix, axis=1, keepdims=True))
    image = np.clip(grey + rng.normal(0, noise, grey.shape), 0, 255).round().astype(np.uint8)
    return jpeg(image, quality) if quality else image


def to_images(tiles: list[np.ndarray]) -> Tensor:
    """(B, 3, H, W) uint8 of a list of (H, W, 3) uint8."""
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous()
