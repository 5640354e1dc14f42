"""Miniatures of the releases: layout, tables and pitfalls, with images of the demo cohort.

Each function writes the folder of an unpacked release, with images taken from `Pictures`.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import h5py
import numpy as np
import pandas as pd
import shapely
from PIL import Image
from shapely.geometry import shape

from stainssl.demo.plan import plan
from stainssl.demo.render import render
from stainssl.demo.scene import MPP, draw_scene
from stainssl.demo.svs import write_svs
from stainssl.demo.truth import geojson

SIDE_PX = 768
OOXML = {
    "transitional": "http://schemas.openxmlformats.org/spreadsheetml/2006/main",
    "strict": "http://purl.oclc.org/ooxml/spreadsheetml/main",
}
RELATIONS = {
    "transitional": "http://schemas.openxmlformats.org/officeDocument/2006/relationships",
    "strict": "http://purl.oclc.org/ooxml/officeDocument/relationships",
}


@dataclass(frozen=True)
class Pictures:
    """A few synthetic slides: files, pixels and tumour outlines."""

    files: list[Path]
    images: list[np.ndarray]
    tumour: list[shapely.geometry.base.BaseGeometry]

    def copy(self, number: int, path: Path) -> Path:
        """Copy a slide; the number wraps around."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(self.files[number % len(self.files)], path))

    def patches(self, number: int, tumour: bool, count: int, side: int = 96) -> list[np.ndarray]:
        """Crops with their centre in tumour, or without tumour; they are always the same."""
        rng = np.random.default_rng([number, tumour])
        where, image = self.tumour[number % len(self.files)], self.images[number % len(self.files)]
        found: list[np.ndarray] = []
        for x, y in rng.integers(0, SIDE_PX - side, (5000, 2)):
            box = shapely.box(x, y, x + side, y + side)
            is_in = where.contains(box.centroid) if tumour else not where.intersects(box)
            crop = image[y : y + side, x : x + side]
            if is_in and crop.mean() < 225:
                found.append(crop)
            if len(found) == count:
                return found
        raise AssertionError(f"slide {number} has not {count} patches with tumour={tumour}")


def draw(folder: Path, count: int = 2) -> Pictures:
    """Render slides with tumour to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    slides = [s for s in plan(5, {"a": 6, "b": 6}) if not s.fault and 0.25 < s.tumour_share < 0.7]
    pictures = Pictures([], [], [])
    for number, slide in enumerate(slides[:count]):
        scene = draw_scene(slide, 5, SIDE_PX)
        image = render(scene, slide, 5)
        path = folder / f"{number}.svs"
        write_svs(path, image, quality=85, mpp=MPP, magnification=20)
        features = json.loads(geojson(scene))["features"]
        pictures.files.append(path)
        pictures.images.append(image)
        pictures.tumour.append(shapely.union_all([shape(f["geometry"]) for f in features]))
    return pictures


# --- tables -----------------------------------------------------------------------------------


def _letters(index: int) -> str:
    text = ""
    while index >= 0:
        text, index = chr(ord("A") + index % 26) + text, index // 26 - 1
    return text


def write_xlsx(
    path: Path, sheets: dict[str, list[list[object]]], kind: str = "transitional"
) -> None:
    """Write an XLSX: text as shared strings, numbers as numbers, no empty cells."""
    main, relations = OOXML[kind], RELATIONS[kind]
    shared: list[str] = []
    parts: dict[str, str] = {}
    for number, rows in enumerate(sheets.values(), start=1):
        body = ""
        for r, row in enumerate(rows, start=1):
            cells = ""
            for c, value in enumerate(row):
                if value == "" or value is None:
                    continue
                where = f'r="{_letters(c)}{r}"'
                if isinstance(value, str):
                    shared.append(value)
                    cells += f'<c {where} t="s"><v>{len(shared) - 1}</v></c>'
                else:
                    cells += f"<c {where}><v>{value}</v></c>"
            body += f'<row r="{r}">{cells}</row>'
        parts[f"xl/worksheets/sheet{number}.xml"] = (
            f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>'
        )
    names = "".join(
        f'<sheet name="{escape(name)}" sheetId="{i}" r:id="rId{i}"/>'
        for i, name in enumerate(sheets, start=1)
    )
    links = "".join(
        f'<Relationship Id="rId{i}" Type="{relations}/worksheet" Target="worksheets/sheet{i}.xml"/>'
        for i in range(1, len(sheets) + 1)
    )
    parts["xl/workbook.xml"] = (
        f'<workbook xmlns="{main}" xmlns:r="{relations}"><sheets>{names}</sheets></workbook>'
    )
    parts["xl/_rels/workbook.xml.rels"] = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        f"{links}</Relationships>"
    )
    strings = "".join(f"<si><t>{escape(text)}</t></si>" for text in shared)
    parts["xl/sharedStrings.xml"] = f'<sst xmlns="{main}">{strings}</sst>'
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{text}')


def write_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_jpg(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=90)


# --- outlines ---------------------------------------------------------------------------------


def imagescope_xml(path: Path, side: float, hole: tuple[float, float, float, float]) -> None:
    """Write a square outline of `side` px in the corner, with a negative region in it."""

    def vertices(x0: float, y0: float, x1: float, y1: float) -> str:
        ring = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
        return "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ring)

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<Annotations MicronsPerPixel="0.5"><Annotation Id="1" Name=""><Regions>'
        f'<Region Id="1" Type="0" NegativeROA="0"><Vertices>{vertices(0, 0, side, side)}</Vertices>'
        "</Region>"
        f'<Region Id="2" Type="0" NegativeROA="1"><Vertices>{vertices(*hole)}</Vertices></Region>'
        "</Regions></Annotation></Annotations>"
    )


def asap_xml(path: Path, areas: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> None:
    """Write outlines (group and corners) in the format of ASAP."""
    drawn = ""
    for number, (group, corners) in enumerate(areas):
        ring = "".join(
            f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(corners)
        )
        drawn += (
            f'<Annotation Name="Annotation {number}" Type="Polygon" PartOfGroup="{group}" '
            f'Color="#F4FA58"><Coordinates>{ring}</Coordinates></Annotation>'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<ASAP_Annotations><Annotations>{drawn}</Annotations><AnnotationGroups/></ASAP_Annotations>"
    )


# --- the releases -----------------------------------------------------------------------------


def camelyon17_wilds(root: Path, pictures: Pictures, per_class: int = 3) -> Path:
    """Two patients with one node per hospital; one patch of each is marked as in-distribution."""
    rows = []
    for center in range(5):
        for place in range(2):
            patient, node = f"{20 * center + 4 + place:03d}", 1 + place
            name = f"patient_{patient}_node_{node}"
            for tumor in (0, 1):
                crops = pictures.patches(2 * center + place, bool(tumor), per_class)
                for number, crop in enumerate(crops):
                    x, y = 3000 + 96 * number, 20000 + 96 * tumor
                    path = root / "patches" / name / f"patch_{name}_x_{x}_y_{y}.png"
                    write_png(path, crop)
                    drawn = int(number == 0 and tumor == 0)
                    slide = 10 * center + place
                    rows.append((patient, node, x, y, tumor, slide, center, drawn))
    columns = ["patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "metadata.csv")
    return root


def bracs_roi(root: Path, pictures: Pictures) -> Path:
    """One or two regions per class and split; patients in BRACS.xlsx, one of them in two splits."""
    folders = ["0_N", "1_PB", "2_UDH", "3_FEA", "4_ADH", "5_DCIS", "6_IC"]
    slides: list[list[object]] = [["WSI Filename", "Patient Id", "RoI", "WSI label", "Set"]]
    number = 100
    for split, name in (("train", "Training"), ("val", "Validation"), ("test", "Testing")):
        for folder in folders:
            kind = folder.split("_")[1]
            for place in range(2 if split == "train" else 1):
                number += 1
                image = pictures.images[number % len(pictures.images)]
                side = (384, 512)[place]
                slide = f"BRACS_{number}"
                path = root / "latest_version" / split / folder / f"{slide}_{kind}_1.png"
                write_png(path, image[128 : 128 + side, 128 : 128 + side])
                slides.append([slide, 10 + number, 1, kind, name])
    slides[1][1] = slides[-1][1]  # the first slide's patient also tests
    write_xlsx(root / "BRACS.xlsx", {"WSI_Information": slides})
    return root


def her2_yale(root: Path, pictures: Pictures, per_class: int = 5) -> Path:
    """Slides in folders by class, numbered from 1 in each, and outlines of ImageScope."""
    for group, folder in (("Pos", "SVS_positive"), ("Neg", "SVS_negative")):
        for number in range(1, per_class + 1):
            name = f"Her2{group}_Case_{number:02d}"
            pictures.copy(2 * number + (group == "Pos"), root / folder / f"{name}.svs")
            imagescope_xml(root / "Annotations" / f"{name}.xml", 640, (0, 0, 128, 128))
    return root


def response_yale(root: Path, pictures: Pictures, count: int = 8) -> Path:
    """One slide per patient, and a table in strict OOXML with labels that differ in case."""
    rows: list[list[object]] = [["Patient", "Age", "Responder"]]
    words = ("responder", "Non-responder", "Responder", "non-responder")
    for number in range(1, count + 1):
        patient = f"Case_{number:02d}"
        pictures.copy(number, root / "SVS" / f"{patient}.svs")
        imagescope_xml(root / "Annotations" / f"{patient}.xml", 768, (0, 0, 64, 64))
        rows.append([patient, 40 + number, words[number % 4]])
    table = root / "Yale_trastuzumab_response_cohort_metadata_clean.xlsx"
    write_xlsx(table, {"Sheet1": rows}, kind="strict")
    return root


def camelyon17(root: Path, pictures: Pictures) -> Path:
    """One patient per centre with five nodes; micro and macro have outlines, itc has none."""
    rows = []
    for center in range(5):
        patient = f"patient_{20 * center + 3:03d}"
        rows.append((f"{patient}.zip", "pN2"))
        for node, stage in enumerate(("negative", "itc", "micro", "macro", "negative")):
            name = f"{patient}_node_{node}"
            pictures.copy(node, root / f"centre_{center}" / f"{name}.tif")
            rows.append((f"{name}.tif", stage))
            if stage in ("micro", "macro"):
                square = [(0, 0), (400, 0), (400, 400), (0, 400)]
                island = [(100, 100), (228, 100), (228, 228), (100, 228)]
                areas = [("metastases", square), ("normal", island)]
                asap_xml(root / "annotations" / f"{name}.xml", areas)
    pd.DataFrame(rows, columns=["patient", "stage"]).to_csv(root / "stage_labels.csv", index=False)
    return root


def pcam(root: Path, pictures: Pictures, per_slide: int = 2) -> Path:
    """Three splits in HDF5 with two slides each, and tables of the positions of patches."""
    root.mkdir(parents=True)
    for number, split in enumerate(("train", "valid", "test")):
        crops, labels, meta = [], [], []
        for place in range(2):
            slide = f"camelyon16_{split}_{'tumor' if place else 'normal'}_{10 * number + place:03d}"
            for tumor in (0, 1):
                crops += pictures.patches(number + place, bool(tumor), per_slide)
                labels += [tumor] * per_slide
                meta += [(10, 20, bool(tumor), bool(tumor), slide)] * per_slide
        stem = f"camelyonpatch_level_2_split_{split}"
        with h5py.File(root / f"{stem}_x.h5", "w") as file:
            file["x"] = np.stack(crops)
        with h5py.File(root / f"{stem}_y.h5", "w") as file:
            file["y"] = np.array(labels, np.uint8).reshape(-1, 1, 1, 1)
        columns = ["coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"]
        pd.DataFrame(meta, columns=columns).to_csv(root / f"{stem}_meta.csv")
    return root


def bracs_wsi(root: Path, pictures: Pictures) -> Path:
    """Slides in folders by split, group and type; `Set` and label in BRACS.xlsx."""
    folders = {"BT": ("N", "PB", "UDH"), "AT": ("FEA", "ADH"), "MT": ("DCIS", "IC")}
    rows: list[list[object]] = [["WSI Filename", "Patient Id", "RoI", "WSI label", "Set"]]
    number = 700
    for split, name in (("train", "Training"), ("val", "Validation"), ("test", "Testing")):
        for group, kinds in folders.items():
            for kind in kinds:
                number += 1
                where = root / split / f"Group_{group}" / f"Type_{kind}"
                pictures.copy(number, where / f"BRACS_{number}.svs")
                rows.append([f"BRACS_{number}", number, 3, kind, name])
    write_xlsx(root / "BRACS.xlsx", {"WSI_Information": rows, "RoI_Information": [["x"], [1]]})
    return root


def tcga_her2(root: Path, pictures: Pictures) -> Path:
    """One folder per file as from the GDC, a frozen section, a table with three header rows."""
    names = ["bcr_patient_uuid", "bcr_patient_barcode", "her2_status_by_ihc", "her2_fish_status"]
    rows = [names, ["x"] * 4, ["CDE_ID:", "CDE_ID:2003301", "CDE_ID:2957563", "CDE_ID:2854089"]]
    status = [("Positive", "[Not Evaluated]"), ("Negative", "[Not Evaluated]"),
              ("Equivocal", "Positive"), ("Equivocal", "[Not Available]"),
              ("Indeterminate", "Positive"), ("Negative", "Negative")]  # fmt: skip
    for number, (ihc, fish) in enumerate(status):
        barcode = f"TCGA-{('A2', 'BH')[number % 2]}-A0{number:02d}"
        rows.append([f"uuid-{number}", barcode, ihc, fish])
        slide = f"{barcode}-01Z-00-DX1.AAAA{number}.svs"
        pictures.copy(number, root / f"uuid-{number}" / slide)
    pictures.copy(0, root / "uuid-0" / "TCGA-A2-A000-01A-01-TS1.BBBB.svs")
    pictures.copy(0, root / "uuid-9" / "TCGA-ZZ-A999-01Z-00-DX1.CCCC.svs")  # not in the table
    text = "\n".join("\t".join(row) for row in rows)
    (root / "nationwidechildrens.org_clinical_patient_brca.txt").write_text(text)
    return root


def impress(root: Path, pictures: Pictures) -> Path:
    """Two sheets, one with a header row and one with two; slides of both stains."""
    her2: list[list[object]] = [
        ["", "clinical", "", "clinical"], ["Unique ID", "Age", "ER%", "pCR"],
    ]  # fmt: skip
    tnbc: list[list[object]] = [["Unique ID", "Age", "pCR (no-0, yes-1)"]]
    for folder, first, table in (("HER2+_deid", 61, her2), ("TNBC_deid", 901, tnbc)):
        for number in range(first, first + 4):
            name = f"{number:03d}"
            pictures.copy(number, root / folder / f"{name}_HE.svs")
            pictures.copy(number, root / folder / f"{name}_IHC.svs")
            middle: list[object] = [46, 95.0] if folder.startswith("HER2") else [46]
            table.append([name, *middle, number % 2])
    write_xlsx(root / "cohort_meta.xlsx", {"HER2+": her2, "TNBC": tnbc})
    return root


def bcnb(root: Path, pictures: Pictures) -> Path:
    """JPEG slides with outlines, numeric ids, the release's split, and an image of no patient."""
    rows: list[list[object]] = [["Patient ID", "Age(years)", "ER", "PR", "HER2", "HER2 Expression"]]
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    square = [[100, 100], [600, 100], [600, 600], [100, 600]]
    for number in range(1, 9):
        name = root / "WSIs" / f"{number}"
        write_jpg(name.with_suffix(".jpg"), pictures.images[number % len(pictures.images)])
        data = {"positive": [{"name": "Annotation 0", "vertices": square}], "negative": []}
        name.with_suffix(".json").write_text(json.dumps(data))
        status = "Positive" if number % 2 else "Negative"
        rows.append([number, 50, "Positive", "Negative", status, "1+"])
        splits[("train", "train", "val", "test")[(number - 1) // 2]].append(str(number))
    write_jpg(root / "WSIs" / "47594f5f-d952.jpg", pictures.images[0][:64, :64])
    write_xlsx(root / "patient-clinical-data.xlsx", {"Sheet1": rows})
    (root / "dataset-splitting").mkdir()
    for split, ids in splits.items():
        (root / "dataset-splitting" / f"{split}_id.txt").write_text("\n".join(ids) + "\n")
    return root


def herohe(root: Path, pictures: Pictures) -> Path:
    """Empty MIRAX files with their folders, among them case 325."""
    rows: list[list[object]] = [["Case", "HER2 status"]]
    for number in (1, 2, 3, 4, 5, 6, 325):
        (root / f"{number}").mkdir(parents=True)
        (root / f"{number}" / "Slidedat.ini").write_text("")
        (root / f"{number}.mrxs").write_text("")
        rows.append([number, "Positive" if number % 2 else "Negative"])
    write_xlsx(root / "HEROHE_HER2_STATUS.xlsx", {"Sheet1": rows})
    return root


def amibr(root: Path, pictures: Pictures) -> Path:
    """Two cases per site with three figures each, one of them atypical in the first case."""
    cases = [("MIDOG21", f"{n:03d}.tiff") for n in (2, 50, 51, 100, 101, 150)]
    cases += [("TUPAC16", f"{n:02d}_stitched1.tif") for n in (1, 23)]
    cases += [("TUPAC16", f"{n}.tif") for n in (24, 73)]
    rows = []
    for place, (dataset, slide) in enumerate(cases):
        for figure, votes in enumerate(((1, 1 - place % 2, 0), (1, 0, 0), (0, 0, 0))):
            uid, atypical = 10 * place + figure, sum(votes) > 1
            folder = root / "patches" / ("atypical" if atypical else "normal")
            write_png(folder / f"{dataset}_{uid}.png", pictures.patches(place, atypical, 3)[figure])
            truths = [bool(vote) for vote in votes]
            kinds = ["AMF segregation" if truth else "NMF metaphase" for truth in truths[:2]]
            rows.append((slide, dataset, uid, 400, 200, *kinds, *truths, atypical))
    labels = [f"expert{n}_label" for n in (1, 2)] + [f"expert{n}_atypical" for n in (1, 2, 3)]
    columns = ["slide", "dataset", "uid", "x", "y", *labels, "majority_atypical"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "AMI-BR.csv")
    return root


MINIATURES: dict[str, Callable[[Path, Pictures], Path]] = {
    "camelyon17-wilds": camelyon17_wilds,
    "bracs-roi": bracs_roi,
    "her2-yale": her2_yale,
    "response-yale": response_yale,
    "camelyon17": camelyon17,
    "pcam": pcam,
    "bracs-wsi": bracs_wsi,
    "tcga-her2": tcga_her2,
    "impress": impress,
    "bcnb": bcnb,
    "herohe": herohe,
    "amibr": amibr,
}
