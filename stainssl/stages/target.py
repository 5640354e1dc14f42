"""`target`: choose the stain profiles to which an encoder's tiles are normalized."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
import torch

from stainssl import __version__
from stainssl.errors import StainsslError
from stainssl.figures.stain import target_figure
from stainssl.plan.encoders import TargetJob
from stainssl.runtime.parallel import TimeSpent
from stainssl.stain import StainProfile, TwoStain, normalize, targets
from stainssl.stain.targets import Pool
from stainssl.stores.atomic import replacing, write_text
from stainssl.stores.pixels import open_pixels

log = logging.getLogger(__name__)

# Tiles sampled for the choice, the coverage and the picture: 10,000 × 8 float32 is a third of a
# megabyte, and all pairwise distances take seconds.
SAMPLE = 10_000
COVERED = 10.0  # radius of coverage: degrees between stain vectors, or ΔE of LAB statistics
SHOWN_TARGETS, SHOWN_TILES = 5, 6


class TargetPart(NamedTuple):
    """Store of one part, with the sites and patients of its slides."""

    cohort: str
    part: str
    path: Path
    site: dict[str, str]  # slide_id → site
    patient: dict[str, str]  # slide_id → patient_id


class PartSummary(NamedTuple):
    """Summary of the tiles of one or several parts."""

    pool: Pool
    slides: frozenset[str]  # "cohort/slide_id"
    patients: frozenset[str]  # "cohort/patient_id"


def run(job: TargetJob) -> None:
    """Choose the stain target of a run and write `target.json` and `target.png`.

    Only tiles of the encoder's own training parts are used.

    Raises:
        StainsslError: the training parts have no tiles, or the fixed target was made by another
            method or from tiles on which the encoder is not trained.
    """
    sources, spent = _sources(job), TimeSpent()
    with spent.on("reading"):
        summary = reduce_parts(sources, job.normalizer, job.seed)
    _refuse_empty(summary, job)
    with spent.on("choosing"):
        content = describe(summary, job)
    with spent.on("picture"), replacing(job.picture) as made:
        picture(summary.pool, content, sources).savefig(made)
    # Written last, because it marks the stage as complete.
    write_text(job.json, json.dumps(content, indent=1) + "\n")
    log.info(
        "%s: %s target from %d tiles of %d patients; %s", job.encoder, content["policy"],
        content["pool"]["valid"], content["pool"]["patients"],
        spent.line(content["pool"]["tiles"], "tiles"),
    )  # fmt: skip


def _sources(job: TargetJob) -> list[TargetPart]:
    site, patient = {}, {}
    for name, rows in job.rows.groupby("cohort", sort=False):
        frame = rows.set_index("slide_id")
        site[name] = frame["site"].where(frame["site"] != "", name).to_dict()
        patient[name] = frame["patient_id"].to_dict()
    return [
        TargetPart(cohort, part, path, site[cohort], patient[cohort])
        for (cohort, part), path in job.pixels.items()
    ]


def reduce_parts(sources: Sequence[TargetPart], method: str, seed: int) -> PartSummary:
    """Summarise each part and merge the summaries pairwise, with dask.

    Memory: each worker reads one part at a time, at about 80 bytes per tile (26 MB for 32 slides of
    10,000 tiles). The summary of a part has sums by site and at most `SAMPLE` tiles (0.7 MB), as
    has that of two merged parts. 100 million tiles in 313 parts need about 100 MB with four
    workers, or 200 MB more if no summaries are merged before the last part is read.

    Args:
        sources: parts, at least one.
        method: normalizer of the profiles.
        seed: seed of the sample.
    """
    level = [dask.delayed(_summary)(source, method, seed) for source in sources]
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [dask.delayed(_joined)(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return _computed(level[0])


def _computed(graph: Any) -> PartSummary:
    """Compute a graph on the configured dask scheduler, or in threads if there is none."""
    address = dask.config.get("scheduler-address", None)  # DASK_SCHEDULER_ADDRESS
    if address is None:
        return graph.compute(scheduler="threads")
    from dask.distributed import Client

    with Client(address) as client:
        return client.compute(graph).result()


def _summary(source: TargetPart, method: str, seed: int) -> PartSummary:
    pixels = open_pixels(source.path)
    arrays = pixels.profile(method)
    if len(pixels) and not arrays:
        raise StainsslError(
            f"{source.path} has no {method} profiles, only {pixels.profile_methods()}: "
            "delete it and run `pixels` again."
        )
    empty = {"valid": np.zeros(0, bool)}
    pool = targets.pool(
        method,
        arrays or {**StainProfile.reference(method).batched()[:0].to_arrays(), **empty},
        slide=[f"{source.cohort}/{name}" for name in pixels.slide_id],
        site=[source.site[name] for name in pixels.slide_id],
        row=pixels.slide,
        tile=pixels.tile,
        seed=seed,
        limit=SAMPLE,
    )
    slides = frozenset(f"{source.cohort}/{name}" for name in pixels.slide_id)
    patients = frozenset(f"{source.cohort}/{source.patient[name]}" for name in pixels.slide_id)
    return PartSummary(pool, slides, patients)


def _joined(first: PartSummary, second: PartSummary) -> PartSummary:
    return PartSummary(
        targets.merged(first.pool, second.pool),
        first.slides | second.slides,
        first.patients | second.patients,
    )


def _refuse_empty(summary: PartSummary, job: TargetJob) -> None:
    if sum(summary.pool.tiles.values()) == 0:
        parts = ", ".join("/".join(part) for part in job.pixels)
        raise StainsslError(
            f"encoders.{job.encoder}: its training part ({parts}) has no tiles: see the status of "
            "its slides in the qc tables, or train on other cohorts or splits."
        )


def describe(summary: PartSummary, job: TargetJob) -> dict[str, Any]:
    """Contents of `target.json`.

    Raises:
        StainsslError: the fixed target cannot be read, or the encoder must not use it.
    """
    pool, wanted = summary.pool, job.target
    means = pool.site_means()
    candidates = _fixed(job) if wanted.policy == "fixed" else _chosen(pool, job, means)
    fallback = pool.mean()
    return {
        "schema": targets.SCHEMA,
        "version": __version__,
        "policy": wanted.policy,
        "per": wanted.per,
        "by": wanted.by,
        "normalizer": job.normalizer,
        "seed": job.seed,
        "pool": _pool_json(summary, job),
        "sites": {
            name: {
                "tiles": pool.tiles[name],
                "valid": pool.valid[name],
                "mean": targets.profile_to_json(mean),
            }
            for name, mean in means.items()
        },
        "candidates": candidates,
        "coverage": _coverage(pool, candidates),
        "fallback": targets.profile_to_json(fallback),
        "fallback_angles_deg": angles_deg(fallback, means),
    }


def _pool_json(summary: PartSummary, job: TargetJob) -> dict[str, Any]:
    return {
        "cohorts": list(job.pooled.cohorts),
        "splits": list(job.pooled.splits),
        "tiles": sum(summary.pool.tiles.values()),
        "valid": sum(summary.pool.valid.values()),
        "slides": len(summary.slides),
        "patients": len(summary.patients),
        "sampled": len(summary.pool.key),
    }


def _chosen(pool: Pool, job: TargetJob, means: Mapping[str, StainProfile]) -> list[Any]:
    wanted = job.target
    chosen = targets.choose(pool, wanted.policy, by_site=wanted.by == "site", count=wanted.count)
    profiles = pool.profiles()
    return [
        {
            "slide": str(pool.slide[i]),
            "tile": int(pool.tile[i]),
            "site": str(pool.site[i]),
            "profile": targets.profile_to_json(profiles[i]),
            "coordinates": profiles[i].coordinates().tolist(),
            "angles_deg": angles_deg(profiles[i], means),
        }
        for i in chosen
    ]


def angles_deg(profile: StainProfile, means: Mapping[str, StainProfile]) -> dict[str, Any]:
    """Angles in degrees between a profile and the mean of each site (site → angles).

    The angles are those of both stain vectors, or for LAB statistics that of the hue (the direction
    of the mean a and b).
    """
    return {site: _angle(profile, mean) for site, mean in means.items()}


def _angle(one: StainProfile, other: StainProfile) -> dict[str, float]:
    if isinstance(one, TwoStain) and isinstance(other, TwoStain):
        cosine = (one.matrix * other.matrix).sum(-1).clamp(-1, 1)
        h, e = torch.rad2deg(cosine.double().acos()).tolist()
        return {"hematoxylin": round(h, 3), "eosin": round(e, 3)}
    a, b = (p.tensors["mean"][1:] for p in (one, other))
    turn = torch.atan2(a[1], a[0]) - torch.atan2(b[1], b[0])
    return {"hue": round(abs(float(torch.rad2deg(torch.atan2(turn.sin(), turn.cos())))), 3)}


def _coverage(pool: Pool, candidates: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Distances of the sampled tiles from the nearest candidate; 0 without candidates (`batch`)."""
    if not len(pool.key):
        return None
    points = pool.profiles().coordinates()
    chosen = [targets.profile_from_json(c["profile"]) for c in candidates]
    near = StainProfile.cat(chosen).coordinates() if chosen else points
    distance = targets.nearest_distance(points, near)
    return {
        "radius": COVERED,
        "share_within_radius": round(float((distance <= COVERED).float().mean()), 4),
        "median_distance": round(float(distance.median()), 3),
        "largest_distance": round(float(distance.max()), 3),
    }


def _fixed(job: TargetJob) -> list[Any]:
    """Read the candidates of a fixed target from its file."""
    path, where = job.target.path, f"encoders.{job.encoder}.target.path"
    if path is None:
        raise StainsslError(f"{where} is missing: give the target.json to use.")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        targets.load(content)
    except FileNotFoundError:
        raise StainsslError(f"{where}: {path} does not exist.") from None
    except (ValueError, KeyError) as error:
        raise StainsslError(f"{where}: {path} is not a stain target: {error}") from None
    _refuse_leak(content, job, where)
    fallback = {"site": "", "profile": content["fallback"]}
    return content["candidates"] or [fallback]


def _refuse_leak(content: Mapping[str, Any], job: TargetJob, where: str) -> None:
    if content["fallback"]["method"] != job.normalizer:
        raise StainsslError(
            f"{where} is a target for {content['fallback']['method']}, the encoder's normalizer is "
            f"{job.normalizer}: choose a target of the same method."
        )
    for key, allowed in (("cohorts", job.train.cohorts), ("splits", job.train.splits)):
        if foreign := sorted(set(content["pool"][key]) - set(allowed)):
            raise StainsslError(
                f"{where} was chosen from {key} {foreign}, which the encoder is not trained on "
                f"({', '.join(allowed)}): that would leak the stain of other tiles."
            )


def picture(pool: Pool, content: Mapping[str, Any], sources: Sequence[TargetPart]) -> Any:
    """Draw the figure of `target.png`."""
    profiles = pool.profiles()
    sites = {name: profiles[_rows(pool, name)] for name in sorted(set(pool.site))}
    means = pool.site_means()
    shown = _shown_targets(content, means)
    all_targets = [targets.profile_from_json(c["profile"]) for c in content["candidates"]]
    marked = StainProfile.cat(all_targets or [*shown.values()])
    examples = _examples(pool, means)
    strip = _strip(pool, examples, shown, sources)
    name = "target" if all_targets else "mean of a site, and of all"
    return target_figure(sites, marked, strip, _title(content), name)


def _rows(pool: Pool, site: str) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(pool.site == site))


def _title(content: Mapping[str, Any]) -> str:
    pool, coverage = content["pool"], content["coverage"]
    count = len(content["candidates"])
    drawn = f"{count} candidate{'s' * (count > 1)}" if count else "any valid tile of the batch"
    by = " of each site" if content["policy"] == "medoid" and content["by"] == "site" else ""
    title = (
        f"Target: {content['policy']}{by} per {content['per']} ({content['normalizer']}), {drawn}; "
        f"pool of {pool['valid']} valid tiles, {pool['patients']} patients"
    )
    if content["candidates"] and coverage:
        title += f";\n{coverage['share_within_radius']:.0%} within {COVERED:g} units of a target"
    return title


def _shown_targets(
    content: Mapping[str, Any], means: Mapping[str, StainProfile]
) -> dict[str, StainProfile]:
    """Targets shown in the strip: candidates, or the means of sites and the pooled mean."""
    candidates = content["candidates"]
    if not candidates:
        few = dict(list(means.items())[: SHOWN_TARGETS - 1])
        shown = {f"to mean of {site}": mean for site, mean in few.items()}
        return shown | {"to pooled mean": targets.profile_from_json(content["fallback"])}
    step = max(1, len(candidates) // SHOWN_TARGETS)
    return {
        f"to target {i + 1}\n({candidates[i]['site'] or 'pooled'})": targets.profile_from_json(
            candidates[i]["profile"]
        )
        for i in range(0, len(candidates), step)[:SHOWN_TARGETS]
    }


def _examples(pool: Pool, means: Mapping[str, StainProfile]) -> list[int]:
    """Indices of sampled tiles nearest to the mean of their site, from all sites in turn."""
    points = pool.profiles().coordinates()
    nearest = []
    for site, mean in means.items():
        rows = _rows(pool, site)
        distance = (points[rows] - mean.coordinates()).norm(dim=1)
        nearest.append(rows[distance.argsort()[:SHOWN_TILES]])
    turns = [int(rows[i]) for i in range(SHOWN_TILES) for rows in nearest if i < len(rows)]
    return sorted(turns[:SHOWN_TILES], key=lambda i: str(pool.site[i]))


def _strip(
    pool: Pool,
    examples: Sequence[int],
    shown: Mapping[str, StainProfile],
    sources: Sequence[TargetPart],
) -> tuple[np.ndarray, list[str], dict[str, np.ndarray]]:
    images = [_image(pool, i, sources) for i in examples]
    if not images:
        return np.zeros((0, 1, 1, 3), np.uint8), [], {}
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    own = pool.profiles()[list(examples)]
    done = {
        name: normalize(batch, own, target).permute(0, 2, 3, 1).numpy()
        for name, target in shown.items()
    }
    return np.stack(images), [str(pool.site[i]) for i in examples], done


def _image(pool: Pool, index: int, sources: Sequence[TargetPart]) -> np.ndarray:
    """Read one sampled tile: (H, W, 3) uint8."""
    cohort, slide = str(pool.slide[index]).split("/", 1)
    for source in sources:
        if source.cohort != cohort:
            continue
        pixels = open_pixels(source.path)
        if slide in pixels.slide_id:
            mine = pixels.slide == pixels.slide_id.index(slide)
            return pixels.images(np.flatnonzero(mine & (pixels.tile == pool.tile[index])))[0]
    raise StainsslError(f"slide {pool.slide[index]!r} has no stored pixels in its cohort")
