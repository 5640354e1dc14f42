"""Opens the files of `stainssl export` with the readers of the tools themselves.

Runs in its own environment (`uv pip install spatialdata wsidata h5py torch`), because users do not
need these readers:

    for tool in clam trident stamp spatialdata; do
        stainssl export --to $tool --cohort demo --encoder simclr --out exports/$tool
    done
    python benchmarks/export_readers.py exports SLIDE.svs --clam CLONE --trident CLONE --stamp CLONE

CLONE is a clone of the tool's repository; a tool without one is reported as skipped. Prints a line
per reader and writes JSON.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd


def spatialdata(exports: Path, slide: Path) -> str:
    import spatialdata as sd

    store = sd.read_zarr(exports / "spatialdata" / f"{slide.stem}.zarr")
    (key,) = store.tables
    table, tiles = store.tables[key], store.shapes["tiles"]
    joined = sd.match_table_to_element(store, element_name="tiles", table_name=key)
    assert joined.n_obs == len(tiles) == table.n_obs
    box = sd.bounding_box_query(
        store, axes=("x", "y"), min_coordinate=[0, 0], max_coordinate=[300, 300],
        target_coordinate_system="global",
    )  # fmt: skip
    queried = len(box.shapes["tiles"]) if "tiles" in box.shapes else 0
    return f"{table.n_obs} × {table.n_vars}, {queried} tiles in a box of 300 px"


def anndata(exports: Path, slide: Path) -> str:
    import anndata

    tables = exports / "spatialdata" / f"{slide.stem}.zarr" / "tables"
    (table,) = (path for path in tables.iterdir() if path.is_dir())
    found = anndata.read_zarr(table)
    assert np.isfinite(found.X).all()
    assert found.obs["library_id"].eq("tiles").all()
    return f"{found.n_obs} × {found.n_vars}, region {found.uns['spatialdata_attrs']['region']}"


def wsidata(exports: Path, slide: Path) -> str:
    from wsidata import open_wsi

    wsi = open_wsi(slide, store=str(exports / "spatialdata" / f"{slide.stem}.zarr"))
    spec = wsi.tile_spec("tiles")
    image = next(iter(wsi.iter.tile_images("tiles")))
    assert image.image.shape[:2] == (spec.height, spec.width)
    (key,) = [k for k in wsi.tables if k.endswith("_tiles")]
    features = wsi.tables[key].X
    return f"{len(wsi.shapes['tiles'])} tiles, features {features.shape}, {spec.mpp} µm/px"


def clam(exports: Path, slide: Path, clone: Path) -> str:
    sys.path.insert(0, str(clone))
    stub = types.ModuleType("utils.utils")  # its other imports are for training
    stub.generate_split = stub.nth = None  # type: ignore[attr-defined]
    sys.modules |= {"utils": types.ModuleType("utils"), "utils.utils": stub}
    from dataset_modules.dataset_generic import Generic_MIL_Dataset

    table = pd.read_csv(exports / "clam" / "dataset.csv")
    label = table.columns[-1]
    words = {word: i for i, word in enumerate(sorted(table[label].dropna().unique()))}
    table = table[table["slide_id"] == slide.stem].dropna(subset=[label])
    table.to_csv(exports / "clam-one.csv", index=False)
    data = Generic_MIL_Dataset(
        data_dir=str(exports / "clam"), csv_path=str(exports / "clam-one.csv"), label_col=label,
        label_dict=words, print_info=False,
    )  # fmt: skip
    features, _ = data[0]
    data.load_from_h5(True)
    same, _, coords = data[0]
    assert (features == same).all()
    assert coords.shape == (len(features), 2)
    return f"features {tuple(features.shape)} {features.dtype}, coords {coords.dtype}"


def _functions(path: Path, *names: str, **known: Any) -> dict[str, Any]:
    """Functions and classes of a source file, without its imports."""
    tree = ast.parse(path.read_text())
    kept = [node for node in tree.body if getattr(node, "name", None) in names]
    scope: dict[str, Any] = {"h5py": h5py, "np": np, **known}
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module(future + kept, []), str(path), "exec"), scope)
    return scope


def trident(exports: Path, slide: Path, clone: Path) -> str:
    read = _functions(clone / "trident" / "IO.py", "read_coords", "read_coords_legacy")
    (folder,) = (exports / "trident").iterdir()
    (features,) = folder.glob("features_*")
    attributes, coords = read["read_coords"](str(features / f"{slide.stem}.h5"))
    _, again = read["read_coords"](str(folder / "patches" / f"{slide.stem}_patches.h5"))
    size, level, _, legacy = read["read_coords_legacy"](
        str(exports / "clam" / "patches" / f"{slide.stem}.h5")
    )
    assert (coords == again).all()
    assert (coords == legacy).all()
    assert level == 0
    return (
        f"coords {coords.shape}, patch_size_level0 {attributes['patch_size_level0']}, clam {size}"
    )


def stamp(exports: Path, slide: Path, clone: Path) -> str:
    import dataclasses

    import torch
    from packaging.version import Version

    source = clone / "src" / "stamp" / "modeling" / "data.py"
    own = types.SimpleNamespace(__version__="2.1.0")
    read = _functions(
        source, "get_coords", "get_stride", "CoordsInfo", "Microns", torch=torch, Version=Version,
        dataclass=dataclasses.dataclass, Microns=float, TilePixels=int, SlideMPP=float, stamp=own,
        _logger=logging.getLogger("stamp"), _logged_stamp_v1_warning=True,
    )  # fmt: skip
    with h5py.File(exports / "stamp" / "features" / f"{slide.stem}.h5") as h5:
        info = read["get_coords"](h5)
        feats = torch.from_numpy(h5["feats"][:]).float()
    assert len(info.coords_um) == len(feats)
    return f"feats {tuple(feats.shape)}, tile {info.tile_size_um} µm, {info.mpp} µm/px"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("exports", type=Path, help="holds clam/, trident/, stamp/, spatialdata/")
    parser.add_argument("slide", type=Path)
    clones: dict[str, Callable[..., str]] = {"clam": clam, "trident": trident, "stamp": stamp}
    for name in clones:
        parser.add_argument(f"--{name}", type=Path, help="a clone of its repository")
    parser.add_argument("--json", type=Path, default=Path("export_readers.json"))
    words = parser.parse_args()
    found: dict[str, str] = {}
    for reader in (spatialdata, anndata, wsidata):
        found[f"{reader.__name__} {version(reader.__name__)}"] = reader(words.exports, words.slide)
    for name, reader in clones.items():
        clone = getattr(words, name)
        found[name] = reader(words.exports, words.slide, clone) if clone else "skipped: no clone"
    for name, said in found.items():
        print(f"{name:20} {said}")
    words.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
