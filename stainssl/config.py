"""Config as typed models: the only place where keys are defined."""

from __future__ import annotations

import difflib
import logging
import re
import string
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from stainssl.datasets.registry import RELEASES, find
from stainssl.encoders.weights import FILE, HUB, LOCAL, Layout, Pooling, Precision, written
from stainssl.errors import StainsslError
from stainssl.paths import Paths

log = logging.getLogger(__name__)

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Frame = Literal["auto", "bounds", "slide"]
Positive = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(gt=0)]


class Model(BaseModel):
    """Base class of the config's parts: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Staging(Model):
    """Local folder to which slides on slow storage are copied, read there, and removed."""

    folder: Path
    most_gb: Annotated[float, Field(gt=0)] = 100.0  # all jobs together; beyond it, read in place

    @property
    def most_bytes(self) -> int:
        """`most_gb` in bytes."""
        return int(self.most_gb * 1e9)


PartSize = Positive | Literal["auto"]


class Slides(Model):
    """How slides are opened, and how bad ones are handled."""

    reader: Literal[
        "auto", "tiff", "openslide", "patches", "tiatoolbox", "fastslide", "tifffile"
    ] = "auto"
    part_size: PartSize = "auto"  # slides per part, the unit of a job
    on_missing: Literal["error", "quarantine"] = "error"
    staging: Staging | None = None
    max_bad_slides: Share = 0.1  # share of a cohort's slides, rounded up; beyond it, the run stops
    max_minutes: Ratio = 240  # time limit for one slide in a job
    keep_pixels: bool = True  # false: pixels are removed after the last job that reads them

    def staging_place(self) -> tuple[Path | None, int]:
        """Return the staging folder (None: slides are read in place) and its limit in bytes."""
        return (self.staging.folder, self.staging.most_bytes) if self.staging else (None, 0)


class Demo(Model):
    """Synthetic cohort: seed, and number of patients per site."""

    seed: int = 0
    patients: dict[Name, Positive] = {"a": 10, "b": 10, "c": 12}


class Outlines(Model):
    """Annotation classes that define a tile label."""

    of: Annotated[list[str], Field(min_length=1)]
    without: list[str] = []  # classes that are cut out of these
    ignore: list[str] = []  # classes with similar names that mean something else


class Cohort(Model):
    """Slides or patches of one source, listed in one sheet."""

    sheet: Path | None = None  # one row per slide
    root: Path = Path(".")  # paths in the sheet are relative to it
    demo: Demo | None = None  # instead of a sheet
    release: str | None = None  # instead of a sheet: a public data set in the folder `root`
    options: dict[str, str] = {}  # options of the release, see its page in docs/cohorts/
    columns: dict[str, str | None] = {}  # our name → name in the sheet; null: not in the sheet
    outside_root: bool = False  # whether paths may lie outside the root
    patient_ids: Literal["shared", "local"] | None = None  # shared: an id is one person everywhere
    kind: Literal["slides", "patches"] = "slides"
    patches: Literal["whole", "cut"] = "whole"  # one tile per file, or cut into tiles at `mpp`
    annotations: str | None = None  # pattern with {slide_id}: GeoJSON, ASAP or ImageScope XML
    outlines: dict[str, Outlines] = {}  # tile label → classes; default: the class of the same name
    annotations_frame: Frame = "auto"  # origin of coordinates, for slides with bounds
    regions: str | None = None  # pattern with {slide_id}: only tiles inside these outlines
    regions_frame: Frame = "auto"  # as annotations_frame
    tiling: str = "default"
    pixels: Literal["store", "stream"] = "store"  # stream: embed tiles straight from the slides

    @model_validator(mode="before")
    @classmethod
    def _of_release(cls, given: Any) -> Any:
        """Keys that a release sets, unless the config does."""
        name = given.get("release") if isinstance(given, dict) else None
        if name is None:
            return given
        if name not in RELEASES:
            raise ValueError(f"no release is named {name!r}{nearest(str(name), RELEASES)}")
        found = find(name)
        options = found.chosen({k: str(v) for k, v in (given.get("options") or {}).items()})
        root = Path(given.get("root", "."))
        known: dict[str, Any] = {
            "kind": found.kind,
            "annotations": _under(root, found.annotations(options)),
            "regions": _under(root, found.regions(options)),
            "outlines": {k: {"of": of, "without": no} for k, (of, no) in found.outlines.items()},
        }
        return {**known, **given, "options": options}

    @model_validator(mode="after")
    def _patterns_name_the_slide(self) -> Cohort:
        for key in ("annotations", "regions"):
            if (pattern := getattr(self, key)) is not None:
                _check_pattern(key, pattern)
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Cohort:
        given = [key for key in ("sheet", "demo", "release") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                "give one of 'sheet' (a CSV), 'demo' (the synthetic cohort) and 'release' (a public"
                f" data set); found {' and '.join(given) or 'none'}"
            )
        if self.options and self.release is None:
            raise ValueError("'options' need a 'release'")
        if self.columns and self.sheet is None:
            raise ValueError("'columns' need a 'sheet'")
        return self


def _check_pattern(key: str, pattern: str) -> None:
    """Raise a ValueError unless the only field of a file pattern is {slide_id}."""
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
    except ValueError as error:
        raise ValueError(f"{key}: {error}: write {{{{ for a literal brace") from None
    if fields != {"slide_id"}:
        found = ", ".join(f"{{{name}}}" for name in sorted(fields)) or "no field"
        raise ValueError(f"{key} has {found}: write {{slide_id}} in place of the slide's id")


def _under(root: Path, pattern: str | None) -> str | None:
    if pattern is None:
        return None
    escaped = str(root).replace("{", "{{").replace("}", "}}")
    return str(Path(escaped) / pattern)


class Mask(Model):
    """Tissue mask, computed on a thumbnail."""

    kind: Literal["stain", "otsu", "morphological"] = "stain"  # the last two are tiatoolbox's
    mpp: Annotated[float, Field(gt=0)] = 8.0  # µm/px of the thumbnail
    min_area_um2: Annotated[float, Field(ge=0)] = 20_000  # smaller pieces are not tissue
    min_hole_um2: Annotated[float, Field(ge=0)] = 10_000  # smaller holes are filled


class Filters(Model):
    """Quality filters of tiles; null: no limit."""

    max_pen: Share | None = 0.1  # share of the tile's area
    min_sharpness: Annotated[float, Field(ge=0)] | None = 0.4  # excludes 9 of 10 blurred tiles
    min_saturation: Share | None = None


class Tiling(Model):
    """How slides are cut into tiles."""

    mpp: Annotated[float, Field(ge=0.05, le=50)] = 0.5  # µm/px
    size: Positive = 256  # px at `mpp`
    overlap: Annotated[int, Field(ge=0)] = 0  # px at `mpp`
    max_enlargement: Annotated[float, Field(ge=1)] = 1.5  # maximum, for a slide coarser than `mpp`
    min_tissue: Share = 0.5  # share of the tile's area
    mask: Mask = Mask()
    filters: Filters = Filters()

    @model_validator(mode="after")
    def _overlap_below_size(self) -> Tiling:
        if self.overlap >= self.size:
            raise ValueError(f"overlap ({self.overlap} px) must be below size ({self.size} px)")
        return self


class Train(Model):
    """Cohorts and splits that an encoder is trained on; `splits: [all]` if the sheet has none."""

    cohorts: Annotated[list[str], Field(min_length=1)]
    splits: Annotated[list[str], Field(min_length=1)] = ["train"]


class TargetSettings(Model):
    """Stain target: the profile or profiles to which images are normalized."""

    policy: Literal["batch", "cohort", "site", "medoid", "spread", "fixed"] = "batch"
    per: Literal["iteration", "image"] = "iteration"
    cohorts: list[str] | None = None  # cohorts of the candidate tiles; null: those of train
    splits: list[str] | None = None  # their splits; null: those of train
    by: Literal["all", "site"] = "all"  # policy medoid: one of all tiles, or one per site
    count: Positive = 8  # policy spread: number of targets
    path: Path | None = None  # policy fixed: a target.json


class Geometry(Model):
    """How views are cropped from a tile."""

    area: tuple[Share, Share] = (0.25, 1.0)  # minimum and maximum share of the tile's area
    ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)  # minimum and maximum of width / height
    turns: bool = True  # flips and rotations by 90°

    @model_validator(mode="after")
    def _ordered(self) -> Geometry:
        for name, (low, high) in (("area", self.area), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} ({low:g}, {high:g}): give minimum and maximum, above 0")
        return self


class Adapters(Model):
    """Low-rank adapters for `tune: lora` (Hu et al. 2022)."""

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0  # the update is scaled by alpha / rank


class Lora(Adapters):
    """Low-rank adapters of a pretrained encoder, and how they are saved."""

    merge: bool = False  # true: the model is saved with its full weights, for timm


Channel = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]
NUMBER = r"[+-]?\d+e[+-]?\d+"
Argument = str | int | float | bool | list[int] | None


class Recipe(Model):
    """How weights are loaded, images prepared and tokens pooled, as listed in docs/encoders.md."""

    architecture: str = ""  # timm name of the network; "": the one before @FILE
    arguments: dict[str, Argument] = {}  # for timm; layers by name, as mlp_layer: SwiGLUPacked
    layout: Layout = "timm"  # naming scheme of the tensors
    files: Annotated[list[str], Field(min_length=1)] = ["model.safetensors", "pytorch_model.bin"]
    pooling: Pooling = "cls"  # how tokens are pooled into the embedding
    dim: Positive | None = None  # dimension of the embedding, checked; for attention, projection
    mean: tuple[Channel, Channel, Channel]  # of RGB in [0, 1]
    std: tuple[Deviation, Deviation, Deviation]
    input_px: Annotated[int, Field(ge=32)] = 224  # side of the network's input
    # Image side for which the weights store position embeddings; null: input_px.
    stored_px: Annotated[int, Field(ge=32)] | None = None
    resize_px: Annotated[int, Field(ge=32)] | None = None  # side before the center crop; null: none
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    precision: Precision = "half"  # on a GPU
    mpp: list[Ratio] = []  # µm/px in its training; another tiling gives a warning
    tile_px: Positive | None = None  # side of tiles in its training; likewise
    license: str = ""
    gated: bool = False  # whether the hub requires consent

    @field_validator("arguments", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, given: Any) -> Any:
        """Convert numbers like 1e-5, which YAML reads as text because they have no point."""
        if not isinstance(given, dict):
            return given
        return {k: float(v) if re.fullmatch(NUMBER, str(v)) else v for k, v in given.items()}

    @model_validator(mode="after")
    def _keys_agree(self) -> Recipe:
        if self.resize_px is not None and self.resize_px < self.input_px:
            raise ValueError(
                f"resize_px ({self.resize_px}) must not be smaller than input_px"
                f" ({self.input_px}), which is cropped from it"
            )
        if self.dim is None and self.pooling.split()[0] in ("attention", "projection"):
            raise ValueError(f"pooling: {self.pooling} needs 'dim'")
        return self


DEFAULT_BACKBONE = "resnet50"
REFERENCE = "reference"  # value of `preprocess`: the normalizer's published profile
EACH = "each"  # value of `preprocess`: all stains that `target` chooses
EACH_POLICIES = ("spread", "medoid", "fixed")  # policies with few stains that do not change
TUNE = re.compile(r"full|lora|last-([1-9]\d*)")
StainJitterKind = Literal["none", "hed", "randstainna", "mix"]
ColorKind = Literal["none", "weak", "strong"]
ONLY_OF_INIT = (
    "tune",
    "lora",
    "lr_backbone",
    "layer_decay",
    "freeze_steps",
    "freeze_norms",
    "keep",
)
Normalizer = Literal["macenko", "vahadane", "ruifrok", "reinhard"]


def _tune_is_known(given: str) -> str:
    if not TUNE.fullmatch(given):
        raise ValueError("write full, lora, or last-N with the number of blocks, such as last-2")
    return given


Tune = Annotated[str, AfterValidator(_tune_is_known)]


def _last_blocks(tune: str) -> int | None:
    found = TUNE.fullmatch(tune)
    return int(found[1]) if found and found[1] else None


class Encoder(Model):
    """Tile → embedding: trained here (`method`), pretrained (`weights`) or imported (`features`).

    With `vectors`, it uses the embeddings of another encoder: it centres them (`center`), or
    aggregates those of a slide into one, as a slide encoder (`weights`).
    """

    method: Literal["stain-invariant", "simclr", "random"] | None = None
    weights: str | None = None  # a name in docs/encoders.md, local-dir:, hf-hub:, timm, NAME@FILE
    recipe: Recipe | None = None  # for weights or init that docs/encoders.md does not list
    revision: str | None = None  # commit, tag or branch of weights or init on the hub
    features: str | None = None  # clam:FOLDER or trident:FOLDER, existing feature files
    vectors: str | None = None  # another encoder, whose embeddings `center` and slide encoders use
    center: Literal["site"] | None = None  # subtract the mean embedding of the site, in every fold
    train: Train | None = None
    tiling: str = "default"
    backbone: str | None = None  # any timm name; null: resnet50, or the network of `init`
    init: str | None = None  # weights to start from: as `weights`, or the name of an encoder
    tune: Tune = "full"  # trained part of `init`: full, last-N (blocks or stages) or lora
    lora: Lora = Lora()  # for tune: lora
    keep: Annotated[float, Field(ge=0)] = 0.0  # weight of staying near the embeddings of `init`
    input_size: Annotated[int, Field(ge=32)] | None = None  # px; null: the tiling's or weights'
    target: TargetSettings = TargetSettings()
    normalizer: Normalizer | Annotated[list[Normalizer], Field(min_length=1)] = "macenko"
    views: Literal["one", "same", "different"] = "one"  # which views are normalized
    stain_probability: Share = 1.0  # probability that such a view is normalized
    # Normalize every tile first; true: to the mean stain of `train`'s tiles. Pretrained weights
    # also: `reference` (the normalizer's published profile), a file (target.json, stain.json), or
    # several stains, over which embeddings are averaged: a list of these, or each (of `target`'s).
    preprocess: bool | str | Annotated[list[str], Field(min_length=1)] = False
    geometry: Geometry = Geometry()
    color: ColorKind = "weak"  # color jitter
    stain_jitter: StainJitterKind = "hed"  # before color jitter
    stain_jitter_strength: Annotated[float, Field(gt=0)] | None = None  # null: see the reference
    loss: Literal["nt-xent", "vicreg", "barlow-twins", "dino"] = "nt-xent"
    temperature: Annotated[float, Field(gt=0)] = 0.2  # for nt-xent
    queue: Annotated[int, Field(ge=0)] = 0  # projections of earlier images as negatives; nt-xent
    supervised_weight: Annotated[float, Field(ge=0)] = 0.0  # of an additional loss from tile labels
    label: str | None = None  # label of a tile task, for that loss and for knn_label
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    frozen: bool = False  # true: never retrained, whatever changes
    epochs: Positive = 100
    steps: Positive | None = None  # number of steps; null: as given by `epochs`
    batch_size: Annotated[int, Field(ge=2)] = 256  # over all devices
    optimizer: Literal["adamw", "lars"] = "adamw"
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-3
    lr_backbone: Annotated[float, Field(gt=0, le=100)] | None = None  # for `init`; null: `lr`
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # of `init`: lr of a layer / next layer
    freeze_steps: Annotated[int, Field(ge=0)] = 0  # initial steps in which `init` is frozen
    freeze_norms: bool = True  # batch norms of `init` keep and use their running statistics
    warm_up: Share = 0.1  # share of the steps
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 1e-4
    precision: Literal["auto", "32", "bf16"] = "auto"  # auto: half on a GPU, 32 bits on a CPU
    compile: bool = False  # torch.compile, for embedding

    @model_validator(mode="before")
    @classmethod
    def _accept_aliases(cls, given: Any) -> Any:
        """Accept `colour` for `color`, with a warning."""
        if not isinstance(given, dict) or "colour" not in given or "color" in given:
            return given
        log.warning("The key 'colour' of an encoder is read as 'color': write 'color'.")
        return {("color" if key == "colour" else key): value for key, value in given.items()}

    @model_validator(mode="before")
    @classmethod
    def _splits_revision(cls, given: Any) -> Any:
        """Split `hf-hub:OWNER/NAME@REVISION` into the name and `revision`."""
        for key in ("weights", "init") if isinstance(given, dict) else ():
            name, at, revision = str(given.get(key) or "").partition(FILE)
            if name.startswith(HUB) and at and not given.get("revision"):
                return {**given, key: name, "revision": revision}
        return given

    @model_validator(mode="after")
    def _one_kind(self) -> Encoder:
        kinds = (self.method, self.weights, self.features, self.center)
        if sum(given is not None for given in kinds) != 1:
            raise ValueError(
                "give one of 'method' (trained here), 'weights' (given), 'features' (files), and"
                " 'center' (of the 'vectors' of another encoder)"
            )
        if self.init is not None and not self.is_trained:
            raise ValueError("'init' needs a 'method' that trains")
        if self.is_trained and self.train is None:
            raise ValueError(f"method {self.method} needs 'train: {{cohorts: [...]}}'")
        return self

    @model_validator(mode="after")
    def _recipe_has_weights(self) -> Encoder:
        given = self.weights or self.init or ""
        if self.revision is not None and (not given or given.startswith(LOCAL) or FILE in given):
            raise ValueError(
                "'revision' is only for weights from the hub: a name, or hf-hub:OWNER/NAME"
            )
        if self.recipe is None:
            return self
        if not (given.startswith((HUB, LOCAL)) or FILE in given):
            raise ValueError(
                "'recipe' is for weights without one: hf-hub:OWNER/NAME, local-dir:FOLDER or"
                " ARCHITECTURE@FILE; timm's are hf-hub:timm/NAME.TAG"
            )
        is_named = not given.startswith((HUB, LOCAL))
        if is_named == bool(self.recipe.architecture):
            raise ValueError(
                "recipe.architecture is the timm name of the network"
                + (f": {given.partition(FILE)[0]!r} has it already" if is_named else ": give it")
            )
        return self

    @model_validator(mode="after")
    def _derives_vectors(self) -> Encoder:
        if self.center is not None and self.vectors is None:
            raise ValueError(f"center: {self.center} needs 'vectors: NAME', another encoder")
        if self.vectors is None:
            return self
        if self.method or self.features:
            raise ValueError(
                "'vectors' names another encoder: give 'center: site', or 'weights' of a slide"
                " encoder"
            )
        fields = type(self).model_fields
        known = {"vectors", "center", "weights", "revision", "tiling"}
        if idle := [k for k in fields if getattr(self, k) != fields[k].default and k not in known]:
            raise ValueError(
                f"{', '.join(idle)}: not for this encoder: set it at the encoder of 'vectors'"
            )
        return self

    @model_validator(mode="after")
    def _tunes_given_weights(self) -> Encoder:
        fields = type(self).model_fields
        changed = [key for key in ONLY_OF_INIT if getattr(self, key) != fields[key].default]
        if changed and self.init is None:
            raise ValueError(
                f"{', '.join(changed)}: only for training from given weights: name them in 'init'"
            )
        if self.steps is not None and self.freeze_steps >= self.steps:
            raise ValueError(
                f"freeze_steps ({self.freeze_steps}) cover all {self.steps} steps, so the initial"
                " network would not be trained"
            )
        return self

    @model_validator(mode="after")
    def _keys_agree(self) -> Encoder:
        if self.supervised_weight and self.label is None:
            raise ValueError("supervised_weight needs 'label': the label of a tile task")
        if self.queue and self.loss != "nt-xent":
            raise ValueError(
                f"queue holds negatives, which loss {self.loss} does not use: leave it out"
            )
        if len(self.normalizers) > 1 and self.target.policy == "fixed":
            raise ValueError("a fixed target belongs to one normalizer: give one normalizer")
        self._preprocess_has_a_target()
        if self.method == "stain-invariant" or self.preprocess:
            self._stain_is_changed_once()
        return self

    def _preprocess_has_a_target(self) -> None:
        if self.preprocess and self.weights is None:
            if not self.is_trained:
                raise ValueError(
                    "preprocess needs a network: give a method that trains, or weights"
                )
            if self.preprocess is not True:
                raise ValueError("preprocess must be true or false with a method that trains")
        if self.preprocess is True and self.train is None:
            raise ValueError(
                "preprocess: true is the mean stain of the tiles of 'train: {cohorts: [...]}': give"
                f" it, or preprocess: {REFERENCE}, or a file of a profile"
            )
        chooses = self.train is not None and self.target.policy in EACH_POLICIES
        if self.preprocess == EACH and not chooses:
            raise ValueError(
                f"preprocess: {EACH} averages over the stains that 'target' chooses from the tiles"
                " of 'train': give 'train: {cohorts: [...]}' and 'target: {policy: spread,"
                " count: 4}', or policy medoid or fixed"
            )

    def _stain_is_changed_once(self) -> None:
        if self.method == "stain-invariant" and self.preprocess:
            raise ValueError("preprocess removes the stain that stain-invariant changes")
        if self.stain_jitter in ("randstainna", "mix"):
            raise ValueError(
                f"stain_jitter {self.stain_jitter} starts from a tile's own stain, which is "
                "normalized away here: use hed, or method simclr without preprocess"
            )

    @property
    def sees_tiles(self) -> bool:
        """Whether a network embeds tiles; False with `features` or `vectors`."""
        return self.features is None and self.vectors is None

    @property
    def is_of_slides(self) -> bool:
        """Whether it is a slide encoder, with one embedding per slide."""
        return self.vectors is not None and self.weights is not None

    @property
    def is_trained(self) -> bool:
        """Whether it is pretrained here; False for method `random`."""
        return self.method not in (None, "random")

    @property
    def last_blocks(self) -> int | None:
        """Number N of trained blocks or stages of `init` with tune last-N, otherwise None."""
        return _last_blocks(self.tune)

    @property
    def architecture(self) -> str:
        """timm name of the network, if it starts from random weights."""
        return self.backbone or DEFAULT_BACKBONE

    @property
    def source(self) -> str | None:
        """`weights` or `init` with recipe and revision, or None; see `weights.written`."""
        given = self.weights or self.init
        if given is None:
            return None
        own = self.recipe
        said = own.model_dump(mode="json", exclude_defaults=True) if own else None
        return written(given, said, self.revision)

    @property
    def given_size(self) -> int | None:
        """Input side of pretrained weights in px, if not their own; None if trained here."""
        return self.input_size if self.weights else None

    @property
    def needs_target(self) -> bool:
        """Whether tiles are normalized to a stain target that is chosen here."""
        return self.method == "stain-invariant" or self.preprocess in (True, EACH)

    @property
    def averages_stains(self) -> bool:
        """Whether embeddings are averaged over several stains of a tile."""
        return self.preprocess == EACH or isinstance(self.preprocess, list)

    @property
    def named_stains(self) -> list[str]:
        """`reference` and files named by `preprocess`; empty if `target` chooses the stains."""
        if not self.preprocess or self.needs_target:
            return []
        given = self.preprocess
        return given if isinstance(given, list) else [str(given)]

    @property
    def normalizers(self) -> list[str]:
        """Normalizers as a list; targets are chosen under the first."""
        return [self.normalizer] if isinstance(self.normalizer, str) else list(self.normalizer)


class Split(Model):
    """Split of patients into training, validation and test patients."""

    kind: Literal["cv", "sheet", "leave-one-out"] = "cv"
    folds: Annotated[int, Field(ge=2)] = 5
    repeats: Positive = 1
    group: str = "patient_id"  # leave-one-out: column of the sheet, such as `site`
    stratify: list[str] = []


MetricName = Literal[
    "auroc", "auprc", "accuracy", "balanced_accuracy", "f1_macro", "f1_weighted",
    "sensitivity", "specificity", "ppv", "npv", "pearson", "spearman", "mae", "r2",
    "kappa", "auroc_cuts", "c_index", "c_index_uno", "auroc_time", "integrated_brier",
]  # fmt: skip
METRICS_BY_KIND: dict[str, tuple[str, ...]] = {  # kind → metrics; the first is the default
    "classification": (
        "auroc", "auprc", "accuracy", "balanced_accuracy", "f1_macro", "f1_weighted",
        "sensitivity", "specificity", "ppv", "npv",
    ),
    "regression": ("spearman", "pearson", "mae", "r2"),
    "ordinal": ("kappa", "auroc_cuts", "accuracy", "balanced_accuracy"),
    "survival": ("c_index", "c_index_uno", "auroc_time", "integrated_brier"),
}  # fmt: skip
FUSED_KINDS = ("mean", "abmil")  # kinds of heads that can use clinical columns
MIN_ORDERED = 3  # minimum number of classes for kind ordinal
NOT_OF: dict[str, tuple[str, ...]] = {  # kind → keys of a task that it does not have
    "regression": (
        "classes",
        "positive",
        "class_weight",
        "threshold",
        "sensitivity",
        "recalibrate",
    ),
    "ordinal": ("positive", "class_weight", "threshold", "sensitivity", "recalibrate"),
    "survival": ("positive", "class_weight", "threshold", "sensitivity", "recalibrate"),
}
COLUMNS_OF: dict[str, tuple[str, ...]] = {"survival": ("time", "event")}  # default: label
SURVIVAL_CLASSES = {"event", "censored"}


def _as_word(value: Any) -> Any:
    """Convert a YAML number to text as in a sheet; raise a ValueError for true or false."""
    if isinstance(value, bool):
        raise ValueError(f"YAML reads {value} instead of a word: put it in quotes")
    return f"{value:g}" if isinstance(value, int | float) else value


class FineTune(Model):
    """Fine-tuning of an encoder's network on the labels of a tile task (`protocol: fine-tune`)."""

    tune: Tune = "full"  # trained part: full, last-N (blocks or stages) or lora
    lora: Adapters = Adapters()  # for tune: lora
    epochs: Positive = 20  # maximum
    patience: Positive = 3  # epochs without a lower validation loss
    batch_size: Annotated[int, Field(ge=2)] = 64
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 1e-4
    freeze_norms: bool = True  # batch norms keep their running statistics, except of method random
    color: ColorKind = "weak"  # as for encoders
    stain_jitter: StainJitterKind = "hed"  # as for encoders
    stain_jitter_strength: Annotated[float, Field(gt=0)] | None = None  # as for encoders
    consistency: Annotated[float, Field(ge=0)] = 0.0  # weight of predicting alike when re-stained

    @model_validator(mode="after")
    def _keys_agree(self) -> FineTune:
        if self.tune != "lora" and self.lora != Adapters():
            raise ValueError("lora needs tune: lora")
        if self.stain_jitter == "none" and self.stain_jitter_strength is not None:
            raise ValueError(
                "stain_jitter_strength has no effect with stain_jitter: none: leave it out"
            )
        if self.consistency and self.stain_jitter in ("randstainna", "mix"):
            raise ValueError(
                f"stain_jitter {self.stain_jitter} starts from a tile's own stain, which"
                " consistency changes: use hed"
            )
        return self

    @property
    def last_blocks(self) -> int | None:
        """Number N of trained blocks or stages with tune last-N, otherwise None."""
        return _last_blocks(self.tune)


class Task(Model):
    """Prediction task: a label, its level, cohorts and a split."""

    level: Literal["tile", "slide", "patient"]
    # Type of the label: a class, a number (regression), one of ordered 'classes' (ordinal), or the
    # time to an event (survival).
    kind: Literal["classification", "regression", "ordinal", "survival"] = "classification"
    label: str = ""  # column of the sheet, or tile label; not for kind survival
    labels: list[Name] = []  # kind classification: several columns for one model
    time: str = ""  # kind survival: column of the time to the event, or to the last contact
    event: str = ""  # kind survival: column with the event (1) or not (0)
    hazard: Literal["discrete", "cox"] = "discrete"  # kind survival: hazards in intervals, or Cox
    na: list[str] = []  # words that mean unknown, in addition to the usual ones
    classes: dict[str, list[str]] = {}  # class → its words, in order; {}: every word is a class
    positive: str | None = None  # for two classes; null: the one named 'positive', else the last
    class_weight: Literal["balanced", "none"] = "balanced"  # in training
    threshold: Literal["validation"] | Share = "validation"  # or a probability; for two classes
    sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.95  # of the second threshold
    # Of probabilities, on validation patients: platt (two classes) or temperature.
    recalibrate: Literal["none", "platt", "temperature"] = "none"
    cohorts: Annotated[list[str], Field(min_length=1)]
    split: Split = Split()
    external: list[str] = []  # cohorts for testing only, by the model of every fold
    clinical: list[str] = []  # columns of the sheet for a baseline, such as age or grade
    # Rows that combine slides and clinical columns: pooled predictions (late), or one head (gated).
    fusion: Literal["none", "late", "gated"] = "none"
    metrics: Annotated[list[MetricName], Field(min_length=1)] = [
        "auroc"
    ]  # columns of the table, with comparisons; others: first in `METRICS_BY_KIND`
    protocol: Literal["probe", "fine-tune"] = "probe"  # level tile: frozen or trained encoder
    fine_tune: FineTune = FineTune()  # for protocol fine-tune

    @model_validator(mode="before")
    @classmethod
    def _words_are_text(cls, given: Any) -> Any:
        """Convert words of a label that YAML reads as numbers; set the default metric of a kind."""
        if not isinstance(given, dict):
            return given
        known = dict(given)
        if (kind := known.get("kind")) in METRICS_BY_KIND:
            known.setdefault("metrics", [METRICS_BY_KIND[kind][0]])
        if isinstance(known.get("na"), list):
            known["na"] = [_as_word(word) for word in known["na"]]
        if isinstance(known.get("classes"), dict):
            known["classes"] = {
                _as_word(name): [_as_word(word) for word in words or []]
                for name, words in known["classes"].items()
            }
        if known.get("positive") is not None:
            known["positive"] = _as_word(known["positive"])
        return known

    @property
    def label_columns(self) -> dict[str, str]:
        """Key → column of the sheet, for all columns that the label is read from."""
        if self.labels:
            return {f"labels.{place}": column for place, column in enumerate(self.labels)}
        return {key: getattr(self, key) for key in COLUMNS_OF.get(self.kind, ("label",))}

    def per_label_tasks(self, name: str) -> dict[str, Task]:
        """Return the tasks as they are evaluated: with several labels, one each, `NAME.LABEL`.

        Args:
            name: name of the task in the config.
        """
        if not self.labels:
            return {name: self}
        return {
            f"{name}.{label}": self.model_copy(update={"label": label, "labels": []})
            for label in self.labels
        }

    @model_validator(mode="after")
    def _columns_are_of_the_kind(self) -> Task:
        if self.labels:
            self._several_labels_can_be()
        own = self.label_columns
        if missing := [key for key, column in own.items() if not column]:
            raise ValueError(
                f"a task of kind {self.kind} needs {' and '.join(missing)}: name the sheet's column"
            )
        others = ("label", "time", "event")
        if strange := [k for k in others if k not in own and getattr(self, k)]:
            raise ValueError(
                f"{' and '.join(strange)}: a task of kind {self.kind} uses {' and '.join(own)}"
            )
        if len(set(own.values())) < len(own):
            raise ValueError(f"{' and '.join(own)} name the same column: give each its own")
        if self.kind != "survival" and self.hazard != "discrete":
            raise ValueError("hazard: cox needs kind survival")
        if self.kind == "survival" and self.classes and set(self.classes) != SURVIVAL_CLASSES:
            raise ValueError(
                "classes of kind survival are 'event' and 'censored', with their words"
            )
        return self

    def _several_labels_can_be(self) -> None:
        if self.label:
            raise ValueError("give 'label' or 'labels', not both")
        if len(self.labels) < 2:
            raise ValueError("labels: name at least two columns; for one use 'label'")
        if self.kind != "classification" or self.level == "tile":
            raise ValueError("labels need kind classification and level slide or patient")

    @model_validator(mode="after")
    def _keys_are_of_the_kind(self) -> Task:
        if strange := [one for one in self.metrics if one not in METRICS_BY_KIND[self.kind]]:
            raise ValueError(
                f"metrics: {', '.join(strange)} is not for kind {self.kind}: choose from"
                f" {', '.join(METRICS_BY_KIND[self.kind][:4])}"
            )
        fields = type(self).model_fields
        keys = NOT_OF.get(self.kind, ())
        if given := [key for key in keys if getattr(self, key) != fields[key].default]:
            raise ValueError(
                f"{', '.join(given)}: not for a task of kind {self.kind}, which has no threshold"
                " and no class weights: leave out"
            )
        if self.fusion != "none" and (not self.clinical or self.level == "tile"):
            raise ValueError(
                "fusion needs 'clinical' columns: name them, in a task of level slide or patient"
            )
        if self.kind == "ordinal" and len(self.classes) < MIN_ORDERED:
            raise ValueError("kind ordinal needs at least three 'classes', lowest first")
        if self.kind != "classification" and self.level == "tile":
            raise ValueError(
                f"kind {self.kind} is for tasks of level slide or patient: tile tasks use a linear"
                " probe of classes"
            )
        return self

    @model_validator(mode="after")
    def _protocol_is_of_tiles(self) -> Task:
        if self.protocol == "fine-tune" and self.level != "tile":
            raise ValueError("protocol fine-tune is for tasks of level tile")
        if self.protocol != "fine-tune" and self.fine_tune != FineTune():
            raise ValueError("fine_tune needs protocol: fine-tune")
        return self

    @property
    def is_fine_tuned(self) -> bool:
        """Whether the encoder's network is trained on the labels, instead of a linear probe."""
        return self.protocol == "fine-tune"

    @model_validator(mode="after")
    def _words_are_of_one_class(self) -> Task:
        every = [
            word
            for name, words in self.classes.items()
            for word in {one.strip().casefold() for one in (name, *words)}
        ]
        if twice := sorted({word for word in every if every.count(word) > 1}):
            raise ValueError(f"classes: {', '.join(map(repr, twice))} are listed under two classes")
        if len(self.classes) == 1:
            raise ValueError("classes: a task needs at least two classes")
        if self.classes and self.positive not in (None, *self.classes):
            raise ValueError(f"positive is {self.positive!r}, which is not in 'classes'")
        return self

    @model_validator(mode="after")
    def _external_is_outside(self) -> Task:
        if self.external and self.level == "tile":
            raise ValueError("'external' is for tasks of level slide or patient")
        if both := sorted(set(self.external) & set(self.cohorts)):
            raise ValueError(f"{', '.join(both)} cannot be both in cohorts and external")
        return self


class Head(Model):
    """Network that aggregates the tile embeddings of a bag (multiple-instance learning)."""

    kind: Literal["mean", "abmil", "clam", "dsmil", "transmil"]
    epochs: Positive = 40
    lr: Annotated[float, Field(gt=0, le=100)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 1e-2
    hidden: Positive = 64  # width of the hidden layer; kind mean has none
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25
    max_tiles: Positive = 512  # tiles drawn per bag and step; prediction uses all
    patience: Positive = 8  # epochs without a lower validation loss


class Benchmark(Model):
    """Benchmark of tasks × encoders × heads, with one table."""

    tasks: Annotated[list[str], Field(min_length=1)]
    encoders: Annotated[list[str], Field(min_length=1)]
    heads: list[str] = []
    robustness: bool = True


class Run(NamedTuple):
    """An encoder with one of its seeds: the unit of training, and of a row of the table.

    Attributes:
        name: the encoder's name, with `.seed` if it has several seeds.
        key: name of the encoder in the config.
        encoder: its config.
        seed: seed of training.
    """

    name: str
    key: str
    encoder: Encoder
    seed: int


class Config(Model):
    """Config of a run; `load` reads it from a file."""

    results: Path = Path("results")  # output folder
    seed: int = 0
    slides: Slides = Slides()
    cohorts: dict[Name, Cohort]
    tilings: dict[Name, Tiling] = {"default": Tiling()}
    encoders: dict[Name, Encoder] = {}
    tasks: dict[Name, Task] = {}
    heads: dict[Name, Head] = {}
    benchmarks: dict[Name, Benchmark] = {}

    @field_validator("results")
    @classmethod
    def _no_wildcard(cls, given: Path) -> Path:
        if set("{}") & set(str(given)):
            raise ValueError("a folder with braces: Snakemake would take them for a wildcard")
        return given

    @property
    def paths(self) -> Paths:
        """Paths of the outputs of all stages."""
        return Paths(self.results, {name: one.tiling for name, one in self.cohorts.items()})

    def tiling_of(self, cohort: str) -> Tiling:
        """Return the tiling of a cohort."""
        return self.tilings[self.cohorts[cohort].tiling]

    @property
    def needs_slides(self) -> bool:
        """Whether slides are read; False if no encoder sees tiles."""
        return not self.encoders or any(e.sees_tiles for e in self.encoders.values())

    def runs(self) -> list[Run]:
        """List every encoder with every seed; names have `.seed` if there are several seeds."""
        return [run for key in self.encoders for run in self.runs_of(key)]

    def runs_of(self, key: str) -> list[Run]:
        """List the runs of one encoder."""
        encoder, seeds = self.encoders[key], self.encoders[self.source_encoder(key)].seeds
        single = len(seeds) == 1
        return [Run(key if single else f"{key}.{s}", key, encoder, s) for s in seeds]

    def source_encoder(self, key: str) -> str:
        """Follow `vectors` to the encoder whose embeddings are used first; itself without them."""
        passed = [key]
        while (key := self.encoders[passed[-1]].vectors or "") in self.encoders:
            if key in passed:
                break  # a cycle, which `parse` refuses
            passed.append(key)
        return passed[-1]

    def source_run(self, run: Run) -> Run | None:
        """Return the run whose embeddings a run uses, or None without `vectors`."""
        key = run.encoder.vectors
        if key is None:
            return None
        return next(other for other in self.runs_of(key) if other.seed == run.seed)

    def stored_run(self, name: str) -> Run:
        """Return the run whose stored embeddings a run reads: another one if it centres them."""
        run = self.run(name)
        other = self.source_run(run) if run.encoder.center else None
        return other or run

    def runs_on(self, cohort: str) -> list[Run]:
        """List the runs whose embeddings of a cohort are needed: all if there is no benchmark.

        This includes runs whose embeddings other runs use, but not centred ones, which are not
        stored.
        """
        if not self.benchmarks:
            return [run for run in self.runs() if not run.encoder.center]
        keys = [
            key
            for benchmark in self.benchmarks.values()
            for task in map(self.tasks.__getitem__, benchmark.tasks)
            if cohort in (*task.cohorts, *task.external) and not task.is_fine_tuned
            for key in benchmark.encoders
        ]
        keys += [other for key in keys for other in self._taken_by(key)]
        runs = [run for key in dict.fromkeys(keys) for run in self.runs_of(key)]
        return [run for run in runs if not run.encoder.center]

    def _taken_by(self, key: str) -> Iterator[str]:
        """Yield the encoders whose embeddings an encoder uses, directly or indirectly."""
        while (other := self.encoders[key].vectors) is not None:
            yield other
            key = other

    def benchmarked(self) -> list[tuple[str, str]]:
        """List (task, encoder) of all benchmarks, in order and without duplicates."""
        pairs = [
            (task, encoder)
            for benchmark in self.benchmarks.values()
            for task in benchmark.tasks
            for encoder in benchmark.encoders
        ]
        return list(dict.fromkeys(pairs))

    def per_label_tasks(self) -> dict[str, Task]:
        """Return all tasks as they are evaluated; see `Task.per_label_tasks`."""
        return {
            n: t for name, task in self.tasks.items() for n, t in task.per_label_tasks(name).items()
        }

    def sources(self) -> dict[str, tuple[str, str]]:
        """Map each key of `per_label_tasks` to its task, and its label if the task has several."""
        return {
            key: (name, one.label if task.labels else "")
            for name, task in self.tasks.items()
            for key, one in task.per_label_tasks(name).items()
        }

    def initial_run(self, run: Run) -> Run | None:
        """Return the run from which another starts, if `init` names an encoder of this config.

        It has the same seed, or the first if that encoder does not have it.
        """
        key = run.encoder.init
        if key is None or key == run.key or key not in self.encoders:
            return None
        runs = self.runs_of(key)
        return next((other for other in runs if other.seed == run.seed), runs[0])

    def start_of(self, key: str) -> str:
        """Return the weights at the start of an encoder's chain of `init`.

        For random weights this is the timm name of the network.
        """
        run = self.runs_of(key)[0]
        while (other := self.initial_run(run)) is not None:
            run = other
        return run.encoder.source or run.encoder.architecture

    def run(self, name: str) -> Run:
        """Return the run of a name.

        Raises:
            StainsslError: no encoder has a run of this name.
        """
        found = {run.name: run for run in self.runs()}
        if name not in found:
            raise StainsslError(f"No encoder is named {name!r}{nearest(name, found)}")
        return found[name]


def folded(name: str) -> str:
    """Normalize a name for comparison: without case, spaces, punctuation and underscores."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """Return the end of an error message that suggests the nearest known word, or lists all."""
    by_fold = {folded(name): name for name in known}
    close = difflib.get_close_matches(word, list(known), n=1) or [
        by_fold[name] for name in difflib.get_close_matches(folded(word), list(by_fold), n=1)
    ]
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(map(str, known)) or 'none'}."


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Config
    for step in location:
        field = getattr(model, "model_fields", {}).get(step)
        annotation = field.annotation if field else model
        model = _inner_model(annotation) or model
    return list(getattr(model, "model_fields", {}))


def _inner_model(annotation: Any) -> type[Model] | None:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    inner = (_inner_model(part) for part in getattr(annotation, "__args__", ()))
    return next((model for model in inner if model), None)


def _sentences(error: ValidationError, source: str) -> Iterator[str]:
    for found in error.errors():
        *parents, key = found["loc"] or ("config",)
        where = ".".join(str(step) for step in found["loc"]) or "config"
        if found["type"] == "extra_forbidden":
            known = _known_keys(tuple(parents))
            yield f"{source}: unknown key {where}{nearest(str(key), known)}"
        elif found["type"] == "missing":
            yield f"{source}: {where} is missing: add it."
        else:
            message = found["msg"].removeprefix("Value error, ")
            yield f"{source}: {where}: {message}; found {_short(found['input'])}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _references(config: Config) -> Iterator[str]:
    """Problems across sections: undefined names, and encoders or heads unfit for their tasks."""
    for kind, name, key, word, known in _uses(config):
        if word not in known:
            yield f"{kind}.{name}.{key}: no such name {word!r}{nearest(word, known)}"
    for name in config.encoders:
        yield from _init_problems(config, name)
        yield from _vectors_problems(config, name)
    for name in config.benchmarks:
        yield from _unanswered(config, name)
        yield from _heads_of_classes(config, name)
        yield from _unfused_heads(config, name)
        yield from _untunable(config, name)


def _heads_of_classes(config: Config, name: str) -> Iterator[str]:
    """CLAM heads in a benchmark with tasks without classes, or with several labels."""
    benchmark = config.benchmarks[name]
    tasks = [t for t in benchmark.tasks if t in config.tasks]
    others = [
        t for t in tasks if config.tasks[t].kind != "classification" or config.tasks[t].labels
    ]
    heads = [h for h in benchmark.heads if h in config.heads and config.heads[h].kind == "clam"]
    if others and heads:
        task = config.tasks[others[0]]
        what = "several labels" if task.labels else f"kind {task.kind}"
        yield (
            f"benchmarks.{name}.heads: {heads[0]} is of kind clam, which needs classes,"
            f" but tasks.{others[0]} is of {what}: use separate benchmarks."
        )


def _unfused_heads(config: Config, name: str) -> Iterator[str]:
    """Heads of a benchmark that cannot use clinical columns, with tasks of fusion gated."""
    benchmark = config.benchmarks[name]
    tasks = [config.tasks[t] for t in benchmark.tasks if t in config.tasks]
    kinds = {h: config.heads[h].kind for h in benchmark.heads if h in config.heads}
    strange = [head for head, kind in kinds.items() if kind not in FUSED_KINDS]
    if strange and any(task.fusion == "gated" for task in tasks):
        yield (
            f"benchmarks.{name}.heads: {strange[0]} is of kind {kinds[strange[0]]}, and fusion:"
            f" gated needs heads of kind {' or '.join(FUSED_KINDS)}: leave it out, or use late."
        )


def _untunable(config: Config, name: str) -> Iterator[str]:
    """Encoders of a benchmark that its tasks cannot fine-tune."""
    benchmark = config.benchmarks[name]
    tuned = [t for t in benchmark.tasks if t in config.tasks and config.tasks[t].is_fine_tuned]
    for key in [key for key in benchmark.encoders if key in config.encoders]:
        encoder = config.encoders[key]
        if tuned and not encoder.sees_tiles:
            yield (
                f"benchmarks.{name}.encoders: {key!r} is {_made_of(encoder)}, without a network"
                f" that tasks.{tuned[0]} could fine-tune: use separate benchmarks."
            )
        if tuned and encoder.averages_stains:
            yield (
                f"benchmarks.{name}.encoders: preprocess of {key!r} averages over several stains,"
                f" but tasks.{tuned[0]} fine-tunes on one: use separate benchmarks."
            )
        restaining = [t for t in tuned if config.tasks[t].fine_tune.consistency]
        if restaining and encoder.preprocess:
            yield (
                f"benchmarks.{name}.encoders: preprocess of {key!r} removes the stain that"
                f" tasks.{restaining[0]}.fine_tune.consistency changes: leave one out."
            )


def _made_of(encoder: Encoder) -> str:
    """Description of an encoder that does not see tiles, for messages."""
    if encoder.features is not None:
        return "imported features"
    return f"computed from embeddings by {encoder.vectors!r}"


def _vectors_problems(config: Config, name: str) -> Iterator[str]:
    """Cycles of `vectors`, and embeddings that are centred and therefore not stored."""
    passed = [name]
    while (key := config.encoders[passed[-1]].vectors) in config.encoders:
        assert key is not None
        if key in passed:
            yield f"encoders.{name}.vectors: {' takes those of '.join([*passed, key])}: a cycle."
            return
        passed.append(key)
    if len(passed) > 1 and config.encoders[passed[1]].center:
        yield (
            f"encoders.{name}.vectors: those of {passed[1]!r} are centred within each fold and"
            f" not stored: use those of {config.encoders[passed[1]].vectors!r}."
        )


def _unanswered(config: Config, name: str) -> Iterator[str]:
    """Encoders of a benchmark whose embeddings do not suit its tasks."""
    benchmark = config.benchmarks[name]
    tasks = [(t, config.tasks[t]) for t in benchmark.tasks if t in config.tasks]
    for key in [key for key in benchmark.encoders if key in config.encoders]:
        encoder = config.encoders[key]
        tiled = [t for t, task in tasks if task.level == "tile"]
        if encoder.is_of_slides and tiled:
            yield (
                f"benchmarks.{name}.encoders: {key!r} gives one vector per slide, but"
                f" tasks.{tiled[0]} is of level tile: use separate benchmarks."
            )
        external = [(t, task.external[0]) for t, task in tasks if task.external]
        if encoder.center and external:
            task_name, cohort = external[0]
            yield (
                f"benchmarks.{name}.encoders: {key!r} is centred by site, and the means of the"
                f" sites of {cohort} (external to tasks.{task_name}) could only be computed on its"
                " test patients: use separate benchmarks."
            )


def _init_problems(config: Config, name: str) -> Iterator[str]:
    """Cycles of `init`, and encoders that start from one without a network."""
    chain = [name]
    while (key := config.encoders[chain[-1]].init) in config.encoders and key != chain[-1]:
        assert key is not None
        if key in chain:
            yield f"encoders.{name}.init: {' starts from '.join([*chain, key])}: a cycle."
            return
        chain.append(key)
    own = config.encoders[name]
    if len(chain) > 1 and (own.recipe or own.revision):
        yield (
            f"encoders.{name}: recipe and revision are for weights, but init: {chain[1]} is an"
            f" encoder of this config: set them at encoders.{chain[1]}."
        )
    if len(chain) > 1 and not (start := config.encoders[chain[1]]).sees_tiles:
        yield f"encoders.{name}.init: {chain[1]!r} is {_made_of(start)}, without a network."


def _uses(config: Config) -> Iterator[tuple[str, str, str, str, Mapping[str, Any]]]:
    for name, cohort in config.cohorts.items():
        yield "cohorts", name, "tiling", cohort.tiling, config.tilings
    for name, encoder in config.encoders.items():
        yield "encoders", name, "tiling", encoder.tiling, config.tilings
        if encoder.vectors is not None:
            yield "encoders", name, "vectors", encoder.vectors, config.encoders
        yield from _target_uses(name, encoder)
        for cohort_name in encoder.train.cohorts if encoder.train else []:
            yield "encoders", name, "train.cohorts", cohort_name, config.cohorts
            if encoder.label:
                yield "encoders", name, "label", encoder.label, _tile_labels(config, cohort_name)
    for name, task in config.tasks.items():
        for cohort_name in task.cohorts:
            yield "tasks", name, "cohorts", cohort_name, config.cohorts
        for cohort_name in task.external:
            yield "tasks", name, "external", cohort_name, config.cohorts
    for name, benchmark in config.benchmarks.items():
        for key, known in (
            ("tasks", config.tasks),
            ("encoders", config.encoders),
            ("heads", config.heads),
        ):
            for word in getattr(benchmark, key):
                yield "benchmarks", name, key, word, known


def _target_uses(
    name: str, encoder: Encoder
) -> Iterator[tuple[str, str, str, str, Mapping[str, Any]]]:
    """Uses of cohorts and splits by a target, which must be among those of `train`."""
    if encoder.train is None:
        return
    for key in ("cohorts", "splits"):
        allowed = dict.fromkeys(getattr(encoder.train, key))
        for word in getattr(encoder.target, key) or []:
            yield "encoders", name, f"target.{key}, within train.{key}", word, allowed


def _tile_labels(config: Config, cohort: str) -> dict[str, str]:
    tasks = [task for task in config.tasks.values() if task.level == "tile"]
    return {task.label: cohort for task in tasks if cohort in task.cohorts}


def parse(data: Mapping[str, Any], source: str = "config") -> Config:
    """Build the config from a parsed YAML mapping.

    Args:
        data: mapping from YAML.
        source: name of the file, for messages.

    Raises:
        StainsslError: all problems, one per line, with key, value and known alternatives.
    """
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise StainsslError("\n".join(_sentences(error, source))) from None
    from stainssl.config_names import name_problems

    found = [*_references(config), *name_problems(config)]
    if problems := [f"{source}: {sentence}" for sentence in found]:
        raise StainsslError("\n".join(problems))
    return config


class _UniqueKeys(yaml.SafeLoader):
    """YAML loader that refuses duplicate keys; PyYAML would use the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: duplicate key {key.value!r}")
            seen.add(key.value)
        return node


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        StainsslError: the file is missing, not YAML, or has a duplicate key.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise StainsslError(f"{path}: no such config file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StainsslError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def load(path: Path) -> Config:
    """Load the config from a YAML file.

    Raises:
        StainsslError: the file is missing, not YAML, or `parse` finds problems.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise StainsslError(f"{path}: expected a mapping of keys, found {_short(data)}.")
    return parse(data, str(path))


def dump(config: Config) -> str:
    """Return the resolved config, including defaults, as YAML that `load` can read."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
