"""Slides to embeddings on disk with one tool: prints seconds and tiles as JSON.

    ENV/bin/python benchmarks/end_to_end_tool.py TOOL FOLDER [--clone CLONE]

TOOL is stainssl, trident, slide2vec, lazyslide or clam, run in its own environment; `--clone` is a
clone of TRIDENT's or CLAM's repository. FOLDER contains `slides/` and `network.safetensors`, made
by `end_to_end.py`. The tool writes to `FOLDER/TOOL/`. Afterwards the positions (level-0 px) and
embeddings of each slide's tiles are read from the tool's own files into `vectors.npz` there.

Every tool runs the same network through its interface for custom encoders, on tiles of 224 px at
0.5 µm/px, in batches of 64, with its own tissue mask. At least half of a tile must be tissue, if
the tool has such a limit. CLAM's mask uses its preset for biopsies, since its default takes nearly
all glass of these slides as tissue. TRIDENT's is Otsu's, since its other masks are networks to
download. Seconds are counted from the end of imports until the last file is written.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

NETWORK, SIDE_PX, MPP, LEAST_TISSUE, BATCH = "mobilenetv3_small_100", 224, 0.5, 0.5, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
THREADS = len(os.sched_getaffinity(0))
Slide = tuple[str, np.ndarray, np.ndarray]  # name, (n, 2) corners in level-0 px, (n, D) vectors
Run = tuple[float, str, Iterator[Slide]]  # seconds, the tool's version, content of its files


def network(folder: Path) -> Any:
    """The network with the weights in the folder."""
    import timm
    from safetensors.torch import load_file

    model = timm.create_model(NETWORK, num_classes=0)
    model.load_state_dict(load_file(folder / "network.safetensors"))
    return model.eval()


def prepared() -> Callable[[Any], Any]:
    """The preprocessing of one tile with torchvision."""
    from torchvision import transforms

    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def slides_of(folder: Path) -> list[Path]:
    """The slides, sorted by name."""
    return sorted((folder / "slides").iterdir())


def stainssl(folder: Path, out: Path, _clone: Path | None) -> Run:
    import pandas as pd
    import yaml

    from stainssl.cli import app
    from stainssl.stages import embed, pixels, tile  # noqa: F401 -- imports are not counted
    from stainssl.stores.embeddings import open_embeddings

    slides = slides_of(folder)
    rows = [{"slide_id": p.stem, "patient_id": p.stem, "path": str(p)} for p in slides]
    pd.DataFrame(rows).to_csv(out / "slides.csv", index=False)
    config = {
        "results": str(out / "results"), "slides": {"part_size": len(slides)},
        "cohorts": {"c": {"sheet": str(out / "slides.csv"), "root": str(folder)}},
        "tilings": {"default": {"mpp": MPP, "size": SIDE_PX, "min_tissue": LEAST_TISSUE}},
        "encoders": {"e": {"weights": f"{NETWORK}@{folder / 'network.safetensors'}"}},
    }  # fmt: skip
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    part = ["--config", str(out / "config.yaml"), "--cohort", "c", "--part", "all-0000"]
    start = time.perf_counter()
    for verb, words in {"tile": [], "pixels": [], "embed": ["--encoder", "e"]}.items():
        app([verb, *part, *words, "--threads", str(THREADS)], standalone_mode=False)
    seconds = time.perf_counter() - start

    def found() -> Iterator[Slide]:
        [path] = (out / "results").rglob("embeddings/**/all-0000.zarr")
        store = open_embeddings(path)
        for name in store.slide_id:
            rows = store.rows(name)
            yield name, np.column_stack([store.x[rows], store.y[rows]]), store.read(rows)

    return seconds, version("stainssl"), found()


def trident(folder: Path, out: Path, clone: Path | None) -> Run:
    sys.path.insert(0, str(clone))
    import h5py
    import torch
    from trident import Processor
    from trident.patch_encoder_models.load import CustomInferenceEncoder
    from trident.segmentation_models.load import segmentation_model_factory

    start = time.perf_counter()
    encoder = CustomInferenceEncoder("network", network(folder), prepared(), torch.float32)
    segmenter = segmentation_model_factory("otsu")
    processor = Processor(job_dir=str(out), wsi_source=str(folder / "slides"))
    processor.run_segmentation_job(
        segmenter, seg_mag=segmenter.target_mag, holes_are_tissue=True, device="cpu"
    )
    coords = processor.run_patching_job(
        target_magnification=round(10 / MPP), patch_size=SIDE_PX, min_tissue_proportion=LEAST_TISSUE
    )
    made = processor.run_patch_feature_extraction_job(
        coords, encoder, device="cpu", batch_limit=BATCH
    )
    seconds = time.perf_counter() - start

    def found() -> Iterator[Slide]:
        for path in sorted(Path(made).glob("*.h5")):
            with h5py.File(path) as file:
                yield path.stem, file["coords"][:], file["features"][:]

    return seconds, _version_of(clone), found()


def clam(folder: Path, out: Path, clone: Path | None) -> Run:
    assert clone is not None
    os.chdir(clone)
    sys.path.insert(0, str(clone))
    import h5py
    import models
    import wsi_core.WholeSlideImage  # noqa: F401 -- imports are not counted

    models.get_encoder = lambda *_, **__: (network(folder), prepared())
    slides = folder / "slides"
    start = time.perf_counter()
    _script("create_patches_fp.py", source=slides, save_dir=out, patch_size=SIDE_PX,
            step_size=SIDE_PX, seg=None, patch=None, preset="bwh_biopsy.csv")  # fmt: skip
    _script("extract_features_fp.py", data_h5_dir=out, data_slide_dir=slides,
            csv_path=out / "process_list_autogen.csv", feat_dir=out / "vectors",
            batch_size=BATCH, slide_ext=".svs")  # fmt: skip
    seconds = time.perf_counter() - start

    def found() -> Iterator[Slide]:
        for path in sorted((out / "vectors" / "h5_files").glob("*.h5")):
            with h5py.File(path) as file:
                yield path.stem, file["coords"][:], file["features"][:]

    return seconds, _version_of(clone), found()


def _script(name: str, **options: Any) -> None:
    """Run a script of the current folder as from the command line."""
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    sys.argv = [name, *(str(word) for word in words if word is not None)]
    runpy.run_path(name, run_name="__main__")


def lazyslide(folder: Path, out: Path, _clone: Path | None) -> Run:
    import lazyslide as zs
    import torch  # noqa: F401 -- imports are not counted
    from wsidata import open_wsi

    start = time.perf_counter()
    model, stores = network(folder), {}
    for path in slides_of(folder):
        wsi = open_wsi(path, store=str(out / f"{path.stem}.zarr"))
        zs.pp.find_tissues(wsi)
        zs.pp.tile_tissues(wsi, SIDE_PX, mpp=MPP, background_fraction=1 - LEAST_TISSUE)
        zs.tl.feature_extraction(
            wsi, model, transform=prepared(), device="cpu", batch_size=BATCH, pbar=False,
            num_workers=THREADS - 1, key_added="vectors",
        )  # fmt: skip
        wsi.write()
        stores[path.stem] = wsi
    seconds = time.perf_counter() - start

    def found() -> Iterator[Slide]:
        for name, wsi in stores.items():
            boxes = wsi["tiles"].geometry.bounds
            yield name, boxes[["minx", "miny"]].to_numpy(), np.asarray(wsi["vectors"].X)

    return seconds, version("lazyslide"), found()


def slide2vec(folder: Path, out: Path, _clone: Path | None) -> Run:
    from dataclasses import replace

    import torch
    from hs2p import SlideSpec, TilingConfig
    from slide2vec import (
        ExecutionOptions,
        Model,
        Pipeline,
        PreprocessingConfig,
        TorchTileEncoder,
        inference,
        register_encoder,
    )  # fmt: skip

    assert inference  # imports are not counted

    @register_encoder("network", encode_dim=1024, input_size=SIDE_PX, supported_spacing_um=MPP,
                      supports_variable_input_size=False, precision="fp32")  # fmt: skip
    class Network(TorchTileEncoder):
        def __init__(self, *, output_variant: str | None = None) -> None:
            super().__init__(network(folder), encode_dim=1024, input_size=SIDE_PX, mean=MEAN,
                             std=STD, output_variant=output_variant)  # fmt: skip

    start = time.perf_counter()
    tiling = TilingConfig(requested_spacing_um=MPP, requested_tile_size_px=SIDE_PX, tolerance=0.05,
                          overlap=0.0, backend="auto")  # fmt: skip
    given = PreprocessingConfig(tiling=tiling)
    given = replace(given, masks=replace(given.masks, min_coverage={"tissue": LEAST_TISSUE}))
    options = ExecutionOptions(output_dir=out, batch_size=BATCH, precision="fp32")
    result = Pipeline(Model.from_preset("network", device="cpu"), given, execution=options).run(
        slides=[SlideSpec(sample_id=path.stem, image_path=path) for path in slides_of(folder)]
    )
    seconds = time.perf_counter() - start

    def found() -> Iterator[Slide]:
        for one in result.tile_artifacts:
            [places] = out.rglob(f"{one.sample_id}*.coordinates.npz")
            corners = np.load(places)
            yield (one.sample_id, np.column_stack([corners["x"], corners["y"]]),
                   torch.load(one.path).numpy())  # fmt: skip

    return seconds, version("slide2vec"), found()


def _version_of(clone: Path | None) -> str:
    """The commit that a folder `NAME-COMMIT` was checked out of."""
    assert clone is not None
    return clone.name.rpartition("-")[2]


TOOLS: dict[str, Callable[[Path, Path, Path | None], Run]] = {
    "stainssl": stainssl, "trident": trident, "slide2vec": slide2vec, "lazyslide": lazyslide,
    "clam": clam,
}  # fmt: skip


def main() -> None:
    """Run one tool once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tool", choices=sorted(TOOLS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clone", type=Path)
    given = parser.parse_args()
    folder = given.folder.resolve()
    out = folder / given.tool
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    seconds, told, found = TOOLS[given.tool](folder, out, given.clone and given.clone.resolve())
    used = os.times()  # imports included
    cpu_s = used.user + used.system + used.children_user + used.children_system
    kept = {name: (corners, vectors) for name, corners, vectors in found}
    arrays = {f"{name}/{i}": one[i] for name, one in kept.items() for i in range(2)}
    np.savez(out / "vectors.npz", **arrays)
    tiles = sum(len(corners) for corners, _ in kept.values())
    account = {"seconds": seconds, "tiles": tiles, "slides": len(kept), "version": told}
    print("\n" + json.dumps(account | {"cpu_s": cpu_s}))


if __name__ == "__main__":
    main()
