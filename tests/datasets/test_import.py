"""Every release is imported as a sheet; pitfalls are handled, and its folder is not changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from stainssl.cohort import check, read_sheet
from stainssl.config import dump, parse
from stainssl.datasets import RELEASES, _load_cached, load
from stainssl.datasets.importing import run
from stainssl.errors import StainsslError
from tests.conftest import REPO
from tests.datasets.miniature import write_xlsx


def included_rows(name: str, root: Path, **options: str) -> pd.DataFrame:
    """The rows of a folder that are not excluded, by slide."""
    _load_cached.cache_clear()  # tests change folders within one process
    found = load(name, root, options)
    assert found.problems == []
    return found.sheet[found.sheet["exclude"] == ""].set_index("slide_id", drop=False)


def copy_of(releases: dict[str, Path], name: str, folder: Path) -> Path:
    return Path(shutil.copytree(releases[name], folder / name))


def file_states(root: Path) -> dict[str, tuple[int, int]]:
    stats = {p: p.stat() for p in root.rglob("*")}
    return {str(p): (s.st_mtime_ns, s.st_size) for p, s in stats.items()}


@pytest.mark.parametrize("name", RELEASES)
def test_the_imported_sheet_equals_the_release_in_a_config(
    releases: dict[str, Path], name: str, tmp_path: Path
) -> None:
    before = file_states(releases[name])
    lines = "\n".join(run(name, releases[name], tmp_path / "s.csv", []))
    assert "not the published counts" in lines or name == "tcga-her2"
    assert file_states(releases[name]) == before
    snippet = lines.split("the config takes it as\n")[1]
    by_sheet = parse(yaml.safe_load(snippet))
    in_memory = parse({"cohorts": {name: {"release": name, "root": str(releases[name])}}})
    # Copies of an image are reported for a sheet, and for a release only if the check is thorough.
    other_problems = [problem for problem in check(by_sheet) if "identical copies" not in problem]
    assert other_problems == check(in_memory) == []
    pd.testing.assert_frame_equal(read_sheet(by_sheet, name), read_sheet(in_memory, name))
    one, two = by_sheet.cohorts[name], in_memory.cohorts[name]
    for key in ("kind", "annotations", "regions", "outlines"):
        assert getattr(one, key) == getattr(two, key)
    again = parse(yaml.safe_load(dump(in_memory)))
    assert again == in_memory  # jobs read the dumped config


def test_wilds_is_split_by_hospital_without_in_distribution_patches(
    releases: dict[str, Path],
) -> None:
    rows = included_rows("camelyon17-wilds", releases["camelyon17-wilds"])
    by_site = rows.groupby("site")["split"].unique().map(list).to_dict()
    assert by_site == {
        "hospital-0": ["train"], "hospital-1": ["val"], "hospital-2": ["test"],
        "hospital-3": ["train"], "hospital-4": ["train"],
    }  # fmt: skip
    assert len(rows) == 54
    all_rows = included_rows(
        "camelyon17-wilds", releases["camelyon17-wilds"], in_distribution="train"
    )
    assert len(all_rows) == 60
    assert (releases["camelyon17-wilds"] / rows["path"].iloc[0]).is_file()


def test_completing_a_partial_download_does_not_change_parts(
    releases: dict[str, Path], tmp_path: Path
) -> None:
    root = copy_of(releases, "camelyon17-wilds", tmp_path)
    patch = next(root.glob("patches/patient_084*/*.png"))
    data = patch.read_bytes()
    patch.unlink()
    config = parse(
        {
            "cohorts": {"w": {"release": "camelyon17-wilds", "root": str(root)}},
            "slides": {"part_size": 7},
        }
    )
    _load_cached.cache_clear()
    partial = read_sheet(config, "w").set_index("slide_id")["stainssl_part"]
    patch.write_bytes(data)
    _load_cached.cache_clear()
    whole = read_sheet(config, "w").set_index("slide_id")["stainssl_part"]
    assert len(whole) == len(partial) + 1
    assert whole[partial.index].equals(partial)


def test_bracs_regions_have_patients_and_those_in_two_splits_are_reported(
    releases: dict[str, Path], tmp_path: Path
) -> None:
    rows = included_rows("bracs-roi", releases["bracs-roi"])
    assert rows.loc["BRACS_102_N_1", ["patient_id", "subtype", "group", "mpp"]].tolist() == [
        "BRACS_patient_112", "N", "benign", "0.25",
    ]  # fmt: skip
    assert "BRACS_101_N_1" not in rows.index  # its patient is in the test split
    _load_cached.cache_clear()
    reported = [s for s in load("bracs-roi", releases["bracs-roi"]).warnings if "splits" in s]
    assert "BRACS_patient_138" in reported[0]
    root = copy_of(releases, "bracs-roi", tmp_path)
    (root / "BRACS.xlsx").rename(tmp_path / "BRACS.xlsx")  # in the folder above
    assert included_rows("bracs-roi", root)["patient_id"].equals(rows["patient_id"])
    (tmp_path / "BRACS.xlsx").unlink()
    assert included_rows("bracs-roi", root).loc["BRACS_101_N_1", "patient_id"] == "BRACS_101"


def test_a_bracs_region_in_the_wrong_folder_is_a_problem(
    releases: dict[str, Path], tmp_path: Path
) -> None:
    root = copy_of(releases, "bracs-roi", tmp_path)
    folder = root / "latest_version" / "train"
    (folder / "0_N" / "BRACS_102_N_1.png").rename(folder / "6_IC" / "BRACS_102_N_1.png")
    _load_cached.cache_clear()
    assert "the class of their folder" in load("bracs-roi", root).problems[0]


def test_yale_slides_with_the_same_number_are_of_different_patients(
    releases: dict[str, Path],
) -> None:
    rows = included_rows("her2-yale", releases["her2-yale"])
    assert rows["patient_id"].is_unique
    assert rows["her2"].value_counts().to_dict() == {"1": 5, "0": 5}


def test_yale_slides_without_outlines_are_reported(
    releases: dict[str, Path], tmp_path: Path
) -> None:
    root = copy_of(releases, "her2-yale", tmp_path)
    (root / "Annotations" / "Her2Pos_Case_02.xml").unlink()
    _load_cached.cache_clear()
    assert "1 slides have no Annotations" in load("her2-yale", root).notes[0]
    assert load("her2-yale", root, {"tiles": "all"}).notes == []
    config = parse(
        {"cohorts": {"y": {"release": "her2-yale", "root": "r", "options": {"tiles": "all"}}}}
    )
    assert config.cohorts["y"].regions is None


def test_yale_response_labels_are_read_in_any_case(
    releases: dict[str, Path], tmp_path: Path
) -> None:
    rows = included_rows("response-yale", releases["response-yale"])
    assert rows["response"].tolist() == ["0", "1", "0", "1"] * 2
    root = copy_of(releases, "response-yale", tmp_path)
    table = root / "Yale_trastuzumab_response_cohort_metadata_clean.xlsx"
    write_xlsx(table, {"S": [["Patient", "Responder"], ["Case_01", "maybe"]]}, "strict")
    _load_cached.cache_clear()
    assert "classes that are not in the release: maybe" in load("response-yale", root).problems[0]
    write_xlsx(table, {"S": [["Slide", "Outcome"], ["Case_01", "responder"]]}, "strict")
    with pytest.raises(StainsslError, match="no column 'Patient'; found: Slide, Outcome"):
        _load_cached.cache_clear()
        load("response-yale", root)
    assert len(included_rows("response-yale", root, patient="slide", label="outcome")) == 1


def test_camelyon17_has_centre_stage_and_label(releases: dict[str, Path]) -> None:
    rows = included_rows("camelyon17", releases["camelyon17"])
    assert rows.loc["patient_043_node_3", ["site", "stage", "tumor", "pn_stage"]].tolist() == [
        "centre-2", "macro", "1", "pN2",
    ]  # fmt: skip
    assert rows.loc["patient_043_node_0", "tumor"] == "0"
    assert (
        "outlines; the tiles of the 5 without have no label"
        in load("camelyon17", releases["camelyon17"]).notes[0]
    )


def test_pcam_rows_are_images_of_hdf5_files(releases: dict[str, Path], tmp_path: Path) -> None:
    rows = included_rows("pcam", releases["pcam"])
    assert rows.loc["valid_000003", ["path", "split", "tumor"]].tolist() == [
        "camelyonpatch_level_2_split_valid_x.h5#3", "val", "1",
    ]  # fmt: skip
    assert rows["patient_id"].nunique() == 6
    root = copy_of(releases, "pcam", tmp_path)
    (root / "camelyonpatch_level_2_split_test_x.h5").unlink()
    assert set(included_rows("pcam", root)["split"]) == {"train", "val"}


def test_bracs_slides_have_the_label_of_the_table(releases: dict[str, Path]) -> None:
    rows = included_rows("bracs-wsi", releases["bracs-wsi"])
    assert rows["split"].value_counts().to_dict() == {"train": 7, "val": 7, "test": 7}
    assert rows.loc["BRACS_704", ["subtype", "group"]].tolist() == ["FEA", "atypical"]


def test_tcga_equivocal_is_decided_by_fish_and_frozen_sections_are_excluded(
    releases: dict[str, Path],
) -> None:
    rows = included_rows("tcga-her2", releases["tcga-her2"])
    by_patient = rows.set_index("patient_id")["her2"]
    assert by_patient.tolist() == ["1", "0", "1", "", "", "0"]
    assert rows["section"].eq("DX").all()
    assert rows["site"].tolist() == ["A2", "BH"] * 3
    alone = included_rows("tcga-her2", releases["tcga-her2"], equivocal="none")
    assert alone.set_index("patient_id")["her2"].tolist() == ["1", "0", "", "", "", "0"]


def test_impress_reads_both_sheets_without_immunohistochemistry(releases: dict[str, Path]) -> None:
    rows = included_rows("impress", releases["impress"])
    assert rows.loc["061_HE", ["pcr", "subtype"]].tolist() == ["1", "her2"]
    assert rows.loc["902_HE", ["pcr", "subtype"]].tolist() == ["0", "tnbc"]


def test_bcnb_uses_its_own_split_and_ignores_other_images(releases: dict[str, Path]) -> None:
    rows = included_rows("bcnb", releases["bcnb"])
    assert rows.loc["7", ["split", "her2", "patient_id"]].tolist() == ["test", "1", "bcnb_7"]
    assert len(rows) == 8


def test_herohe_reports_the_columns_used(releases: dict[str, Path]) -> None:
    rows = included_rows("herohe", releases["herohe"])
    assert "325" not in rows.index
    assert "column 'Case', HER2 from 'HER2 status'" in load("herohe", releases["herohe"]).notes[0]


def test_amibr_derives_sites_from_cases_and_counts_votes(releases: dict[str, Path]) -> None:
    rows = included_rows("amibr", releases["amibr"])
    by_site = rows.groupby("site")["patient_id"].unique().map(sorted).to_dict()
    assert by_site == {
        "midog-xr": ["MIDOG21_002", "MIDOG21_050"],
        "midog-s360": ["MIDOG21_051", "MIDOG21_100"],
        "midog-cs2": ["MIDOG21_101", "MIDOG21_150"],
        "tupac-1-23": ["TUPAC16_01", "TUPAC16_23"],
        "tupac-24-73": ["TUPAC16_24", "TUPAC16_73"],
    }
    votes = rows.groupby("atypical")["atypical_votes"].unique().map(sorted).to_dict()
    assert votes == {"0": ["0", "1"], "1": ["2"]}
    for row in rows.itertuples():
        assert (releases["amibr"] / str(row.path)).is_file()


def change_first_row(root: Path, column: str, value: object) -> None:
    """Change a value in the first row of the table of AMi-Br."""
    table = pd.read_csv(root / "AMI-BR.csv", dtype=str, index_col=0)
    table.loc[table.index[0], column] = value
    table.to_csv(root / "AMI-BR.csv")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("slide", "151.tiff", "unknown site: MIDOG21_151"),
        ("expert1_atypical", "False", "that disagrees with the votes: MIDOG21_0"),
    ],
)
def test_contradictory_rows_of_amibr_are_reported(
    releases: dict[str, Path], tmp_path: Path, column: str, value: str, message: str
) -> None:
    root = copy_of(releases, "amibr", tmp_path)
    change_first_row(root, column, value)
    _load_cached.cache_clear()
    assert message in load("amibr", root).problems[0]


def test_amibr_patches_in_the_wrong_folder_and_invalid_values_are_reported(
    releases: dict[str, Path], tmp_path: Path
) -> None:
    root = copy_of(releases, "amibr", tmp_path)
    patches = root / "patches"
    (patches / "atypical" / "MIDOG21_0.png").rename(patches / "normal" / "MIDOG21_0.png")
    _load_cached.cache_clear()
    assert "of another class than in the table: MIDOG21_0" in load("amibr", root).problems[0]
    change_first_row(root, "majority_atypical", "maybe")
    _load_cached.cache_clear()
    with pytest.raises(StainsslError, match="majority_atypical is maybe"):
        load("amibr", root)


def test_the_command_reports_all_problems_and_writes_nothing(
    releases: dict[str, Path], tmp_path: Path
) -> None:
    root = copy_of(releases, "response-yale", tmp_path)
    table = root / "Yale_trastuzumab_response_cohort_metadata_clean.xlsx"
    write_xlsx(table, {"S": [["Patient", "Responder"], ["Case_01", "maybe"], ["Case_09", "yes"]]})
    arguments = ["cohort", "import", "response-yale", "--root", str(root), "--sheet", "out.csv"]
    done = subprocess.run(
        [sys.executable, "-m", "stainssl", *arguments], cwd=tmp_path, capture_output=True,
        env={"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin"}, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "maybe, yes" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("name", "given_options", "message"),
    [
        ("camelyon18", [], "No release is named 'camelyon18'; known: camelyon17-wilds"),
        ("her2-yale", ["tiles"], "write it as key=value"),
        ("her2-yale", ["tiles=half"], "it takes roi, all"),
    ],
)
def test_unknown_releases_and_options_are_refused(
    tmp_path: Path, name: str, given_options: list[str], message: str
) -> None:
    with pytest.raises(StainsslError, match=message):
        list(run(name, tmp_path, tmp_path / "s.csv", given_options))


@pytest.mark.parametrize("name", RELEASES)
def test_another_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StainsslError, match=str(tmp_path)):
        _load_cached.cache_clear()
        load(name, tmp_path)
    with pytest.raises(StainsslError, match=r"gone"):
        load(name, tmp_path / "gone")


def test_a_cohort_has_a_known_release_and_no_other_source() -> None:
    with pytest.raises(StainsslError, match="did you mean 'camelyon17-wilds'"):
        parse({"cohorts": {"w": {"release": "camelyon17-wild", "root": "."}}})
    with pytest.raises(StainsslError, match="found sheet and release"):
        parse({"cohorts": {"w": {"release": "herohe", "sheet": "a.csv"}}})
    with pytest.raises(StainsslError, match="'options' need a 'release'"):
        parse({"cohorts": {"w": {"sheet": "a.csv", "options": {"tiles": "all"}}}})
    with pytest.raises(StainsslError, match="no option 'tils'"):
        parse({"cohorts": {"w": {"release": "herohe", "options": {"tils": "all"}}}})
