"""Plan of the synthetic cohort: its slides with labels, stain and faults, before rendering."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from stainssl.demo.sites import Site, site

PATIENTS: Mapping[str, int] = {"a": 10, "b": 10, "c": 12}
TRAIN_SITES = ("a", "b")
COLUMNS = [
    "slide_id", "patient_id", "path", "site", "split", "her2", "response",
    "tils", "til_group", "months", "relapse",
]  # fmt: skip
# Every fifth patient of a site has a second slide.
TWO_SLIDES_EVERY = 5
# Share of patients positive for her2 (and, drawn independently, for response), and range of the
# share of tumour in the tissue. Training sites differ; test sites lie between them.
POSITIVE_SHARE = {"a": 0.7, "b": 0.3}
TUMOUR_SHARE = {"a": (0.40, 0.75), "b": (0.10, 0.40)}
POSITIVE_SHARE_TEST = 0.5
TUMOUR_SHARE_TEST = (0.12, 0.68)
# Change of ln(stain strength) per unit of the slide's rank in tumour share within its site (-1 to
# 1): positive at training sites, negative at test sites.
STAIN_WITH_TUMOUR = 0.25
STAIN_JITTER = 0.06
VECTOR_JITTER = 0.012
WHITE_JITTER = 1.5
LYMPHOCYTES_IN_TUMOUR = (0.06, 0.35)  # share of the nuclear area in tumour, by response
TIL_GROUPS = {"low": 0.0, "middle": 2.0, "high": 15.0}  # group → its minimum of `tils`, ascending
# Time to relapse is exponential; its hazard per month decreases with the patient's mean `tils`.
# The end of follow-up is uniform over its range.
HAZARD, HAZARD_PER_LN_TILS, USUAL_TILS = 1 / 40, -0.9, 5.0
FOLLOW_UP_MONTHS = (12.0, 72.0)
FAULTS = {"a": "truncated", "b": "empty", "c": "no-mpp"}
ARTEFACTS = {"a": "pen", "b": "out-of-focus", "c": "pen"}


@dataclass(frozen=True)
class SlidePlan:
    """Properties of one slide before it is rendered.

    Attributes:
        her2, response: labels of the patient, 0 or 1.
        tumour_share: share of the tissue that is tumour, 0 to 1.
        site_parameters: stain and scanner of the site, with the random variation of this slide.
        fault: "", "truncated", "empty" or "no-mpp".
        artefact: "", "pen" or "out-of-focus".
    """

    slide_id: str
    patient_id: str
    site: str
    her2: int
    response: int
    tumour_share: float
    site_parameters: Site
    fault: str = ""
    artefact: str = ""

    @property
    def tils(self) -> float:
        """Planned share of lymphocytes in tumour, in % of the nuclear area of the tissue."""
        return 100 * LYMPHOCYTES_IN_TUMOUR[self.response] * self.tumour_share

    @property
    def til_group(self) -> str:
        """Highest group of `TIL_GROUPS` whose minimum `tils` reaches."""
        return [name for name, least in TIL_GROUPS.items() if self.tils >= least][-1]

    @property
    def split(self) -> str:
        """`train` for slides of the training sites, `test` for all others."""
        return "train" if self.site in TRAIN_SITES else "test"

    def rng(self, seed: int, purpose: str) -> np.random.Generator:
        """Return a random generator of this slide, independent for each purpose."""
        return np.random.default_rng([seed, zlib.crc32(f"{self.slide_id}/{purpose}".encode())])


def _check(patients: Mapping[str, int]) -> None:
    for name, count in patients.items():
        if not re.fullmatch(r"[a-z][a-z0-9]*", name) or not 1 <= count <= 999:
            raise ValueError(
                f"demo patients: {name!r}: {count!r}; a site is a small letter followed by letters "
                "or digits, with 1 to 999 patients, for example {a: 10, b: 10, c: 12}"
            )


def _exact_share(rng: np.random.Generator, count: int, share: float) -> np.ndarray:
    """(count,) int of 0 and 1 in random order; the number of ones is `count * share`, rounded."""
    label = np.zeros(count, int)
    label[: int(np.floor(count * share + 0.5))] = 1
    return rng.permutation(label)


def _stained(rng: np.random.Generator, base: Site, log_strength: float) -> Site:
    """Parameters of a site with the random variation of one slide.

    Args:
        rng: random generator.
        base: parameters of the site.
        log_strength: mean change of ln(stain strength).
    """

    def turned(vector: tuple[float, ...]) -> Any:
        moved = np.asarray(vector) + rng.normal(0, VECTOR_JITTER, 3)
        return tuple((moved / np.linalg.norm(moved)).tolist())

    strength = np.asarray(base.strength) * np.exp(log_strength + rng.normal(0, STAIN_JITTER, 2))
    white = np.minimum(np.asarray(base.white) + rng.normal(0, WHITE_JITTER, 3), 255.0)
    return replace(
        base,
        hematoxylin=turned(base.hematoxylin),
        eosin=turned(base.eosin),
        strength=tuple(strength.tolist()),
        white=tuple(white.tolist()),
    )


def _slides_of_patients(name: str, count: int) -> list[tuple[str, int, int, str, str]]:
    """(slide_id, patient, number, fault, artefact) of each slide of a site."""
    rows = []
    for patient in range(count):
        numbers = 2 if patient % TWO_SLIDES_EVERY == 0 else 1
        for number in range(1, numbers + 1):
            artefact = (
                ARTEFACTS.get(name, "") if (patient, number) == (min(2, count - 1), 1) else ""
            )
            rows.append((f"{name}-{patient + 1:03d}-{number}", patient, number, "", artefact))
        # The faulty slide is an additional one of a patient with a good slide.
        if patient == min(1, count - 1) and name in FAULTS:
            number = numbers + 1
            rows.append((f"{name}-{patient + 1:03d}-{number}", patient, number, FAULTS[name], ""))
    return rows


def _plan_site(seed: int, name: str, count: int) -> list[SlidePlan]:
    rng = np.random.default_rng([seed, 1, *name.encode()])
    base = site(name, seed)
    her2, response = (
        _exact_share(rng, count, POSITIVE_SHARE.get(name, POSITIVE_SHARE_TEST)) for _ in range(2)
    )
    rows = _slides_of_patients(name, count)
    rank = (rng.permutation(len(rows)) + rng.uniform(0, 1, len(rows))) / len(rows)
    low, high = TUMOUR_SHARE.get(name, TUMOUR_SHARE_TEST)
    way = 1.0 if name in TRAIN_SITES else -1.0
    return [
        SlidePlan(
            slide_id=slide_id,
            patient_id=f"{name}-{patient + 1:03d}",
            site=name,
            her2=int(her2[patient]),
            response=int(response[patient]),
            tumour_share=float(low + (high - low) * u),
            site_parameters=_stained(rng, base, way * STAIN_WITH_TUMOUR * (2 * u - 1)),
            fault=fault,
            artefact=artefact,
        )
        for (slide_id, patient, _, fault, artefact), u in zip(rows, rank, strict=True)
    ]


def plan(seed: int, patients: Mapping[str, int] = PATIENTS) -> list[SlidePlan]:
    """List the slides of the cohort, by site, patient and slide.

    Raises:
        ValueError: a site's name or number of patients is invalid.
    """
    _check(patients)
    return [one for name in sorted(patients) for one in _plan_site(seed, name, patients[name])]


def hazards(slides: Sequence[SlidePlan]) -> dict[str, float]:
    """Patient → true hazard of relapse per month, from the mean `tils` of the patient's slides."""
    tils: dict[str, list[float]] = {}
    for one in slides:
        tils.setdefault(one.patient_id, []).append(one.tils)
    return {
        who: HAZARD * float((np.mean(values) / USUAL_TILS) ** HAZARD_PER_LN_TILS)
        for who, values in tils.items()
    }


def _follow_ups(seed: int, hazard: Mapping[str, float]) -> dict[str, tuple[float, int]]:
    """Patient → months to relapse or to the end of follow-up, and 1 for relapse, 0 censored."""
    found = {}
    for who, rate in hazard.items():
        rng = np.random.default_rng([seed, 2, *who.encode()])
        relapse, end = rng.exponential(1 / rate), rng.uniform(*FOLLOW_UP_MONTHS)
        found[who] = (round(max(min(relapse, end), 0.1), 1), int(relapse <= end))
    return found


def sheet(seed: int = 0, patients: Mapping[str, int] = PATIENTS) -> pd.DataFrame:
    """Return the sheet of the cohort, without rendering any slide.

    Returns:
        One row per slide: `slide_id`, `patient_id`, `path` (relative to the cohort's root),
        `site`, `split` (`train` for sites a and b, `test` for all others), `her2`, `response` (0
        or 1), `tils` and `til_group` (of the slide, see `SlidePlan`), `months`, and `relapse` (0:
        censored).
    """
    slides = plan(seed, patients)
    followed = _follow_ups(seed, hazards(slides))
    rows = [
        (
            s.slide_id, s.patient_id, f"slides/{s.slide_id}.svs", s.site, s.split, s.her2,
            s.response, round(s.tils, 2), s.til_group, *followed[s.patient_id],
        )
        for s in slides
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)
