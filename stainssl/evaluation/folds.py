"""Folds: which patients train, validate and test in every repeat of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from stainssl.errors import StainsslError

ROLES = ("train", "val", "test")
VALUE = "value"  # column of a numeric label (patients) or of the predicted number (predictions)
RISK = "risk"  # prediction column of survival tasks: restricted mean time lost until the horizon
MAX_CUTS = 9  # between ordered classes: one less than `labels.MAX_CLASSES`
RANKING = (
    "auroc", "auprc", "pearson", "spearman", "auroc_cuts", "c_index", "c_index_uno", "auroc_time",
    *(f"auroc_cut{cut}" for cut in range(1, MAX_CUTS + 1)),
)  # fmt: skip
GRADE = "grade"  # prediction column of ordered classes: the mean rank among them, from 0
OF_TWO_CLASSES = ("sensitivity", "specificity", "ppv", "npv")  # metrics that need a positive class
VALIDATION_SHARE = 0.2  # of the training patients of a class, unless the sheet has a split `val`
_SHOWN = 10  # patients that a message names; the rest are counted


def class_name(value: object) -> str:
    """The class name of a label value, as in `p_<class>`: `1.0`, `1` and `True` give `1`.

    Other text is unchanged; a missing value (None, NaN, empty) gives `""`.
    """
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    try:
        number = float(str(value))
    except ValueError:
        return str(value)
    return str(int(number)) if number.is_integer() else str(value)


def class_order(names: Sequence[str]) -> list[str]:
    """Distinct known classes in order: numbers by value, then text; the last is positive."""
    return sorted({n for n in names if n != ""}, key=_sort_key)


def _sort_key(name: str) -> tuple[int, float, str]:
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)


def _named(patients: Sequence[str]) -> str:
    shown = ", ".join(map(str, list(patients)[:_SHOWN]))
    rest = len(patients) - _SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


def _refuse_disagreement(slides: pd.DataFrame, column: str, why: str) -> None:
    counts = slides.groupby("patient_id")[column].nunique(dropna=True)
    if len(bad := sorted(counts.index[counts > 1])):
        raise StainsslError(
            f"{len(bad)} patient(s) have more than one value of {column!r} in the sheet:"
            f" {_named(bad)}. {why}"
        )


def patient_table(
    slides: pd.DataFrame,
    label: str | None,
    *,
    level: str,
    columns: Sequence[str] = (),
    strata: Sequence[str] = (),
    order: Sequence[str] = (),
) -> pd.DataFrame:
    """One row per patient of a task, from the rows of its sheets.

    Args:
        slides: one row per slide: `patient_id`, the label's column, `columns` and `strata`.
        label: column of the sheet; None if the label is not in the sheet (annotated tiles).
        level: `patient` (the slides of a patient must agree), `slide` or `tile` (a patient gets
            the highest class among its slides).
        columns: further columns that must have a single value per patient, such as `split`.
        strata: further columns, of which a patient's last known value is taken.
        order: the classes, lowest first; by default as in `class_order`.

    Returns:
        `patient_id`, `label` (class name; `""` if `label` is None), `columns` and `strata`,
        sorted by patient. Patients without a known label are left out; `Labels.summary` counts
        them.

    Raises:
        StainsslError: a column is missing, or a patient has two values where one is required.
    """
    for column in [*([label] if label else []), *columns, *strata]:
        if column not in slides:
            raise StainsslError(
                f"The sheet has no column {column!r}, which the task needs; it has"
                f" {', '.join(map(str, slides.columns))}. Add the column, or correct the task."
            )
    for column in columns:
        _refuse_disagreement(
            slides, column, "Its tiles would be in training and test: give each patient one value."
        )
    known = slides.assign(label=slides[label].map(class_name) if label else "")
    if label:
        known = _known_labels(known, label, level)
    rank = {name: i for i, name in enumerate(order or class_order(known["label"].tolist()))}
    known = known.assign(_rank=known["label"].map(rank)).sort_values(["patient_id", "_rank"])
    kept = [c for c in dict.fromkeys(["label", *columns, *strata]) if c != "patient_id"]
    # The last row of a patient has the highest class.
    return known.groupby("patient_id", sort=True)[kept].last().reset_index()


def _known_labels(slides: pd.DataFrame, label: str, level: str) -> pd.DataFrame:
    known = slides[slides["label"] != ""]
    if level == "patient":
        _refuse_disagreement(
            known.assign(**{label: known["label"]}),
            label,
            "A patient-level label must be the same for all slides of a patient: correct the sheet,"
            " or use 'level: slide'.",
        )
    return known


def patients_of(
    slides: pd.DataFrame,
    level: str,
    label: str,
    *,
    kind: str,
    group: str = "patient_id",
    stratify: Sequence[str] = (),
    order: Sequence[str] = (),
) -> pd.DataFrame:
    """The patients of a task with the columns that its split needs, as input of `make_folds`.

    Args:
        slides: the rows of the task's sheets.
        level: `tile`, `slide` or `patient`.
        label: column of the label.
        kind, group, stratify: keys of the split, as in `make_folds`.
        order: the classes, lowest first.

    Returns:
        As `patient_table`. `label` is `""` for all patients if it is not defined by patient: tile
        labels from annotations, a patient with patches of several classes, or slides of several
        classes where every patient has the highest one.

    Raises:
        StainsslError: a column is missing, or a patient has two values where one is required.
    """
    is_mixed = level == "tile" and (label not in slides or _has_mixed_patients(slides, label))
    in_sheet = None if is_mixed else label
    single = {"sheet": ["split"], "leave-one-out": [group]}.get(kind, [])
    single = [column for column in single if column != "patient_id"]
    strata = [c for c in stratify if c not in (label, "patient_id", *single)]
    patients = patient_table(
        slides, in_sheet, level=level, columns=single, strata=strata, order=order
    )
    if level == "slide" and patients["label"].nunique() == 1 and _has_mixed_patients(slides, label):
        patients["label"] = ""  # every patient has a slide of the highest class, and others
    return patients


def _has_mixed_patients(slides: pd.DataFrame, label: str) -> bool:
    """Whether any patient has patches or slides of several classes."""
    words = slides[label].map(class_name)
    known = words != ""
    return bool((words[known].groupby(slides.loc[known, "patient_id"]).nunique() > 1).any())


Strata = Callable[[pd.DataFrame, int], pd.DataFrame]
Check = Callable[[pd.DataFrame, int, str], None]


class SplitSettings(Protocol):
    """The keys of a task's split; the config's `Split` has them."""

    kind: Any
    folds: int
    repeats: int
    group: str
    stratify: list[str]


def ranking_problem(patients: pd.DataFrame, folds: pd.DataFrame) -> str | None:
    """Message that no fold tests patients of two classes, so that nothing is ranked, or None.

    Args:
        patients: `patient_id` and `label`; None is returned if a label is `""` (not defined by
            patient).
        folds: as returned by `make_folds`.
    """
    test = folds[folds["role"] == "test"].merge(patients[["patient_id", "label"]], on="patient_id")
    if (patients["label"] == "").any() or test.groupby(["repeat", "fold"])["label"].nunique().gt(
        1
    ).any():
        return None
    return (
        "no fold tests patients of two classes, so AUROC and AUPRC, which rank the test patients"
        " of one model, are undefined. Use 'kind: cv', another 'group', or 'metrics' that need no"
        " ranking, such as balanced_accuracy."
    )


def tested(patients: pd.DataFrame, folds: pd.DataFrame, *columns: str) -> Any:
    """Test patients with the given columns, grouped by repeat and fold.

    Args:
        patients: `patient_id` and the columns.
        folds: as returned by `make_folds`.
    """
    test = folds[folds["role"] == "test"].merge(patients[["patient_id", *columns]], on="patient_id")
    return test.groupby(["repeat", "fold"])


def fold_notes(patients: pd.DataFrame, folds: pd.DataFrame) -> list[str]:
    """Warnings about folds that test fewer than two patients of a class.

    Args:
        patients, folds: as in `ranking_problem`.
    """
    test = folds[folds["role"] == "test"].merge(patients[["patient_id", "label"]], on="patient_id")
    if (patients["label"] == "").any():
        return []
    counts = test.groupby(["repeat", "fold", "label"]).size().unstack(fill_value=0)
    few = (counts < 2).any(axis=1)
    if not few.any():
        return []
    return [
        f"{int(few.sum())} of {len(counts)} folds test fewer than two patients of a class and add"
        " little to ranking metrics. Use fewer folds, or more repeats."
    ]


def check_classes(patients: pd.DataFrame, at_least: int = 1, where: str = "the task") -> None:
    """Check that there are two classes, each with at least `at_least` patients.

    Args:
        patients: `label`; labels that are all `""` (not in the sheet) count as one valid class.
        at_least: patients per class, such as the number of folds.
        where: subject of the error message.

    Raises:
        StainsslError: one class only, or too few patients of a class; the message counts the
            patients of each class and suggests a remedy.
    """
    counts = patients["label"].value_counts()
    found = ", ".join(f"{n or 'unlabelled'}: {counts[n]}" for n in sorted(counts.index))
    if not len(patients) or (len(counts) == 1 and "" not in counts.index):
        raise StainsslError(
            f"{where} has one class only (patients by class: {found or 'none'}). A task needs"
            " patients of two classes: add labelled patients, or correct the label column."
        )
    if (least := counts.min()) < at_least:
        fewer = f"use at most {least} folds, or " if least > 1 else ""
        raise StainsslError(
            f"{where} has fewer patients than folds ({at_least}) in a class (patients by class:"
            f" {found}): {fewer}group words in 'classes', name unknown ones in 'na', or"
            " add patients."
        )


def _strata(patients: pd.DataFrame, stratify: Sequence[str], at_least: int) -> np.ndarray:
    # Label and columns if the stratum has a patient for every fold, otherwise the label alone.
    joined = patients["label"].astype(str)
    for column in stratify:
        joined = joined + "|" + patients[column].astype(str)
    sizes = joined.map(joined.value_counts())
    return np.where(sizes >= at_least, joined, patients["label"].astype(str) + "|rest")


def _validation(patients: pd.DataFrame, rng: np.random.Generator) -> set[str]:
    chosen: set[str] = set()
    for _, group in patients.groupby("label", sort=True):
        count = max(round(VALIDATION_SHARE * len(group)), 1) if len(group) > 1 else 0
        chosen.update(rng.permutation(group["patient_id"].to_numpy())[:count])
    return chosen


def _roles(
    patients: pd.DataFrame, test: set[str], val: set[str] | None, rng: np.random.Generator
) -> pd.DataFrame:
    training = patients[~patients["patient_id"].isin(test)]
    if val is None:
        val = _validation(training, rng)
    role = patients["patient_id"].map(
        lambda p: "test" if p in test else "val" if p in val else "train"
    )
    return pd.DataFrame({"patient_id": patients["patient_id"], "role": role})


def _cv(
    patients: pd.DataFrame,
    folds: int,
    stratify: Sequence[str],
    check: Check,
    rng: np.random.Generator,
) -> Iterator[pd.DataFrame]:
    check(patients, folds, "the task")
    strata = _strata(patients, [c for c in stratify if c in patients], folds)
    tested_in = stratified_folds(strata, folds, int(rng.integers(2**31)))
    for fold in range(folds):
        yield _roles(patients, set(patients["patient_id"][tested_in == fold]), None, rng)


def stratified_folds(strata: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Assign N rows to stratified test folds.

    The result equals scikit-learn's `StratifiedKFold` with `shuffle=True`, whose import takes half
    a second: as long as all other checks of a small cohort in a dry-run.

    Args:
        strata: (N,) text.
        folds: number of folds.
        seed: random seed.

    Returns:
        (N,) int, the fold that tests each row, from 0. A stratum with fewer rows than folds is
        absent from some folds.
    """
    _, first, inverse = np.unique(strata, return_index=True, return_inverse=True)
    code = np.argsort(np.argsort(first))[inverse]  # numbered by first appearance
    ordered = np.sort(code)
    rng = np.random.RandomState(seed)
    found = np.empty(len(strata), int)
    for stratum in range(len(first)):
        sizes = [np.count_nonzero(ordered[fold::folds] == stratum) for fold in range(folds)]
        places = np.repeat(np.arange(folds), sizes)
        rng.shuffle(places)
        found[code == stratum] = places
    return found


def _sheet(
    patients: pd.DataFrame, check: Check, rng: np.random.Generator
) -> Iterator[pd.DataFrame]:
    split = patients["split"].map(class_name)
    counts = dict(split.value_counts())
    if strange := sorted(set(counts) - set(ROLES)):
        raise StainsslError(
            f"Split 'sheet' reads train, val and test in the sheet's column 'split'; found"
            f" {', '.join(repr(s) for s in strange)}. Correct the sheet, or use 'kind: cv'."
        )
    if missing := [role for role in ("train", "test") if role not in counts]:
        raise StainsslError(
            f"Split 'sheet' found no labelled patient with split {' or '.join(missing)} (patients"
            f" by split: {counts or 'none'}). Correct the sheet, or use 'kind: cv'."
        )
    check(patients[split == "train"], 1, "the training split")
    val = set(patients["patient_id"][split == "val"]) or None
    yield _roles(patients, set(patients["patient_id"][split == "test"]), val, rng)


def _leave_one_out(
    patients: pd.DataFrame, group: str, check: Check, rng: np.random.Generator
) -> Iterator[pd.DataFrame]:
    values = patients[group].map(class_name)
    if (values == "").any():
        raise StainsslError(
            f"Leave-one-out by {group!r}: patient(s) without a value:"
            f" {_named(patients['patient_id'][values == ''].tolist())}. Fill the sheet's column."
        )
    if values.nunique() < 2:
        raise StainsslError(
            f"Leave-one-out by {group!r} needs at least two values, found"
            f" {', '.join(values.unique())}. Use another column, or 'kind: cv'."
        )
    for value in class_order(values.tolist()):
        rest = patients[values != value]
        check(rest, 1, f"the training part without {group}={value}")
        yield _roles(patients, set(patients["patient_id"][values == value]), None, rng)


def make_folds(
    patients: pd.DataFrame,
    *,
    kind: str,
    folds: int = 5,
    repeats: int = 1,
    group: str = "patient_id",
    stratify: Sequence[str] = (),
    check: Check = check_classes,
    seed: int = 0,
) -> pd.DataFrame:
    """Assign a role to every patient in every repeat and fold; deterministic for a given seed.

    Args:
        patients: one row per patient, as returned by `patient_table`: `patient_id`, `label`,
            `split` (kind `sheet`), the column `group` (kind `leave-one-out`) and those of
            `stratify`.
        kind: `cv` (stratified folds), `sheet` (the split in the sheet) or `leave-one-out` (each
            value of `group` is tested once).
        folds: number of folds of `cv`.
        repeats: new draws of the folds (`cv`) or of the validation patients.
        group: column of which one value at a time is left out.
        stratify: columns to balance folds by besides the label, where strata are large enough.
        check: raises an error if patients are not sufficient; called with (patients, minimum, name
            of the part).
        seed: random seed.

    Returns:
        `repeat`, `fold`, `patient_id`, `role` (train, val or test). Unless the sheet has a split
        `val`, 20 % of the training patients of each class validate.

    Raises:
        StainsslError: insufficient patients (see `check`), an unusable split or group, or a
            patient listed twice.
    """
    check(patients, 1, "the task")
    rows = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        if kind == "cv":
            made = _cv(patients, folds, stratify, check, rng)
        elif kind == "sheet":
            made = _sheet(patients, check, rng)
        else:
            made = _leave_one_out(patients, group, check, rng)
        rows += [one.assign(repeat=repeat, fold=fold) for fold, one in enumerate(made)]
    frame = pd.concat(rows, ignore_index=True)[["repeat", "fold", "patient_id", "role"]]
    check_folds(frame)
    return frame


def folds_of(
    slides: pd.DataFrame,
    level: str,
    label: str,
    split: SplitSettings,
    *,
    order: Sequence[str] = (),
    strata: Strata | None = None,
    check: Check = check_classes,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The patients of a task and their folds.

    Args:
        slides: the rows of the task's sheets, with the label as returned by `Labels.read`.
        level, label: keys of the task.
        split: `kind`, `folds`, `repeats`, `group`, `stratify`.
        order: the classes, lowest first.
        strata: sets the `label` by which folds are balanced, if that is not the class:
            `Labels.strata`.
        check: as in `make_folds`: `Labels.check_patients`.
        seed: random seed.

    Returns:
        The patients as in `patients_of` (with the columns that `strata` adds), and the folds as
        in `make_folds`.

    Raises:
        StainsslError: the sheets do not allow the split.
    """
    patients = patients_of(
        slides,
        level,
        label,
        kind=split.kind,
        group=split.group,
        stratify=split.stratify,
        order=order,
    )
    if strata is not None:
        patients = strata(patients, split.folds)
    folds = make_folds(
        patients,
        kind=split.kind,
        folds=split.folds,
        repeats=split.repeats,
        group=split.group,
        stratify=split.stratify,
        check=check,
        seed=seed,
    )
    return patients, folds


def check_folds(folds: pd.DataFrame, source: Path | str = "The folds") -> None:
    """Check that no patient has two roles in a fold.

    Args:
        folds: as returned by `make_folds`.
        source: name of the folds in the error message.

    Raises:
        StainsslError: patients listed twice in a fold, or unknown roles; the message names them.
    """
    if strange := sorted(set(folds["role"]) - set(ROLES)):
        raise StainsslError(f"{source}: unknown role(s) {strange}; known: {', '.join(ROLES)}.")
    keys = ["repeat", "fold", "patient_id"]
    if len(bad := sorted(set(folds.loc[folds.duplicated(keys, keep=False), "patient_id"]))):
        raise StainsslError(
            f"{source}: patient(s) in more than one role of one fold: {_named(bad)}. A patient"
            " in training and test is a leak: delete the file and run the stage again."
        )


def read_folds(path: Path) -> pd.DataFrame:
    """Read a `folds.csv`: `task`, `repeat`, `fold`, `patient_id` (str), `role`.

    Raises:
        StainsslError: the file is missing, a role is unknown, or a patient has two roles in a
            fold.
    """
    try:
        words = {"patient_id": str, "role": str, "task": str}
        folds = pd.read_csv(path, dtype=words, keep_default_na=False)
    except FileNotFoundError:
        raise StainsslError(f"{path} is missing: run `stainssl folds` first.") from None
    check_folds(folds, path)
    return folds


def each_fold(folds: pd.DataFrame) -> Iterator[tuple[int, int, dict[str, set[str]]]]:
    """Iterate over folds: `(repeat, fold, {role: patient_ids})`."""
    for repeat in sorted(folds["repeat"].unique()):
        for fold in sorted(folds.loc[folds["repeat"] == repeat, "fold"].unique()):
            rows = folds[(folds["repeat"] == repeat) & (folds["fold"] == fold)]
            yield (
                int(repeat),
                int(fold),
                {r: set(rows["patient_id"][rows["role"] == r]) for r in ROLES},
            )
