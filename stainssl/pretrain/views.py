"""Random views of a batch of tiles: geometry and color, drawn for each image.

Random numbers come from a generator on the CPU and are few, so that a seed gives the same views on
any device; the images are processed on their own device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class ViewGeometry:
    """Ranges of the random crops.

    Attributes:
        area: minimum and maximum area of a crop, as a share of the tile. SimCLR's 0.08 leaves a
            few nuclei of a small tile; 0.25 keeps the tissue recognisable.
        ratio: minimum and maximum ratio of width to height.
        turns: whether to flip and to rotate by quarter turns; tissue has no orientation.
    """

    area: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    turns: bool = True


@dataclass(frozen=True)
class Color:
    """Strength of color jitter.

    Attributes:
        brightness, contrast, saturation: half widths of the ranges of factors, 1 ± the value.
        hue: half width of the range of rotations, in turns.
        jitter: share of images that are jittered.
        grey, blur, solarise: shares of images that are converted to grey, blurred, solarised.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    jitter: float = 0.8
    grey: float = 0.0
    blur: float = 0.0
    solarise: float = 0.0


# `strong` is SimCLR's jitter at strength 0.5, with its grey and blur, and BYOL's solarisation.
COLORS: dict[str, Color | None] = {
    "none": None,
    "weak": Color(0.2, 0.2, 0.2, 0.02),
    "strong": Color(0.4, 0.4, 0.4, 0.1, grey=0.2, blur=0.5, solarise=0.1),
}


def generator(seed: int, step: int, stream: int) -> Generator:
    """Random number generator of one step, which does not depend on earlier steps.

    Args:
        seed: of the run.
        step: its number.
        stream: number of the purpose (geometry, color, targets, …). Streams are independent, so
            that all methods have the same geometry and color.
    """
    # Mixed like a hash, so that neighbouring steps have unrelated random numbers.
    mixed = (
        seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB
    ) % 2**64
    mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed * 0xD6E8FEB86659FD93 % 2**63)


def _uniform(count: int, low: float, high: float, rng: Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=rng)


def draw_geometry(count: int, rng: Generator, geometry: ViewGeometry = ViewGeometry()) -> Tensor:
    """Draw random resized crops with flips and quarter turns, as affine maps.

    Returns:
        (count, 2, 3) float32 for `torch.nn.functional.affine_grid`, from output to input
        coordinates; crops lie completely inside the tile.
    """
    area = _uniform(count, *geometry.area, rng)
    low, high = (math.log(ratio) for ratio in geometry.ratio)
    ratio = torch.exp(_uniform(count, low, high, rng))
    half = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp_max(1)
    centre = (1 - half) * (2 * torch.rand(count, 2, generator=rng) - 1)
    orientation = _orientation(count, rng) if geometry.turns else torch.eye(2).expand(count, 2, 2)
    return torch.cat([half[:, :, None] * orientation, centre[:, :, None]], 2)


def _orientation(count: int, rng: Generator) -> Tensor:
    """(count, 2, 2) random symmetries of the square: flips and a transposition make all eight."""
    flip = torch.randint(0, 2, (count, 2), generator=rng) * 2 - 1
    turned = torch.randint(0, 2, (count,), generator=rng).bool()
    straight = torch.diag_embed(flip.float())
    return torch.where(turned[:, None, None], straight.flip(2), straight)


def apply_geometry(images: Tensor, theta: Tensor, size_px: int) -> Tensor:
    """Crop, flip, rotate and resize images.

    Args:
        images: (B, 3, H, W) uint8, or float in [0, 1].
        theta: (B, 2, 3) as returned by `draw_geometry`.
        size_px: side of the result in px.

    Returns:
        (B, 3, size_px, size_px) float32 in [0, 1].
    """
    scaled = images.float().div(255) if images.dtype == torch.uint8 else images
    if (shrink := images.shape[-1] // size_px) > 1:  # bilinear sampling would alias
        scaled = F.avg_pool2d(scaled, shrink)
    shape = [len(images), 3, size_px, size_px]
    grid = F.affine_grid(theta.to(images.device), shape, align_corners=False)
    return F.grid_sample(scaled, grid, padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class ColorDraw:
    """Color jitter drawn for N images.

    Attributes:
        matrix: (N, 3, 3) map of RGB: saturation, hue and brightness.
        contrast: (N,) factors about the mean grey level of the image.
        sigma: (N,) of the Gaussian blur, in px per 96 px of the side; 0: no blur.
        solarise: (N,) bool.
    """

    matrix: Tensor
    contrast: Tensor
    sigma: Tensor
    solarise: Tensor

    def rows(self, rows: slice) -> ColorDraw:
        """The jitter of some of the images."""
        return ColorDraw(*(getattr(self, f.name)[rows] for f in fields(self)))


def draw_color(color: Color, count: int, rng: Generator) -> ColorDraw:
    """Draw color jitter for each of `count` images."""
    matrix, contrast = _color_matrix(color, count, rng)
    blurred = _uniform(count, 0, 1, rng) < color.blur
    sigma = torch.where(blurred, _uniform(count, 0.3, 1.5, rng), 0.0)
    return ColorDraw(matrix, contrast, sigma, _uniform(count, 0, 1, rng) < color.solarise)


def _color_matrix(color: Color, count: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """(count, 3, 3) maps of saturation, hue and brightness, and (count,) contrast factors."""
    on = _uniform(count, 0, 1, rng) < color.jitter
    brightness, contrast, saturation = (
        torch.where(on, _uniform(count, 1 - width, 1 + width, rng), 1.0)
        for width in (color.brightness, color.contrast, color.saturation)
    )
    angle = torch.where(on, _uniform(count, -color.hue, color.hue, rng) * 2 * math.pi, 0.0)
    grey = _uniform(count, 0, 1, rng) < color.grey
    saturation = torch.where(grey, 0.0, saturation)
    cos, sin = angle.cos() * saturation, angle.sin() * saturation
    chroma = torch.zeros(count, 3, 3)
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1], chroma[:, 1, 2], chroma[:, 2, 1], chroma[:, 2, 2] = cos, -sin, sin, cos
    yiq = torch.tensor(TO_YIQ)
    return brightness[:, None, None] * (torch.linalg.inv(yiq) @ chroma @ yiq), contrast


def apply_color(images: Tensor, drawn: ColorDraw) -> Tensor:
    """Apply brightness, contrast, saturation and hue, then blur and solarisation.

    The first four are one affine map per image: saturation and hue scale and rotate the chroma of
    YIQ, contrast scales about the mean grey level of the image. Values are clipped once, after it.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        drawn: jitter of the B images.

    Returns:
        The same shape, in [0, 1].
    """
    matrix, contrast = drawn.matrix.to(images.device), drawn.contrast.to(images.device)
    pixels = images.flatten(2)
    weights = torch.tensor(LUMA, device=images.device)
    mean_grey = torch.einsum("i,bij,bj->b", weights, matrix, pixels.mean(2))
    offset = ((1 - contrast) * mean_grey)[:, None, None].expand(len(images), 3, 1)
    out = torch.baddbmm(offset, contrast[:, None, None] * matrix, pixels).clamp_(0, 1)
    out = _blurred(out.view_as(images), drawn.sigma)
    if not bool(drawn.solarise.any()):
        return out
    inverted = drawn.solarise.to(images.device)[:, None, None, None] & (out >= 0.5)
    return torch.where(inverted, 1 - out, out)


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Apply Gaussian blur to the images whose sigma (px per 96 px of the side) is not 0."""
    chosen = sigma.nonzero()[:, 0]  # on the CPU, so that nothing waits for a GPU
    if not len(chosen):
        return images
    place = chosen.to(images.device)
    return images.index_copy(0, place, _blur(images[place], sigma[chosen].to(images.device)))


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    count, scale = len(images), images.shape[-1] / 96
    radius = max(1, round(3 * scale))
    place = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-place.square() / (2 * (sigma * scale)[:, None].square()))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    flat = F.pad(images.flatten(0, 1)[None], (radius,) * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, :, :, None], groups=3 * count)
    return F.conv2d(flat, kernel[:, :, None, :], groups=3 * count).view_as(images).clamp(0, 1)
