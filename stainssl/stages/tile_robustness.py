"""`robustness --weights --tiles`: measure the robustness of encoders on a folder of tiles."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from stainssl.cohort.encoder_checks import source_problems
from stainssl.cohort.encoder_warnings import download_problem, is_trained_scale, memory_problem
from stainssl.encoders import recipes
from stainssl.encoders.listing import described
from stainssl.encoders.loading import load
from stainssl.errors import StainsslError, translate_disk_errors
from stainssl.evaluation.probe import balanced_sample
from stainssl.evaluation.robustness import measure_unlabelled
from stainssl.evaluation.same_tile import across_sites, shared_tiles, tile_indices
from stainssl.evaluation.site_effects import robustness_indices, shared_site_probe
from stainssl.evaluation.stainings import MetricRow, Stainings
from stainssl.evaluation.tile_table import to_markdown
from stainssl.figures.tile_robustness import tile_robustness
from stainssl.runtime.devices import reserve_device
from stainssl.slides.tile_folder import TileFolder, check_tiles, find_tiles, read_tile
from stainssl.stages.robustness import (
    Encode,
    embed_stainings,
    embedded,
    farthest,
    in_batches,
    pooled_profiles,
    restain,
)
from stainssl.stain import StainProfile
from stainssl.stain.profile import FAMILIES
from stainssl.stores.atomic import replacing, write_text

MIN_TILES = 20  # among fewer tiles, retrieval succeeds by chance
SHOWN, SITES_SHOWN = 6, 9  # tiles and sites in the picture
COLOR = "color alone"
RESULTS = TABLE, PAGE, PICTURE = "metrics.csv", "robustness.md", "robustness.png"
PUBLISHED = "the published reference"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TileOptions:
    """Options of the measurement.

    Attributes:
        weights: encoders, as accepted by `encoders.loading.load`.
        tiles: folder of tile images.
        out: output folder.
        levels: meaning of each level of sub-folders; None: the first is the site, if there are
            any.
        paired: whether tiles with the same name at several sites show the same tissue.
        mpp: µm/px of the tiles, to warn about an unsuitable encoder; None: unknown.
        method: method by which tiles are re-stained.
        max_tiles: largest number of tiles that are compared.
        seed: seed of the choice of tiles and of resampling.
    """

    weights: Sequence[str]
    tiles: Path
    out: Path
    levels: Sequence[str] | None = None
    paired: bool = False
    mpp: float | None = None
    method: str = "reinhard"
    max_tiles: int = 500
    seed: int = 0


@dataclass(frozen=True)
class FileSample:
    """N tiles in image files of equal size. See `robustness.ComparedTiles`."""

    root: Path
    table: pd.DataFrame

    def batches(self, use: NDArray[np.bool_] | None = None) -> Iterator[torch.Tensor]:
        """See `robustness.ComparedTiles`."""
        rows = np.arange(len(self.table)) if use is None else np.flatnonzero(use)
        paths = self.table["path"].tolist()
        return in_batches(rows, lambda row: read_tile(self.root / paths[row]))


def run(asked: TileOptions) -> Iterator[str]:
    """Measure the robustness of encoders on a folder of tiles, which need no labels.

    Writes `metrics.csv`, `robustness.md` and `robustness.png` to `asked.out`.

    Yields:
        The lines of the page.

    Raises:
        StainsslError: weights cannot be loaded, or the folder does not have enough tiles of one
            size with a valid stain profile.
    """
    _check(asked)
    folder = find_tiles(asked.tiles, asked.levels, without=[asked.out / n for n in RESULTS])
    sample, side, notes = _sample(folder, asked)
    notes += [s for source in asked.weights for s in _unlike(source, asked.mpp, side)]
    comparison = _real(sample, asked) if asked.paired else _restained(sample, asked)
    notes.append(comparison.told)
    figures = []
    for name in [*dict.fromkeys(asked.weights), COLOR]:
        encode, about = _encoder(name, None if asked.paired else asked.method)
        notes += about
        found = comparison.measure(_counting(encode, comparison.passes * len(sample.table)))
        figures.append(pd.DataFrame(found, columns=MetricRow._fields).assign(encoder=name))
    table = pd.concat(figures, ignore_index=True)[["encoder", *MetricRow._fields]]
    notes += _left_out(table, sample.table, asked)
    page = to_markdown(table, f"Robustness to stain on {asked.tiles}", notes)
    _write(asked.out, comparison, table, page)
    yield from page.splitlines()
    yield f"wrote {', '.join(RESULTS)} in {asked.out}"


def _check(asked: TileOptions) -> None:
    """Check the options before any tile is read."""
    problems = [f"{source}: {told}" for source in asked.weights for told in _of_weights(source)]
    if asked.method not in FAMILIES:
        problems.append(f"--stain-method {asked.method!r} is none of {', '.join(FAMILIES)}.")
    if asked.max_tiles < MIN_TILES:
        problems.append(f"--max-tiles {asked.max_tiles}: at least {MIN_TILES} are compared.")
    if problems:
        raise StainsslError("\n".join(problems))
    for sentence in (told for s in asked.weights if (told := memory_problem(s))):
        log.warning("%s", sentence)


def _of_weights(source: str) -> list[str]:
    if found := list(source_problems(source)):
        return found
    return [told] if (told := download_problem(source)) else []


def _sample(folder: TileFolder, asked: TileOptions) -> tuple[FileSample, int, list[str]]:
    """The tiles that are compared, their side in px, and notes for the page."""
    chosen = _paired(folder, asked) if asked.paired else _chosen(folder.table, asked)
    side, unread = check_tiles(folder.root, chosen["path"].tolist())
    table = chosen[~chosen["path"].isin(unread)]
    if asked.paired:
        lost = chosen.loc[chosen["path"].isin(unread), "name"]
        table = table[~table["name"].isin(lost)]
    count = table["name"].nunique() if asked.paired else len(table)
    if count < MIN_TILES:
        raise StainsslError(
            f"{folder.root}: {count} tiles can be compared{_of_unread(unread)}; at least"
            f" {MIN_TILES} are needed, some hundreds are better."
        )
    notes = [_told_of(folder, table, side), *_passed_over(folder, unread)]
    if not (table["patient_id"] != "").any():
        notes.append(
            "No patients are given (--folders site/patient), so every tile counts as a patient: if"
            " tiles share a slide, intervals are too narrow and site predictability is too high."
        )
        table = table.assign(patient_id=table["name"] if asked.paired else table["path"])
    table = table.assign(slide_id=table["patient_id"], tile=np.arange(len(table)))
    return FileSample(folder.root, table.reset_index(drop=True)), side, notes


def _chosen(table: pd.DataFrame, asked: TileOptions) -> pd.DataFrame:
    """Sample at most `asked.max_tiles` tiles, evenly over patients, or over sites if unknown."""
    key = "patient_id" if (table["patient_id"] != "").any() else "site"
    rng = np.random.default_rng(asked.seed)
    return table.iloc[balanced_sample(table[key].to_numpy(str), asked.max_tiles, rng)]


def _paired(folder: TileFolder, asked: TileOptions) -> pd.DataFrame:
    """Sample tiles whose names occur at every site, the same names at each site."""
    table = folder.table
    sites = table.loc[table["site"] != "", "site"].nunique()
    if sites < 2:
        raise StainsslError(
            f"--paired compares tiles of the same name between sites, and {folder.root} has"
            f" {sites}: use one sub-folder per site."
        )
    if (twice := table.duplicated(["site", "name"])).any():
        raise StainsslError(
            f"--paired: {int(twice.sum())} names occur twice at a site, such as"
            f" {table['path'][twice].iloc[0]}."
        )
    rows = shared_tiles(table)
    if not (shared := len(next(iter(rows.values())))):
        raise StainsslError(f"--paired: all {sites} sites of {folder.root} share no file name.")
    count = min(shared, max(1, asked.max_tiles // sites))
    picked = np.random.default_rng(asked.seed).permutation(shared)[:count]
    log.info("%d tile names are common to all %d sites", shared, sites)
    return table.iloc[np.sort(np.concatenate([of[picked] for of in rows.values()]))]


def _of_unread(unread: dict[str, str]) -> str:
    if not unread:
        return ""
    path, reason = next(iter(unread.items()))
    return f" ({len(unread)} cannot be read, such as {path}: {reason})"


def _told_of(folder: TileFolder, table: pd.DataFrame, side: int) -> str:
    told = f"{len(table)} of {len(folder.table)} tiles of {side}×{side} px"
    for column, word in (("patient_id", "patients"), ("label", "labels")):
        if count := table.loc[table[column] != "", column].nunique():
            told += f", {count} {word}"
    sites = table.loc[table["site"] != "", "site"].value_counts(sort=False)
    if not len(sites):
        return f"{told}; no sites."
    taken = "" if len(folder.levels) > 1 else " (the sub-folders; change with --folders)"
    return f"{told}; sites{taken}: " + ", ".join(f"{s} {n}" for s, n in sites.items()) + "."


def _passed_over(folder: TileFolder, unread: dict[str, str]) -> Iterator[str]:
    if folder.others:
        others = ", ".join(f"{n} {ending}" for ending, n in folder.others.most_common())
        yield f"Files ignored, not images: {others}."
    if unread:
        yield f"Tiles left out{_of_unread(unread)}."


def _unlike(source: str, mpp: float | None, side: int) -> Iterator[str]:
    """Warnings if scale or size of the tiles differs from the encoder's training."""
    if (found := recipes.find(source)) is None or not found[1].mpp:
        return
    name, recipe, _ = found
    if mpp is not None and not is_trained_scale(mpp, recipe.mpp):
        trained = ", ".join(f"{one:g}" for one in recipe.mpp)
        yield f"{name} was trained at {trained} µm/px, and these tiles have {mpp:g}."
    if side not in recipe.tile_sizes:
        yield (
            f"{name} was trained on tiles of {recipe.tile_px} px; these of {side} px are resized to"
            f" {recipe.resize_px or recipe.input_px} px, which changes their scale."
        )


@dataclass(frozen=True)
class Comparison:
    """A comparison: tiles with themselves re-stained, or the same tissue at several sites.

    Attributes:
        told: description for the page.
        passes: number of times each tile is embedded.
        measure: computes the metrics of an encoder.
        rows: rows of the picture (title → (n, H, W, 3) uint8 tiles).
        names: titles of the n columns.
    """

    told: str
    passes: int
    measure: Callable[[Encode], list[MetricRow]]
    rows: dict[str, NDArray[np.uint8]]
    names: list[str]


def _restained(sample: FileSample, asked: TileOptions) -> Comparison:
    targets, told = _targets(sample, asked.method)
    first, second = targets.values()

    def measure(encode: Encode) -> list[MetricRow]:
        stainings = embed_stainings(sample, encode, (first, second))
        both = np.concatenate([stainings.first, stainings.second])
        table = pd.concat([sample.table.assign(stain=stain) for stain in targets])
        return [
            *measure_unlabelled(stainings, seed=asked.seed),
            *tile_indices(both, table.assign(name=table["path"]), asked.seed),
            *_by_label(stainings, asked.seed),
        ]

    shown = np.zeros(len(sample.table), bool)
    shown[np.linspace(0, len(shown) - 1, SHOWN).round().astype(int)] = True
    images = torch.cat(list(sample.batches(shown)))
    rows = {"original": images} | {n: restain(images, p) for n, p in targets.items()}
    pictures = {name: tiles.permute(0, 2, 3, 1).numpy() for name, tiles in rows.items()}
    return Comparison(told, 3, measure, pictures, sample.table.loc[shown, "site"].tolist())


def _real(sample: FileSample, asked: TileOptions) -> Comparison:
    table = sample.table.assign(stain=sample.table["site"])

    def measure(encode: Encode) -> list[MetricRow]:
        vectors = embedded(sample, encode)
        as_they_are = Stainings(vectors, vectors, vectors, table)
        return [
            *across_sites(vectors, table, asked.seed),
            *tile_indices(vectors, table, asked.seed),
            *shared_site_probe(as_they_are, asked.seed),
            *_by_label(as_they_are, asked.seed),
        ]

    names = sorted(table["name"].unique())[:SHOWN]
    rows = {}
    for site in sorted(table["site"].unique())[:SITES_SHOWN]:
        shown = ((table["site"] == site) & table["name"].isin(names)).to_numpy()
        rows[site] = torch.cat(list(sample.batches(shown))).permute(0, 2, 3, 1).numpy()
    told = f"The same tissue at {table['site'].nunique()} sites: {table['name'].nunique()} tiles."
    return Comparison(told, 1, measure, rows, [""] * len(names))


def _by_label(stainings: Stainings, seed: int) -> Iterator[MetricRow]:
    if (stainings.table["label"] != "").any():
        yield from robustness_indices(stainings, seed)


def _targets(sample: FileSample, method: str) -> tuple[dict[str, StainProfile], str]:
    """Choose two stainings to which tiles are re-stained (name → profile), and describe them.

    They are the mean profiles of the two most different sites or, with fewer than two sites, the
    mean profile of all tiles and the published reference.
    """
    everything = np.ones(len(sample.table), bool)
    by_site = pooled_profiles(sample, everything, "site", method)
    if not by_site:
        raise StainsslError(
            f"{sample.root}: no tile has enough tissue, or two stains, for a {method} profile:"
            " are these H&E tiles?"
        )
    if len(by_site) > 1:
        names = farthest(by_site)
        found = {f"as site {name}": by_site[name] for name in names}
    else:
        own = next(iter(by_site.values()))
        found = {"as their mean": own, f"as {PUBLISHED}": StainProfile.reference(method)}
    first, second = (profile.coordinates() for profile in found.values())
    unit = "ΔE" if method == "reinhard" else "degrees of their stain vectors"
    return found, (
        f"Re-stained by {method}, {' and '.join(found)}: {float((first - second).norm()):.1f}"
        f" {unit} apart."
    )


def _encoder(name: str, method: str | None) -> tuple[Encode, list[str]]:
    """Load an encoder and describe its weights; `method` is that of re-staining, if any."""
    if name == COLOR:
        told = f"{COLOR}: mean, deviation and covariances of R, G and B, as a yardstick."
        return color_vectors, [told]
    loaded = load(name, reserve_device())
    about = [f"seen at {loaded.input_size} px", f"SHA-256 {loaded.weights_sha256[:12]}"]
    recorded = described(name)
    about += [f"{key} {recorded[key]}" for key in ("revision", "license") if recorded.get(key)]
    sentences = [f"Weights of {name}: {', '.join(about)}."]
    if loaded.stain_profile is not None and loaded.stain_profile.method == method:
        sentences.append(
            f"{name} normalizes tiles by {method} itself, which undoes the re-staining: use another"
            " method (--stain-method)."
        )
    return loaded, sentences


def color_vectors(images: torch.Tensor) -> torch.Tensor:
    """Color statistics as embeddings: mean, standard deviation and covariances of R, G and B.

    Args:
        images: (B, 3, H, W) uint8 tiles.

    Returns:
        (B, 9) float32.
    """
    pixels = images.float().div(255).flatten(2)
    centred = pixels - pixels.mean(2, keepdim=True)
    covariance = centred @ centred.transpose(1, 2) / pixels.shape[2]
    spread = covariance.diagonal(dim1=1, dim2=2).sqrt()
    return torch.cat([pixels.mean(2), spread, covariance[:, [0, 0, 1], [1, 2, 2]]], 1)


def _counting(encode: Encode, total: int) -> Encode:
    """Wrap an encoder to log progress every ten seconds."""
    done, said = 0, time.monotonic()

    def counted(images: torch.Tensor) -> torch.Tensor:
        nonlocal done, said
        vectors = encode(images)
        done += len(images)
        if time.monotonic() - said > 10:
            said = time.monotonic()
            log.info("%d of %d tiles, re-stained ones included", done, total)
        return vectors

    return counted


def _left_out(figures: pd.DataFrame, table: pd.DataFrame, asked: TileOptions) -> Iterator[str]:
    """Notes on metrics that could not be computed, with the reason."""
    found = set(figures["metric"])
    if "site_predictability" not in found:
        yield "No site predictability: needs two sites with three patients (or tiles) each."
    if "croma" not in found:
        why = (
            "needs two labels that each occur at two sites"
            if (table["label"] != "").any()
            else "needs labels (--folders site/label)"
        )
        yield f"No CRoMa or robustness index of labels against sites: {why}."
    if not asked.paired:
        yield "No comparison of the same tissue between sites: needs --paired and equal file names."


def _write(out: Path, comparison: Comparison, figures: pd.DataFrame, page: str) -> None:
    picture = tile_robustness(comparison.rows, comparison.names, figures, COLOR)
    with translate_disk_errors(out):
        write_text(out / TABLE, figures.to_csv(index=False))
        write_text(out / PAGE, page)
        with replacing(out / PICTURE) as made:
            picture.savefig(made)
