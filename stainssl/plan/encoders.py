"""Jobs on encoders: `target`, `pretrain`, `embed`, `embedded`, `robustness`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stainssl.cohort import PART, part_names, part_rows, parts, read_sheet, train_parts
from stainssl.config import EACH, REFERENCE, Config, Encoder, Run, TargetSettings, Task, Train
from stainssl.encoders.weights import LOCAL, SAMPLES, identity
from stainssl.errors import StainsslError
from stainssl.evaluation.kinds import labels_of
from stainssl.export.source import feature_files
from stainssl.plan.job import Includes, Job, Reads, Resource, Setting, Writes
from stainssl.plan.rows import Part, columns_of, parts_of, rows_of
from stainssl.plan.slides import PixelsJob
from stainssl.plan.slides import pixels as pixels_job
from stainssl.runtime.content import content_key


def without_unused_keys(encoder: Encoder) -> Encoder:
    """Return an encoder trained here with all keys that have no effect on it at their defaults.

    A changed temperature that no loss uses then retrains nothing, and a stage that receives this
    encoder cannot read such a key.
    """
    idle = {"seeds", "frozen", "recipe", "revision"}  # the last two are in `init_identity`
    idle |= {"compile"}  # affects embedding only
    if not encoder.is_trained:
        idle |= set(Encoder.model_fields) - {"method", "backbone", "input_size", "tiling"}
        return _without(encoder, idle)
    if encoder.loss != "nt-xent":
        idle |= {"temperature", "queue"}
    if not encoder.needs_target:
        idle |= {"target", "normalizer"}
    if encoder.method != "stain-invariant":
        idle |= {"views", "stain_probability"}
    if encoder.stain_jitter == "none":
        idle |= {"stain_jitter_strength"}
    if encoder.tune != "lora":
        idle |= {"lora"}
    kept = encoder.model_copy(update={"target": target_without_unused_keys(encoder.target)})
    return _without(kept, idle)


def target_without_unused_keys(target: TargetSettings) -> TargetSettings:
    """Return a target with all keys that its policy does not use at their defaults.

    The cohorts and splits of candidate tiles are a setting of their own, `TargetJob.pooled`.
    """
    used = {"medoid": {"by"}, "spread": {"count"}, "fixed": {"path"}}.get(target.policy, set())
    default = TargetSettings()
    idle = {
        key: getattr(default, key) for key in {"by", "count", "path", "cohorts", "splits"} - used
    }
    return target.model_copy(update=idle)


def _without(encoder: Encoder, keys: set[str]) -> Encoder:
    fields = Encoder.model_fields
    return encoder.model_copy(
        update={key: fields[key].get_default(call_default_factory=True) for key in keys}
    )


def _pooled(encoder: Encoder) -> Train:
    """Cohorts and splits of the candidate tiles for a target: those of training, or fewer."""
    assert encoder.train is not None
    return Train(
        cohorts=encoder.target.cohorts or encoder.train.cohorts,
        splits=encoder.target.splits or encoder.train.splits,
    )


def _trained_run(config: Config, name: str) -> Run:
    run = config.run(name)
    if run.encoder.method is None:
        raise StainsslError(f"encoders.{run.key} is not trained here and has no stain target.")
    return run


def training_slides(config: Config, run: Run) -> set[tuple[str, str]]:
    """Return (cohort, slide) of all slides in the training parts of a run."""
    found = set(train_parts(config, run.encoder))
    return {
        (cohort, slide)
        for cohort in {cohort for cohort, _ in found}
        for part, rows in parts(config, cohort).items()
        if (cohort, part) in found
        for slide in rows["slide_id"]
    }


@dataclass(frozen=True)
class TargetJob(Job):
    """Pixels of an encoder's training parts → its stain target.

    Attributes:
        pixels: (cohort, part) → store of each part with candidate tiles.
        fixed: file of a fixed target.
        rows: `cohort`, `part`, `slide_id`, `patient_id`, `site` of the slides of these parts.
        target: settings of the target; keys that its policy does not use at their defaults.
        normalizer: normalizer under which targets are chosen.
        pooled: cohorts and splits of the candidate tiles.
        train: cohorts and splits that the encoder is trained on.
    """

    encoder: Resource[str]
    pixels: Reads[dict[Part, Path]]
    fixed: Reads[Path | None]
    json: Writes[Path]
    picture: Writes[Path]
    rows: Setting[pd.DataFrame]
    target: Setting[TargetSettings]
    normalizer: Setting[str]
    pooled: Setting[Train]
    train: Setting[Train]
    seed: Setting[int]


def target(config: Config, encoder: str) -> TargetJob:
    """Plan the `target` job of a run.

    Raises:
        StainsslError: the encoder has no `train`, or is neither trained here nor normalized to
            stains chosen from tiles.
    """
    run, paths = config.run(encoder), config.paths
    if not run.encoder.needs_target:
        _trained_run(config, encoder)
    if run.encoder.train is None:
        raise StainsslError(f"encoders.{run.key} is not trained here, so it has no target.")
    pooled = _pooled(run.encoder)
    found = train_parts(config, run.encoder.model_copy(update={"train": pooled}))
    own = target_without_unused_keys(run.encoder.target)
    return TargetJob(
        encoder=encoder,
        pixels={(c, p): paths.pixels(c, p) for c, p in found},
        fixed=own.path if own.path and own.path.exists() else None,
        json=paths.target(encoder),
        picture=paths.target_png(encoder),
        rows=rows_of(config, found, "slide_id", "patient_id", "site"),
        target=own,
        normalizer=run.encoder.normalizers[0],
        pooled=pooled,
        train=run.encoder.train,
        seed=config.seed,
    )


@dataclass(frozen=True)
class PretrainJob(Job):
    """Pixels and target → model, metrics, curves, and the patients seen in training.

    Attributes:
        pixels: (cohort, part) → store of each training part, in order.
        labels: likewise tile labels, if the encoder has a label.
        target: stain target, if the encoder normalizes to one.
        encoder: its config; keys without effect at their defaults.
        rows: `cohort`, `part`, `slide_id`, `patient_id`, `site` of the training slides.
        initial_model: model of the encoder of this config from which training starts.
        tile_px: side of a tile in px.
        tile_mpp: µm/px of a tile.
        init: weights from which training starts, as accepted by `encoders.load`.
        init_identity: name and content of `init` if these are pretrained weights; else empty.
        checkpoints: folder from which an interrupted training resumes.
    """

    name: Resource[str]
    pixels: Reads[dict[Part, Path]]
    target: Reads[Path | None]
    labels: Reads[dict[Part, Path]]
    initial_model: Reads[Path | None]
    model: Writes[Path]
    metrics: Writes[Path]
    seen: Writes[Path]
    curves: Writes[Path]
    encoder: Setting[Encoder]
    seed: Setting[int]
    rows: Setting[pd.DataFrame]
    tile_px: Setting[int]
    tile_mpp: Setting[float]
    init_identity: Setting[str]
    init: Resource[str | None]
    checkpoints: Resource[Path]


def pretrain(config: Config, encoder: str) -> PretrainJob:
    """Plan the `pretrain` job of a run.

    Raises:
        StainsslError: the encoder is not trained here.
    """
    run, paths = _trained_run(config, encoder), config.paths
    found = train_parts(config, run.encoder) if run.encoder.is_trained else []
    own, tiling = without_unused_keys(run.encoder), config.tilings[run.encoder.tiling]
    labelled = found if own.label else []
    other = config.initial_run(run)
    given = (other.encoder.weights and other.encoder.source) if other else run.encoder.source
    return PretrainJob(
        name=encoder,
        pixels={(c, p): paths.pixels(c, p) for c, p in found},
        target=paths.target(encoder) if own.needs_target else None,
        labels={(c, p): paths.labels(c, p) for c, p in labelled},
        initial_model=paths.model(other.name) if other and other.encoder.method else None,
        model=paths.model(encoder),
        metrics=paths.metrics(encoder),
        seen=paths.seen(encoder),
        curves=paths.curves(encoder),
        encoder=own,
        seed=run.seed,
        rows=rows_of(config, found, "slide_id", "patient_id", "site"),
        tile_px=tiling.size,
        tile_mpp=tiling.mpp,
        init_identity=identity(given) if given else "",
        init=f"{LOCAL}{paths.model(other.name)}" if other and not given else given,
        checkpoints=paths.checkpoints(encoder),
    )


@dataclass(frozen=True)
class StainPreprocessing:
    """Stain to which tiles are normalized before a pretrained encoder embeds them.

    Attributes:
        normalizer: method of normalization.
        files: file of the profile, or of the target whose mean it is; None: the published
            reference profile.
        is_averaged: whether embeddings are averaged over all stains in `files`; the file of a
            target may contain several.
    """

    normalizer: str
    files: tuple[Path | None, ...]
    is_averaged: bool = False


def stain_preprocessing(config: Config, name: str) -> StainPreprocessing | None:
    """Stain to which a run's tiles are normalized; None: none, or the one in its model's folder."""
    encoder = config.run(name).encoder
    if encoder.weights is None or not encoder.preprocess:
        return None
    if encoder.needs_target:
        files: tuple[Path | None, ...] = (config.paths.target(name),)
    else:
        files = tuple(None if t == REFERENCE else Path(t) for t in encoder.named_stains)
    return StainPreprocessing(encoder.normalizers[0], files, encoder.averages_stains)


def given_identity(encoder: Encoder) -> str:
    """Identity of pretrained weights: name, content, and the stain their tiles are normalized to.

    Args:
        encoder: an encoder with `weights`.
    """
    assert encoder.weights is not None
    assert encoder.source is not None
    found = identity(encoder.source, encoder.given_size)
    if not encoder.preprocess:
        return found
    if encoder.needs_target:
        to = "each stain of the target" if encoder.preprocess == EACH else "the mean of train"
    else:
        to = ", ".join(f"{name}{_content(Path(name))}" for name in encoder.named_stains)
        to = f"each of {to}" if encoder.averages_stains else to
    return f"{found} normalized by {encoder.normalizers[0]} to {to}"


def _content(file: Path) -> str:
    return f" {content_key(file, SAMPLES).hex()[:16]}" if file.is_file() else ""


@dataclass(frozen=True)
class Source:
    """Source of an encoder's embeddings.

    Attributes:
        model: folder of a model trained here, or the config's `weights` with their recipe.
        input_size: input side of pretrained weights in px, if it is not their own.
        features: the config's `features`, if embeddings are imported.
        preprocess: stain to which tiles are normalized before a pretrained encoder embeds them.
        is_compiled: whether the network is compiled, which changes embeddings only by rounding.
    """

    model: str = ""
    features: str = ""
    input_size: int | None = None
    preprocess: StainPreprocessing | None = None
    is_compiled: bool = False


@dataclass(frozen=True)
class EmbedJob(Job):
    """Pixels or slides, and encoders, or feature files → embeddings of a part.

    Attributes:
        pixels, tiles: store and table of the part's tiles; None if no encoder sees tiles.
        streamed: how to read the tiles from the slides, if they are not stored; then there are no
            `pixels`.
        models: encoder trained here → folder of its model.
        targets: pretrained encoder → target, if its tiles are normalized to stains of training
            tiles.
        vectors: slide encoder → store of the tile embeddings that it uses.
        features: feature files of the part's slides.
        embeddings: encoder → its store, in the order in which they are written.
        slides: the part's slides, if features are imported.
        sources: encoder → source of its embeddings.
        identities: encoder → name and content of pretrained weights, or names and sizes in bytes
            of imported files.
        scratch: folder for temporary data that does not fit in memory.
    """

    pixels: Reads[Path | None]
    tiles: Reads[Path | None]
    streamed: Includes[PixelsJob | None]
    models: Reads[dict[str, Path]]
    targets: Reads[dict[str, Path]]
    vectors: Reads[dict[str, Path]]
    features: Reads[list[Path]]
    embeddings: Writes[dict[str, Path]]
    part: Resource[str]
    sources: Resource[dict[str, Source]]
    slides: Setting[list[str]]
    identities: Setting[dict[str, Any]]
    scratch: Resource[Path]


def embed(config: Config, cohort: str, encoder: str | Sequence[str], part: str) -> EmbedJob:
    """Plan the job that embeds a part with one encoder, or with several that read it once."""
    names = [encoder] if isinstance(encoder, str) else list(encoder)
    paths = config.paths
    runs = {name: config.run(name).encoder for name in names}
    of_slides = [n for n, e in runs.items() if e.is_of_slides]
    slides = part_rows(config, cohort, part)["slide_id"].tolist()
    imported = {n: e.features for n, e in runs.items() if e.features}
    given = {n: e for n, e in runs.items() if e.weights}
    files = [f for text in imported.values() for f in feature_files(text, slides).values()]
    sizes = {str(f): f.stat().st_size for f in files}
    identities: dict[str, Any] = {n: given_identity(e) for n, e in given.items()}
    is_read = any(e.sees_tiles for e in runs.values())
    is_streamed = is_read and config.cohorts[cohort].pixels == "stream"
    return EmbedJob(
        pixels=paths.pixels(cohort, part) if is_read and not is_streamed else None,
        tiles=paths.tiles(cohort, part) if is_read else None,
        streamed=pixels_job(config, cohort, part) if is_streamed else None,
        models={n: paths.model(n) for n, e in runs.items() if e.method},
        targets={n: paths.target(n) for n, e in given.items() if e.needs_target},
        vectors={n: _taken(config, cohort, n, part) for n in of_slides},
        features=files,
        embeddings={n: paths.embeddings(cohort, n, part) for n in names},
        part=part,
        sources={n: source_of(config, n) for n in runs},
        slides=slides if imported else [],
        identities=identities | {n: [text, sizes] for n, text in imported.items()},
        scratch=paths.results,
    )


def _taken(config: Config, cohort: str, name: str, part: str) -> Path:
    """Store of the tile embeddings that a slide encoder uses."""
    other = config.source_run(config.run(name))
    assert other is not None
    return config.paths.embeddings(cohort, other.name, part)


def source_of(config: Config, name: str) -> Source:
    """Return the source of a run's embeddings.

    Raises:
        StainsslError: they are centred within each fold and therefore not stored.
    """
    encoder = config.run(name).encoder
    if encoder.center:
        raise StainsslError(
            f"encoders.{name} is centred within each fold and not stored: embed {encoder.vectors}."
        )
    if encoder.features:
        return Source(features=encoder.features)
    given = encoder.source if encoder.weights else None
    model = given or str(config.paths.model(name))
    return Source(model, "", encoder.given_size, stain_preprocessing(config, name), encoder.compile)


@dataclass(frozen=True)
class EmbeddedJob(Job):
    """Embeddings of a cohort → number of embedded tiles of each slide.

    Attributes:
        embeddings: part → store.
        tiles: part → table; empty if the encoder does not see tiles.
        rows: `slide_id`, `patient_id`, `site`, `part`.
    """

    encoder: Resource[str]
    cohort: Resource[str]
    embeddings: Reads[dict[str, Path]]
    tiles: Reads[dict[str, Path]]
    slides: Writes[Path]
    rows: Setting[pd.DataFrame]


def embedded(config: Config, cohort: str, encoder: str) -> EmbeddedJob:
    """Plan the `embedded` job of a cohort and a run."""
    paths = config.paths
    names = part_names(config, cohort)
    sheet = read_sheet(config, cohort).rename(columns={PART: "part"})
    tiled = names if config.run(encoder).encoder.sees_tiles else []
    return EmbeddedJob(
        encoder=encoder,
        cohort=cohort,
        embeddings={p: paths.embeddings(cohort, encoder, p) for p in names},
        tiles={p: paths.tiles(cohort, p) for p in tiled},
        slides=paths.embedded(cohort, encoder),
        rows=columns_of(sheet, "slide_id", "patient_id", "site", "part"),
    )


@dataclass(frozen=True)
class RobustnessJob(Job):
    """Pixels, labels, folds and an encoder → robustness metrics under a change of stain.

    Attributes:
        pixels: (cohort, part) → store, for the parts of all tasks.
        labels: (cohort, part) → tile labels, for the parts of tile tasks.
        folds: task → its folds.
        model: folder of a model trained here.
        target: target of pretrained weights, if tiles are normalized to stains of training tiles.
        identity: name and content of pretrained weights.
        rows: `cohort`, `part`, `slide_id`, `patient_id`, `site`.
        tasks: task → `parts`, and `label` (None unless it is a tile task).
        family: normalizer that re-stains tiles: macenko if the encoder's first normalizer is
            reinhard, else reinhard.
    """

    encoder: Resource[str]
    pixels: Reads[dict[Part, Path]]
    labels: Reads[dict[Part, Path]]
    folds: Reads[dict[str, Path]]
    model: Reads[Path | None]
    target: Reads[Path | None]
    output: Writes[Path]
    rows: Setting[pd.DataFrame]
    tasks: Setting[dict[str, dict[str, Any]]]
    identity: Setting[str]
    family: Setting[str]
    seed: Setting[int]
    source: Resource[Source]


def tasks_of_robustness(tasks: Mapping[str, Task]) -> list[str]:
    """List the tasks of a benchmark on whose tiles robustness is measured.

    These are its tile tasks, except those that fine-tune the encoder. If there are none, it is
    the first task of each set of cohorts: with all metrics if that is a tile task, otherwise with
    those that need no tile labels.
    """
    tiled = [n for n, task in tasks.items() if task.level == "tile" and not task.is_fine_tuned]
    if tiled:
        return tiled
    first: dict[frozenset[str], str] = {}
    for name, task in tasks.items():
        first.setdefault(frozenset(task.cohorts), name)
    return list(first.values())


def robustness_tasks_of_encoder(config: Config, key: str) -> dict[str, Task]:
    """Return the tasks on whose tiles the benchmarks measure the robustness of an encoder."""
    if not config.encoders[key].sees_tiles:  # no network that could embed re-stained tiles
        return {}
    found: dict[str, Task] = {}
    for benchmark in config.benchmarks.values():
        if benchmark.robustness and key in benchmark.encoders:
            tasks = {name: config.tasks[name] for name in benchmark.tasks}
            found |= {name: tasks[name] for name in tasks_of_robustness(tasks)}
    return found


def robustness(config: Config, encoder: str) -> RobustnessJob:
    """Plan the `robustness` job of a run.

    Raises:
        StainsslError: no benchmark measures it, or the encoder has no tile network.
    """
    run, paths = config.run(encoder), config.paths
    tasks = robustness_tasks_of_encoder(config, run.key)
    if not tasks:
        raise StainsslError(
            f"No benchmark with 'robustness: true' lists the encoder {run.key!r}, or it has no"
            " tile network for re-stained tiles."
        )
    own = {name: parts_of(config, task.cohorts) for name, task in tasks.items()}
    found = list(dict.fromkeys(pair for pairs in own.values() for pair in pairs))
    tiled = {name: labels_of(task) for name, task in tasks.items() if task.level == "tile"}
    labelled = list(dict.fromkeys(pair for name in tiled for pair in own[name]))
    weights = run.encoder.weights
    return RobustnessJob(
        encoder=encoder,
        pixels={(c, p): paths.pixels(c, p) for c, p in found},
        labels={(c, p): paths.labels(c, p) for c, p in labelled},
        folds={name: paths.folds(name) for name in tasks},
        model=None if weights else paths.model(encoder),
        target=paths.target(encoder) if weights and run.encoder.needs_target else None,
        output=paths.robustness(encoder),
        rows=rows_of(config, found, "slide_id", "patient_id", "site"),
        tasks={name: {"label": tiled.get(name), "parts": own[name]} for name in tasks},
        identity=given_identity(run.encoder) if weights else "",
        family="macenko" if run.encoder.normalizers[:1] == ["reinhard"] else "reinhard",
        seed=config.seed,
        source=source_of(config, encoder),
    )
