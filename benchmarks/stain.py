"""The stain engine compared with tiatoolbox, torchstain and torch-staintools, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/stain.py REAL_DATA [--out stain.json] [--only speed ...]

Speed: CPU time per tile for 64 tiles of 224 px cut from the CAMELYON17 tiles, median of several
alternating rounds. Agreement: mean absolute difference in grey levels of real tiles normalized to
one target image, with each side's own estimates, ours with the other side's constants and tissue
mask. Recovery: angle to the vectors with which synthetic tiles were rendered. Step: share of
normalization in a pretraining step of the demo. Tools that are not installed (group `rivals`) are
left out, except tiatoolbox, which is required. Prints tables and writes JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import platform
import statistics
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

# ruff: noqa: E402
from stainssl.encoders.loading import new_backbone
from stainssl.pretrain.losses import nt_xent
from stainssl.stain import (
    METHODS,
    Constants,
    StainProfile,
    estimate,
    normalize,
    numba_backend,
    torch_backend,
)
from stainssl.stain.augment import LabSpread, hed_jitter, rand_stain_na, stain_mix
from stainssl.stain.density import DEFAULTS
from tests.stain import synthetic

ROUNDS, BATCH, SIZE = 5, 64, 224
ALL_PIXELS = Constants(beta=-torch.inf, max_pixels=None)  # Reinhard over all pixels, as theirs
TIATOOLBOX = Constants(io=255, offset=0.5, max_pixels=None)
TORCHSTAIN = Constants(io=240, max_pixels=None)
Work = dict[str, Callable[[], Any]]
Row = dict[str, Any]


def read(path: Path | io.BytesIO) -> Tensor:
    """Read an image as (3, H, W) uint8 RGB."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def crops(real_data: Path, size: int, count: int) -> Tensor:
    """(count, 3, size, size) uint8: crops from all CAMELYON17 centres in turn."""
    images = [read(path) for path in sorted((real_data / "camelyon17-centres").glob("*.png"))]
    places = [(y, x) for y in range(0, 513 - size, size) for x in range(0, 513 - size, size)]
    cut = [image[:, y : y + size, x : x + size] for y, x in places for image in images]
    return torch.stack([cut[i % len(cut)] for i in range(count)])


def breast(real_data: Path, count: int) -> Tensor:
    """(count, 3, 112, 112) uint8: BreakHis tiles spread over all patients."""
    with zipfile.ZipFile(real_data / "breakhis-tiles.zip") as tiles:
        names = sorted(name for name in tiles.namelist() if not name.endswith("/"))
        chosen = [names[i] for i in np.linspace(0, len(names) - 1, count).astype(int)]
        return torch.stack([read(io.BytesIO(tiles.read(name))) for name in chosen])


def arrays(images: Tensor) -> list[np.ndarray]:
    """Convert to the format of tiatoolbox: (H, W, 3) uint8 each."""
    return [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]


def batch_of(images: list[np.ndarray]) -> Tensor:
    """Stack images (H, W, 3) to (B, 3, H, W)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def milliseconds(work: Work, tiles: int, others: Work | None = None) -> dict[str, float]:
    """Median CPU time per tile of each piece of work, alternating, so that load affects all alike.

    `others` work on a quarter of the tiles, since they process tiles one by one.
    """
    found = _seconds({**work, **(others or {})})
    return {
        name: 1e3 * seconds / (tiles if name in work else tiles // 4)
        for name, seconds in found.items()
    }


def _seconds(work: Work) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS + 1):
        for name, run in work.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(s[1:]) for name, s in seconds.items()}


def tiatoolbox_normalizer(method: str, target: Tensor) -> Any:
    """tiatoolbox's normalizer, fitted to the target (3, H, W)."""
    from tiatoolbox.tools.stainnorm import get_normalizer

    normalizer = get_normalizer(method)
    normalizer.fit(arrays(target[None])[0])
    return normalizer


def torchstain_normalizer(method: str, target: Tensor) -> Any:
    """torchstain's normalizer, fitted; None if it has no such method or is not installed."""
    try:
        import torchstain
    except ImportError:
        return None
    made = {
        "macenko": torchstain.normalizers.MacenkoNormalizer,
        "reinhard": torchstain.normalizers.ReinhardNormalizer,
    }
    if method not in made:
        return None
    normalizer = made[method](backend="torch")
    normalizer.fit(target)
    return normalizer


def staintools_vectors(method: str) -> Callable[[Tensor], Tensor] | None:
    """torch-staintools' batched estimate of (B, 2, 3) vectors; None if not installed."""
    try:
        from torch_staintools.functional.conversion.od import rgb2od
        from torch_staintools.functional.tissue_mask import get_tissue_mask
        from torch_staintools.normalizer.factory import NormalizerBuilder
    except ImportError:
        return None
    extract = NormalizerBuilder.build(method).get_stain_matrix

    def vectors(images: Tensor) -> Tensor:
        scaled = images.float() / 255
        mask = get_tissue_mask(scaled, luminosity_threshold=0.8)
        return extract(rgb2od(scaled), mask)

    return vectors


def tiatoolbox_estimate(normalizer: Any, method: str, image: np.ndarray) -> None:
    """Estimate the stain of one image with tiatoolbox."""
    if method == "reinhard":
        normalizer.get_mean_std(image.copy())
        return
    matrix = normalizer.extractor.get_stain_matrix(image.copy())
    np.percentile(normalizer.get_concentrations(image.copy(), matrix), 99, axis=0)


def torchstain_transform(normalizer: Any, method: str, image: Tensor) -> Tensor:
    """Normalize an image with torchstain; returns (3, H, W) float grey levels."""
    if method == "reinhard":
        return normalizer.normalize(image).permute(2, 0, 1).float()
    return normalizer.normalize(image, stains=False)[0].permute(2, 0, 1).float().clamp(0, 255)


def rivals_at_work(method: str, images: Tensor, target: Tensor) -> Work:
    """The work of the other tools on a batch."""
    listed, work = arrays(images), {}
    tia = tiatoolbox_normalizer(method, target)
    work["tiatoolbox estimate"] = lambda: [tiatoolbox_estimate(tia, method, a) for a in listed]
    work["tiatoolbox transform"] = lambda: [tia.transform(a.copy()) for a in listed]
    if (stain := torchstain_normalizer(method, target)) is not None:
        copy = torchstain_normalizer(method, target)
        work["torchstain estimate"] = lambda: [copy.fit(image) for image in images]
        work["torchstain transform"] = lambda: [
            torchstain_transform(stain, method, image) for image in images
        ]
    if method == "macenko" and (vectors := staintools_vectors(method)):
        work["torch-staintools vectors"] = lambda: vectors(images)
    return work  # without torch-staintools' Vahadane, which takes minutes: see `recovery`


def speed(real_data: Path, method: str) -> Row:
    """Milliseconds per tile. The other tools' transforms always include an estimate."""
    images, target = crops(real_data, SIZE, BATCH), read(real_data / "stain-reference/target.png")
    own, goal, floats = estimate(images, method), estimate(target[None], method)[0], images / 255
    ours: Work = {
        "estimate": lambda: estimate(images, method),
        "normalize": lambda: normalize(images, own, goal),
        "normalize float": lambda: normalize(floats, own, goal),
    }
    others = rivals_at_work(method, images[: BATCH // 4], target)
    found = milliseconds(ours, len(images), others)
    return {"method": method, **{name: round(ms, 3) for name, ms in found.items()}}


def parts(real_data: Path) -> Row:
    """Milliseconds per tile of the parts of the engine, in numba and torch."""
    images = crops(real_data, SIZE, BATCH)
    chunk, sample = images[:2], numba_backend.Sample(images, DEFAULTS)
    basis, vectors = torch.rand(BATCH, 3, 2), torch.rand(BATCH, 2, 3)
    matrix, shift = torch.eye(3).expand(BATCH, 3, 3), torch.zeros(BATCH, 3)
    pieces: Work = {
        "moments": sample.moments,
        "angles": lambda: sample.angle_quantiles(basis, (0.01, 0.99)),
        "concentrations": lambda: sample.concentration_quantile(vectors, 0.99),
        "LAB moments": sample.lab_moments,
        "8,192 px, 20 sparse rounds": lambda: sample.thinned(1 << 13).sparse_vectors(
            vectors, 0.01, 20
        ),
        "map": lambda: numba_backend.map_density(images, matrix, shift, DEFAULTS),
        "LAB map": lambda: numba_backend.map_lab(images, shift + 1, shift),
        "map in torch": lambda: torch_backend.map_density(images, matrix, shift, DEFAULTS),
        "LAB map in torch": lambda: torch_backend.map_lab(images, shift + 1, shift),
    }
    found = milliseconds(pieces, BATCH)
    torch_estimates = {
        f"{method} estimate in torch": (
            lambda m=method: METHODS[m](torch_backend.Sample(chunk, DEFAULTS))
        )
        for method in METHODS
    }
    return found | milliseconds(torch_estimates, len(chunk))


def augmentations(real_data: Path) -> Row:
    """Milliseconds per float tile of 224 px of each augmentation."""
    images, rng = crops(real_data, SIZE, BATCH) / 255, torch.Generator().manual_seed(0)
    stains, lab = estimate(images), estimate(images, "reinhard")
    spread = LabSpread.of(lab)
    return milliseconds(
        {
            "HED jitter": lambda: hed_jitter(images, rng),
            "RandStainNA": lambda: rand_stain_na(images, rng, lab, spread),
            "stain mixing": lambda: stain_mix(images, rng, stains),
        },
        BATCH,
    )


def tissue_of(images: Tensor) -> Tensor:
    """tiatoolbox's tissue mask: lightness after stretching the contrast of each tile."""
    from tiatoolbox.utils.misc import get_luminosity_tissue_mask

    masks = [get_luminosity_tissue_mask(image, 0.8) for image in arrays(images)]
    return torch.from_numpy(np.stack(masks))


def ours_and_theirs(
    images: Tensor, target: Tensor, method: str, constants: Constants, masked: bool
) -> tuple[Tensor, Tensor]:
    """Our output with their constants, (B, 3, H, W) float, and (B,) whether profiles are valid."""
    mask, goal_mask = (tissue_of(a) if masked else None for a in (images, target[None]))
    own = estimate(images, method, constants, tissue=mask)
    goal = estimate(target[None], method, constants, tissue=goal_mask)[0]
    return normalize(images, own, goal, constants=constants).float(), own.valid


def agreement(images: Tensor, target: Tensor, tiles: str) -> Iterator[Row]:
    """Differences in grey levels per tile, over the tiles with valid profiles of ours."""
    for method in ("macenko", "reinhard"):
        listed = arrays(images)
        tia = tiatoolbox_normalizer(method, target)
        theirs = {"tiatoolbox": batch_of([tia.transform(a.copy()) for a in listed]).float()}
        if (stain := torchstain_normalizer(method, target)) is not None:
            outputs = [torchstain_transform(stain, method, image) for image in images]
            theirs["torchstain"] = torch.stack(outputs)
        for name, expected in theirs.items():
            with_mask = name == "tiatoolbox" and method == "macenko"
            theirs_constants = TIATOOLBOX if name == "tiatoolbox" else TORCHSTAIN
            constants = ALL_PIXELS if method == "reinhard" else theirs_constants
            for masked in (False, True)[: 1 + with_mask]:
                ours, valid = ours_and_theirs(images, target, method, constants, masked)
                errors = (ours - expected).abs().mean((1, 2, 3))[valid]
                yield {
                    "tiles": tiles,
                    "method": method,
                    "beside": name + (", its mask" if masked else ""),
                    "valid": f"{len(errors)}/{len(images)}",
                    "median_mae": round(float(errors.median()), 2),
                    "largest_mae": round(float(errors.max()), 2),
                }


def known_tiles(count: int) -> tuple[Tensor, Tensor]:
    """Synthetic tiles of 128 px, and their true stain vectors (count, 2, 3)."""
    rng = np.random.default_rng(1)
    truth = [synthetic.stain_vectors(rng) for _ in range(count)]
    tiles = [synthetic.tile(rng, m, rng.uniform(0.2, 0.8), rng.uniform(1, 3)) for m in truth]
    return synthetic.to_images(tiles), torch.tensor(np.stack(truth)).float()


def recovery(count: int = 500) -> Iterator[Row]:
    """Error of both vectors in degrees, and CPU milliseconds per tile for the vectors alone."""
    images, truth = known_tiles(count)
    for method in ("macenko", "vahadane"):
        tia = tiatoolbox_normalizer(method, images[0]).extractor
        sides: dict[str, Callable[[Tensor], Tensor]] = {
            "stainssl": lambda batch, m=method: two_stain(estimate(batch, m)),
            "tiatoolbox": lambda batch, tia=tia: torch.tensor(
                np.stack([tia.get_stain_matrix(a.copy()) for a in arrays(batch)])
            ).float(),
        }
        if method == "macenko" and (stain := torchstain_normalizer(method, images[0])):
            sides["torchstain"] = lambda batch, s=stain: torch.stack(
                [s.fit(image) or s.HERef.T for image in batch]
            )
        if vectors := staintools_vectors(method):
            sides["torch-staintools"] = vectors
        for name, side in sides.items():
            tiles = 4 if (method, name) == ("vahadane", "torch-staintools") else len(images)
            yield {"method": method, "by": name, **errors_of(side, images[:tiles], truth[:tiles])}


def two_stain(profile: StainProfile) -> Tensor:
    """(B, 2, 3) vectors; all profiles must be valid."""
    assert profile.valid.all()
    return profile.tensors["matrix"]


def errors_of(side: Callable[[Tensor], Tensor], images: Tensor, truth: Tensor) -> Row:
    side(images[:1])
    start = time.process_time()
    found = torch.cat([side(chunk) for chunk in images.split(BATCH)])
    spent = 1e3 * (time.process_time() - start) / len(images)
    cosine = (found * truth).sum(-1) / found.norm(dim=-1)
    error = torch.rad2deg(cosine.clamp(-1, 1).acos())
    return {
        "tiles": len(images),
        "median_deg": round(float(error.median()), 2),
        "p95_deg": round(float(error.quantile(0.95)), 2),
        "ms": round(spent, 3),
    }


def step(real_data: Path) -> Row:
    """Milliseconds of a pretraining step: batch 128 of 96 px, lcnet_050, two views."""
    torch.manual_seed(0)
    images = crops(real_data, 96, 128) / 255
    own, backbone = estimate(images), new_backbone("lcnet_050", 96)[0].train()
    head = torch.nn.Linear(backbone(images[:2]).shape[1], 128)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()])

    def network() -> None:
        optimizer.zero_grad()
        nt_xent(head(backbone(images)), head(backbone(images)), 0.2).backward()
        optimizer.step()

    found = milliseconds(
        {"normalize": lambda: normalize(images, own, own[0]), "network": network}, 1
    )
    share = found["normalize"] / sum(found.values())
    return {**{k: round(v, 2) for k, v in found.items()}, "share": round(share, 4)}


def show(title: str, rows: list[Row]) -> None:
    """Print a table, or a single row as a list."""
    print(f"\n## {title}")
    if len(rows) == 1:
        for name, value in rows[0].items():
            print(f"{name:>32}  {value if isinstance(value, str) else round(value, 3)}")
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    print("  ".join(f"{name:>{max(12, len(name))}}" for name in names))
    for row in rows:
        print("  ".join(f"{row.get(name, '')!s:>{max(12, len(name))}}" for name in names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real_data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("stain.json"))
    parser.add_argument("--only", nargs="*", help="speed, parts, augment, agree, recover, step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    data = options.real_data
    target = read(data / "stain-reference/target.png")
    tables: dict[str, Callable[[], list[Row]]] = {
        "speed": lambda: [speed(data, method) for method in METHODS],
        "parts": lambda: [parts(data)],
        "augment": lambda: [augmentations(data)],
        "agree": lambda: [
            *agreement(crops(data, 256, 60), target, "CAMELYON17"),
            *agreement(breast(data, 120), target, "BreakHis"),
        ],
        "recover": lambda: list(recovery()),
        "step": lambda: [step(data)],
    }
    found: Row = {"machine": platform.processor() or platform.machine()}
    for name in options.only or tables:
        found[name] = tables[name]()
        show(name, found[name])
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
