"""Named encoders at full size compared with a plain timm loop: embeddings, loading, tiles/s.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.encoders --work FOLDER [--vectors]
    python -m benchmarks.encoders --write

Weights are random, since speed does not depend on their values, and stored as on the hub. The other
side is written as the model card describes it: timm's network with the card's arguments, and tiles
prepared one by one with torchvision's transforms, as in TRIDENT. Both sides get the same decoded
tiles and batches, alternating in one process. Writes `benchmarks/results/encoders.json`.
`--vectors` compares only the embeddings and keeps the stored times; `--write` writes the table of
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as T

from benchmarks.machine import processor
from stainssl.encoders.loading import load, with_classes
from stainssl.encoders.recipes import RECIPES
from stainssl.stores.atomic import write_text
from tools.pages import fill, marks

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "encoders.json"
PAGE = ROOT / "docs" / "benchmarks.md"
SIDE = 256  # px per tile
ROUNDS = 5
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)


@dataclass(frozen=True)
class Card:
    """Content of a model card: network, input size and normalization.

    Attributes:
        architecture: timm's name of the network.
        tiles: tiles per batch, and per measured run; fewer for a larger network.
        size: side of the input in px.
        normalization: mean and standard deviation of R, G, B.
        interpolation: name of the interpolation of the resize.
        arguments: arguments of `timm.create_model`.
    """

    architecture: str
    tiles: int
    size: int = 224
    normalization: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    interpolation: str = "bilinear"
    arguments: dict[str, Any] = field(default_factory=dict)


CARDS = {
    "retccl": Card("resnet50", 16, size=256),
    "lunit-vits16": Card(
        "vit_small_patch16_224", 16, interpolation="bicubic",
        normalization=((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)),
    ),
    "kaiko-vits8": Card("vit_small_patch8_224", 8, normalization=HALF),
    "kaiko-vitb16": Card("vit_base_patch16_224", 8, normalization=HALF),
    "uni": Card("vit_large_patch16_224", 4, arguments={"init_values": 1e-5}),
}  # fmt: skip


def card_model(card: Card) -> nn.Module:
    """The network of a card, with random weights in place of the initial scales and biases."""
    torch.manual_seed(0)
    args = with_classes(card.arguments)
    model = timm.create_model(card.architecture, num_classes=0, **args).eval()
    for value in model.parameters():
        if value.ndim == 1:  # LayerScale of 1e-5 would hide the blocks
            value.data = torch.rand_like(value) + 0.5
    return model.requires_grad_(False)


def card_transform(card: Card) -> Callable[[Image.Image], Tensor]:
    """The preprocessing of one tile according to a card."""
    mode = T.InterpolationMode(card.interpolation)
    steps: Callable[[Image.Image], Tensor] = T.Compose(
        [T.Resize((card.size, card.size), mode), T.ToTensor(), T.Normalize(*card.normalization)]
    )
    return steps


def tiles(count: int) -> list[np.ndarray]:
    """(SIDE, SIDE, 3) uint8 tiles of smooth noise, in the colors of a stain."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 24, 24), dtype=np.uint8)
    grey = [np.asarray(Image.fromarray(c).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            for c in coarse]  # fmt: skip
    pale, dark = np.array([240, 225, 238]), np.array([90, 50, 130])
    return [(pale + (dark - pale) * (g[..., None] / 255)).astype(np.uint8) for g in grey]


def batch(given: list[np.ndarray]) -> Tensor:
    """(N, 3, SIDE, SIDE) uint8."""
    return torch.from_numpy(np.stack(given)).permute(0, 3, 1, 2)


def seconds(run: Callable[[], Any]) -> float:
    """Duration of a call in s."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def least_cosine(ours: Tensor, cards: Tensor) -> float:
    """Lowest cosine of paired rows of (N, D), centered, since random networks share a mean."""
    mean = cards.mean(dim=0)
    return float(nn.functional.cosine_similarity(ours - mean, cards - mean).min())


def stored(name: str, work: Path) -> tuple[nn.Module, str]:
    """The network of a card, and the source by which `load` loads the same weights."""
    model, file = card_model(CARDS[name]), work / f"{name}.pth"
    torch.save(model.state_dict(), file)
    return model, f"{name}@{file}"


def speed(name: str, work: Path) -> dict[str, float]:
    """Loading time and speed of one encoder, ours and timm's alternating."""
    card, given = CARDS[name], tiles(CARDS[name].tiles)
    model, source = stored(name, work)
    transform = card_transform(card)

    def timm_load() -> nn.Module:
        fresh = timm.create_model(card.architecture, num_classes=0, **with_classes(card.arguments))
        fresh.load_state_dict(torch.load(source.partition("@")[2], weights_only=True))
        return fresh

    loads = [(seconds(lambda: load(source)), seconds(timm_load)) for _ in range(2)]
    encoder = load(source)

    def ours() -> Tensor:
        return encoder(batch(given))

    def timms() -> Tensor:
        with torch.inference_mode():
            return model(torch.stack([transform(Image.fromarray(one)) for one in given]))

    ours(), timms()  # warm-up
    times = [(seconds(ours), seconds(timms)) for _ in range(ROUNDS)]
    own, others = (card.tiles / statistics.median(side) for side in zip(*times, strict=True))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tiles": card.tiles,
        "px": RECIPES[name].input_px,
        "load_s": min(own for own, _ in loads),
        "timm_load_s": min(other for _, other in loads),
        "tiles_per_s": own,
        "timm_tiles_per_s": others,
        "ratio": statistics.median(other / own for own, other in times),
    }


@torch.inference_mode()
def vectors(name: str, work: Path) -> dict[str, float]:
    """Cosines of our embeddings to the card's, with and without Pillow's rounding."""
    card, given = CARDS[name], tiles(4)
    model, source = stored(name, work)
    ours, transform = load(source)(batch(given)), card_transform(card)
    cards = model(torch.stack([transform(Image.fromarray(one)) for one in given]))
    mode = T.InterpolationMode(card.interpolation)
    exact = T.functional.resize(batch(given) / 255, [card.size] * 2, mode, antialias=True)
    exact = model(T.functional.normalize(exact.clamp(0, 1), *card.normalization))
    return {
        "cosine": least_cosine(ours, cards),
        "cosine_unrounded": least_cosine(ours, exact),
    }


def machine() -> str:
    """Processor, number of threads and version of torch."""
    threads = torch.get_num_threads()
    of = "one thread" if threads == 1 else f"{threads} threads"
    return f"{of} of {processor()}, torch {torch.__version__}"


def section(found: dict[str, Any]) -> str:
    """Markdown table for docs/benchmarks.md."""
    head = (
        "| encoder | parameters | input | load s: stainssl, timm |"
        " lowest cosine to the card's | without Pillow's rounding |"
        " tiles per second: stainssl | timm's loop | ratio (target ≥ 0.95) |\n" + "|---" * 9 + "|"
    )
    rows = [
        f"| `{name}` | {one['parameters'] / 1e6:.0f} M | {one['px']:.0f} px |"
        f" {one['load_s']:.2f}, {one['timm_load_s']:.2f} | {one['cosine']:.4f} |"
        f" {one['cosine_unrounded']:.6f} |"
        f" {one['tiles_per_s']:.3g} | {one['timm_tiles_per_s']:.3g} | {one['ratio']:.2f} |"
        for name, one in found["encoders"].items()
    ]
    return "\n".join(["", "", f"Measured on {found['machine']}.", "", head, *rows, "", ""])


def main() -> None:
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path())
    parser.add_argument("--encoders", nargs="+", choices=list(CARDS), default=list(CARDS))
    parser.add_argument("--vectors", action="store_true")
    parser.add_argument("--write", action="store_true")
    words = parser.parse_args()
    if words.write:
        fill(PAGE, marks(RESULTS.stem), section(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    words.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": machine(), "encoders": {}}
    if words.vectors:
        found = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name in words.encoders:
        times = {} if words.vectors else speed(name, words.work)
        found["encoders"][name] = {
            **found["encoders"].get(name, {}), **times, **vectors(name, words.work),
        }  # fmt: skip
        print(name, json.dumps(found["encoders"][name]), flush=True)
    write_text(RESULTS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
