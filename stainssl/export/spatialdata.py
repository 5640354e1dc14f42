"""Write SpatialData stores in the layout of wsidata and LazySlide: tile polygons and embeddings.

Implemented from the descriptions of the formats (SpatialData container 0.2, shapes 0.3, tables 0.2;
AnnData 0.1.0; GeoParquet 1.1), because the library has many dependencies.
`benchmarks/export_readers.py` opens the result with spatialdata, anndata and wsidata.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import zarr
from zarr.errors import ZarrUserWarning

from stainssl.export.slide import ExportedSlide
from stainssl.export.tables import Tables
from stainssl.stores.atomic import replacing

FILES = "*.zarr"  # of slides, as the tool reads them
TILES = "tiles"  # wsidata's key for tiles
ROWS = 4096  # per chunk of embeddings
_AXES = [{"name": name, "type": "space", "unit": "unit"} for name in "xy"]
_IDENTITY: Any = {
    "type": "identity",
    "input": {"name": "xy", "axes": _AXES},
    "output": {"name": "global", "axes": _AXES},
}


def write_slide(folder: Path, slide: ExportedSlide) -> None:
    """Write `{slide}.zarr`: shapes `tiles` and table `{encoder}_tiles` (X: (N, D) float32).

    Polygons are in level-0 px. `wsidata.open_wsi` finds the store next to a slide of that name.
    """
    key = f"{slide.encoder}_{TILES}"
    with replacing(folder / f"{slide.slide_id}.zarr") as made:
        root = zarr.create_group(made)
        root.attrs.update({
            "spatialdata_attrs": {"version": "0.2", "spatialdata_software_version": "0.7.3"},
            "tile_spec": {TILES: _tile_spec(slide)},
        })  # fmt: skip
        shapes = root.create_group(f"shapes/{TILES}")
        shapes.attrs.update({
            "encoding-type": "ngff:shapes", "axes": ["x", "y"],
            "coordinateTransformations": [_IDENTITY], "spatialdata_attrs": {"version": "0.3"},
        })  # fmt: skip
        _write_table(root.create_group(f"tables/{key}"), slide)
        # Readers need consolidated metadata, whose format zarr warns may change.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZarrUserWarning)
            zarr.consolidate_metadata(root.store)
        _write_polygons(Path(made) / "shapes" / TILES / "shapes.parquet", slide)


def _tile_spec(slide: ExportedSlide) -> dict[str, Any]:
    """Attributes of wsidata's `TileSpec`: tile size and stride in px at `mpp`, and downsample."""
    stride = slide.tile_px - slide.overlap_px
    downsample = slide.side_level0_px / slide.tile_px
    return {
        "height": slide.tile_px, "width": slide.tile_px, "stride_height": stride,
        "stride_width": stride, "mpp": slide.tile_mpp, "ops_level": 0,
        "ops_downsample": downsample, "base_level": 0, "base_downsample": downsample,
        "tissue_name": None,
    }  # fmt: skip


def _write_polygons(path: Path, slide: ExportedSlide) -> None:
    x, y = slide.xy_level0_px.T
    side = slide.side_level0_px
    boxes = shapely.box(x, y, x + side, y + side)
    n = len(slide)
    table = pa.table({
        "tile_id": np.arange(n), "x": x, "y": y, "tissue_id": np.zeros(n, np.int64),
        "geometry": pa.array(shapely.to_wkb(boxes), pa.binary()),
    })  # fmt: skip
    bounds = shapely.total_bounds(boxes).tolist() if n else [0.0] * 4
    column = {"encoding": "WKB", "crs": None, "geometry_types": ["Polygon"], "bbox": bounds}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)


def _write_table(table: zarr.Group, slide: ExportedSlide) -> None:
    """Write an AnnData table: embeddings in X, the polygon of each row in obs."""
    region = {"region": TILES, "region_key": "library_id", "instance_key": "tile_id"}
    table.attrs.update({
        "encoding-type": "anndata", "encoding-version": "0.1.0",
        "spatialdata-encoding-type": "ngff:regions_table", "version": "0.2", **region,
    })  # fmt: skip
    n, dim = slide.features.shape
    rows = max(1, min(n, ROWS))
    vectors = table.create_array("X", shape=(n, dim), dtype="float32", chunks=(rows, dim))
    vectors[:] = slide.features.astype(np.float32)
    vectors.attrs.update(_encoding("array", "0.2.0"))
    obs = _frame(table, "obs", n, ["tile_id", "library_id"])
    _array(obs, "tile_id", np.arange(n))
    library = obs.create_group("library_id")
    library.attrs.update({"ordered": False, **_encoding("categorical", "0.2.0")})
    _array(library, "codes", np.zeros(n, np.int8))
    _strings(library, "categories", [TILES])
    _frame(table, "var", dim, [])
    for name in ("layers", "obsm", "obsp", "varm", "varp"):
        _dict(table, name)
    attrs = _dict(_dict(table, "uns"), "spatialdata_attrs")
    for name, word in region.items():
        one = attrs.create_array(name, shape=(), dtype=str)
        one[...] = word
        one.attrs.update(_encoding("string", "0.2.0"))


def _encoding(kind: str, version: str) -> Mapping[str, Any]:
    return {"encoding-type": kind, "encoding-version": version}


def _dict(group: zarr.Group, name: str) -> zarr.Group:
    made = group.create_group(name)
    made.attrs.update(_encoding("dict", "0.1.0"))
    return made


def _frame(group: zarr.Group, name: str, rows: int, columns: list[str]) -> zarr.Group:
    made = group.create_group(name)
    made.attrs.update(
        {"_index": "_index", "column-order": columns, **_encoding("dataframe", "0.2.0")}
    )
    _strings(made, "_index", [str(i) for i in range(rows)])
    return made


def _array(group: zarr.Group, name: str, values: np.ndarray) -> None:
    chunks = (max(1, len(values)),)
    made = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks)
    made[:] = values
    made.attrs.update(_encoding("array", "0.2.0"))


def _strings(group: zarr.Group, name: str, words: list[str]) -> None:
    made = group.create_array(name, shape=(len(words),), dtype=str, chunks=(max(1, len(words)),))
    made[:] = np.array(words, dtype=object)
    made.attrs.update(_encoding("string-array", "0.2.0"))


def write_tables(folder: Path, tables: Tables) -> None:
    """Write `slides.csv`: ids and labels from the sheet, and the `store` of each slide."""
    with replacing(folder / "slides.csv") as made:
        slides = tables.slides
        slides.assign(store=slides["slide_id"] + ".zarr").to_csv(made, index=False)
