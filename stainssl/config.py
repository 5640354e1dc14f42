"""The whole config as typed models: the only place where a key is known."""

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
    """A frozen part of the config that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Staging(Model):
    """A local folder that slides on slow storage are copied to, used and removed from."""

    folder: Path
    most_gb: Annotated[float, Field(gt=0)] = 100.0  # of all jobs together; more is read in place

    @property
    def most_bytes(self) -> int:
        """The bound in bytes."""
        return int(self.most_gb * 1e9)


PartSize = Positive | Literal["auto"]


class Slides(Model):
    """How slides are opened and what a bad one costs."""

    reader: Literal[
        "auto", "tiff", "openslide", "patches", "tiatoolbox", "fastslide", "tifffile"
    ] = "auto"
    part_size: PartSize = "auto"  # slides a part, the unit of a job
    on_missing: Literal["error", "quarantine"] = "error"
    staging: Staging | None = None
    max_bad_slides: Share = 0.1  # share of a cohort's slides, rounded up, past which the run stops
    max_minutes: Ratio = 240  # that one slide may take in a job, before it is given up
    keep_pixels: bool = True  # false: the tiles of a part are removed when nothing is to read them

    def staging_place(self) -> tuple[Path | None, int]:
        """The staging folder and the bytes that it may hold; None: slides are read in place."""
        return (self.staging.folder, self.staging.most_bytes) if self.staging else (None, 0)


class Demo(Model):
    """The synthetic cohort: patients per site, drawn from a seed."""

    seed: int = 0
    patients: dict[Name, Positive] = {"a": 10, "b": 10, "c": 12}


class Outlines(Model):
    """Which classes of the annotations make a tile label."""

    of: Annotated[list[str], Field(min_length=1)]
    without: list[str] = []  # classes that are cut out of them
    ignore: list[str] = []  # classes that read like one of these and are something else


class Cohort(Model):
    """Slides or patches of one source, named in one sheet."""

    sheet: Path | None = None  # CSV, a row per slide
    root: Path = Path(".")  # paths in the sheet are relative to it
    demo: Demo | None = None  # instead of a sheet
    release: str | None = None  # instead of a sheet: a public data set, whose folder is `root`
    options: dict[str, str] = {}  # of the release, as its page in docs/cohorts/ names them
    columns: dict[str, str | None] = {}  # our column → the sheet's; null: ours is not in the sheet
    outside_root: bool = False  # whether paths may leave the root
    patient_ids: Literal["shared", "local"] | None = None  # whether an id is one person everywhere
    kind: Literal["slides", "patches"] = "slides"
    patches: Literal["whole", "cut"] = "whole"  # one tile a picture, or as many as fit at `mpp`
    annotations: str | None = None  # pattern with {slide_id}: GeoJSON, ASAP or ImageScope XML
    outlines: dict[str, Outlines] = {}  # tile label → classes; without: the class of its name
    annotations_frame: Frame = "auto"  # of slides with bounds: where the outlines count from
    regions: str | None = None  # pattern with {slide_id}: tiles stand inside these outlines only
    regions_frame: Frame = "auto"  # likewise
    tiling: str = "default"

    @model_validator(mode="before")
    @classmethod
    def _of_release(cls, given: Any) -> Any:
        """What a release knows of itself, where the config does not say otherwise."""
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
    """Raise unless a pattern of files has {slide_id} and no other field."""
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
    """The tissue mask, drawn on a thumbnail."""

    kind: Literal["stain", "otsu", "morphological"] = "stain"  # the last two are tiatoolbox's
    mpp: Annotated[float, Field(gt=0)] = 8.0  # µm/px of the thumbnail
    min_area_um2: Annotated[float, Field(ge=0)] = 20_000  # smaller specks are not tissue
    min_hole_um2: Annotated[float, Field(ge=0)] = 10_000  # smaller holes are filled


class Filters(Model):
    """Limits on a tile's own figures; null is no limit."""

    max_pen: Share | None = 0.1  # share of the tile's area
    min_sharpness: Annotated[float, Field(ge=0)] | None = 0.4  # flags 9 of 10 blurred tiles
    min_saturation: Share | None = None


class Tiling(Model):
    """How slides become tiles."""

    mpp: Annotated[float, Field(ge=0.05, le=50)] = 0.5  # µm/px
    size: Positive = 256  # px at `mpp`
    overlap: Annotated[int, Field(ge=0)] = 0  # px at `mpp`
    max_enlargement: Annotated[float, Field(ge=1)] = 1.5  # of a slide coarser than `mpp`
    min_tissue: Share = 0.5  # share of the tile's area
    mask: Mask = Mask()
    filters: Filters = Filters()

    @model_validator(mode="after")
    def _overlap_below_size(self) -> Tiling:
        if self.overlap >= self.size:
            raise ValueError(f"overlap ({self.overlap} px) must be below size ({self.size} px)")
        return self


class Train(Model):
    """What an encoder is trained on; `splits: [all]` where the sheet has no split."""

    cohorts: Annotated[list[str], Field(min_length=1)]
    splits: Annotated[list[str], Field(min_length=1)] = ["train"]


class TargetSettings(Model):
    """The profile(s) that images are normalized to."""

    policy: Literal["batch", "cohort", "site", "medoid", "spread", "fixed"] = "batch"
    per: Literal["iteration", "image"] = "iteration"
    cohorts: list[str] | None = None  # whose tiles are candidates; null: those of train
    splits: list[str] | None = None  # likewise
    by: Literal["all", "site"] = "all"  # policy medoid: one of all tiles, or one a site
    count: Positive = 8  # policy spread: how many
    path: Path | None = None  # policy fixed: a target.json


class Geometry(Model):
    """How a view is cut out of a tile."""

    area: tuple[Share, Share] = (0.25, 1.0)  # least and largest, of the tile's
    ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)  # least and largest width to height
    turns: bool = True  # flips and quarter turns

    @model_validator(mode="after")
    def _ordered(self) -> Geometry:
        for name, (low, high) in (("area", self.area), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} ({low:g}, {high:g}): give minimum and maximum, above 0")
        return self


class Adapters(Model):
    """Low-rank adapters, what `tune: lora` trains (Hu et al. 2022)."""

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0  # a change counts alpha / rank times


class Lora(Adapters):
    """Low-rank adapters of an encoder, which are saved."""

    merge: bool = False  # true: the model is saved with its full weights, as timm loads it


Channel = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]
NUMBER = r"[+-]?\d+e[+-]?\d+"
Argument = str | int | float | bool | list[int] | None


class Recipe(Model):
    """How weights are built, prepared and pooled: what docs/encoders.md has a row of."""

    architecture: str = ""  # timm name of the network; "": the one before @FILE
    arguments: dict[str, Argument] = {}  # of it; layers by name, as mlp_layer: SwiGLUPacked
    layout: Layout = "timm"  # whose names the tensors have
    files: Annotated[list[str], Field(min_length=1)] = ["model.safetensors", "pytorch_model.bin"]
    pooling: Pooling = "cls"  # what the vector is
    dim: Positive | None = None  # length of the vector, which is checked; attention, projection
    mean: tuple[Channel, Channel, Channel]  # of RGB in [0, 1]
    std: tuple[Deviation, Deviation, Deviation]
    input_px: Annotated[int, Field(ge=32)] = 224  # side of what the network sees
    stored_px: Annotated[int, Field(ge=32)] | None = None  # that positions are for; null: input_px
    resize_px: Annotated[int, Field(ge=32)] | None = None  # before the middle is seen; null: no
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    precision: Precision = "half"  # of a GPU
    mpp: list[Ratio] = []  # µm/px of its training; another tiling is warned of
    tile_px: Positive | None = None  # side of the tiles of its training, likewise
    license: str = ""
    gated: bool = False  # whether the hub asks for consent first

    @field_validator("arguments", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, given: Any) -> Any:
        """YAML reads 1e-5, which has no point, as a word."""
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
REFERENCE = "reference"  # of `preprocess`: the normalizer's published profile
EACH = "each"  # of `preprocess`: the stains that `target` chooses
EACH_POLICIES = ("spread", "medoid", "fixed")  # of a few stains, and always the same
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
    """Tile → vector: trained here (`method`), given (`weights`), or made before (`features`).

    With `vectors`, those of another encoder → vectors: centred (`center`), or one a slide, by an
    encoder of slides (`weights`).
    """

    method: Literal["stain-invariant", "simclr", "random"] | None = None
    weights: str | None = None  # a name of docs/encoders.md, local-dir:, hf-hub:, timm, NAME@FILE
    recipe: Recipe | None = None  # of weights or init that are none of docs/encoders.md's
    revision: str | None = None  # commit, tag or branch of weights or init of the hub
    features: str | None = None  # clam:FOLDER or trident:FOLDER, files of vectors
    vectors: str | None = None  # another encoder's name: what `center` and encoders of slides take
    center: Literal["site"] | None = None  # `vectors` less the mean of their site, in every fold
    train: Train | None = None
    tiling: str = "default"
    backbone: str | None = None  # any timm name; null: resnet50, or the network of `init`
    init: str | None = None  # weights that training starts from: as `weights`, or an encoder's name
    tune: Tune = "full"  # what of `init` is trained: full, last-N (blocks, stages) or lora
    lora: Lora = Lora()  # of tune: lora
    keep: Annotated[float, Field(ge=0)] = 0.0  # weight of staying near the vectors of `init`
    input_size: Annotated[int, Field(ge=32)] | None = None  # px; null: the tiling's, the weights'
    target: TargetSettings = TargetSettings()
    normalizer: Normalizer | Annotated[list[Normalizer], Field(min_length=1)] = "macenko"
    views: Literal["one", "same", "different"] = "one"  # which views are normalized
    stain_probability: Share = 1.0  # that a view which is to be normalized is
    # Normalize every tile first: true: to the mean of `train`'s; of given weights also `reference`
    # (the published profile of the normalizer), a file (target.json, stain.json), or several
    # stains, over which vectors are averaged: a list of these, or each (of `target`'s).
    preprocess: bool | str | Annotated[list[str], Field(min_length=1)] = False
    geometry: Geometry = Geometry()
    color: ColorKind = "weak"  # jitter beside the stain target
    stain_jitter: StainJitterKind = "hed"  # before color jitter
    stain_jitter_strength: Annotated[float, Field(gt=0)] | None = None  # null: see the reference
    loss: Literal["nt-xent", "vicreg", "barlow-twins", "dino"] = "nt-xent"
    temperature: Annotated[float, Field(gt=0)] = 0.2  # of nt-xent
    queue: Annotated[int, Field(ge=0)] = 0  # earlier images that are negatives too; nt-xent
    supervised_weight: Annotated[float, Field(ge=0)] = 0.0  # of a loss from tile labels beside it
    label: str | None = None  # of a tile task: for that loss, and for the neighbours' vote
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    frozen: bool = False  # true: never retrained, whatever changed
    epochs: Positive = 100
    steps: Positive | None = None  # stop after so many steps; null: after `epochs`
    batch_size: Annotated[int, Field(ge=2)] = 256  # of all devices together
    optimizer: Literal["adamw", "lars"] = "adamw"
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-3
    lr_backbone: Annotated[float, Field(gt=0, le=100)] | None = None  # of `init`; null: `lr`
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the rate, a layer down; `init`
    freeze_steps: Annotated[int, Field(ge=0)] = 0  # at first, in which `init` stays as it is
    freeze_norms: bool = True  # batch norms of `init` keep their running statistics, and use them
    warm_up: Share = 0.1  # of the steps
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 1e-4
    precision: Literal["auto", "32", "bf16"] = "auto"  # auto: half on a GPU, 32 bits on a CPU
    compile: bool = False  # to embed, by torch.compile

    @model_validator(mode="before")
    @classmethod
    def _accept_aliases(cls, given: Any) -> Any:
        """`colour` is accepted for `color`, and says so."""
        if not isinstance(given, dict) or "colour" not in given or "color" in given:
            return given
        log.warning("The key 'colour' of an encoder is read as 'color': write 'color'.")
        return {("color" if key == "colour" else key): value for key, value in given.items()}

    @model_validator(mode="before")
    @classmethod
    def _splits_revision(cls, given: Any) -> Any:
        """`hf-hub:OWNER/NAME@REVISION` is that name and that `revision`."""
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
        """Whether a network sees tiles: not where vectors are imported or made from others."""
        return self.features is None and self.vectors is None

    @property
    def is_of_slides(self) -> bool:
        """Whether it makes one vector per slide from another encoder's vectors."""
        return self.vectors is not None and self.weights is not None

    @property
    def is_trained(self) -> bool:
        """Whether pretraining sees tiles."""
        return self.method not in (None, "random")

    @property
    def last_blocks(self) -> int | None:
        """How many blocks or stages of `init` are trained; None: not so many (`full`, `lora`)."""
        return _last_blocks(self.tune)

    @property
    def architecture(self) -> str:
        """The timm name of a network that starts from random weights."""
        return self.backbone or DEFAULT_BACKBONE

    @property
    def source(self) -> str | None:
        """Given weights, or those that training starts from, with their recipe and revision."""
        given = self.weights or self.init
        if given is None:
            return None
        own = self.recipe
        said = own.model_dump(mode="json", exclude_defaults=True) if own else None
        return written(given, said, self.revision)

    @property
    def given_size(self) -> int | None:
        """The side in px that given weights see where it is not their own; a model has its own."""
        return self.input_size if self.weights else None

    @property
    def needs_target(self) -> bool:
        """Whether tiles are normalized to a target that is chosen here."""
        return self.method == "stain-invariant" or self.preprocess in (True, EACH)

    @property
    def averages_stains(self) -> bool:
        """Whether a vector is the mean over several stains of its tile."""
        return self.preprocess == EACH or isinstance(self.preprocess, list)

    @property
    def named_stains(self) -> list[str]:
        """`reference` and the files that `preprocess` names; none where `target` chooses."""
        if not self.preprocess or self.needs_target:
            return []
        given = self.preprocess
        return given if isinstance(given, list) else [str(given)]

    @property
    def normalizers(self) -> list[str]:
        """The normalizers; targets are chosen under the first."""
        return [self.normalizer] if isinstance(self.normalizer, str) else list(self.normalizer)


class Split(Model):
    """How patients become training, validation and test patients."""

    kind: Literal["cv", "sheet", "leave-one-out"] = "cv"
    folds: Annotated[int, Field(ge=2)] = 5
    repeats: Positive = 1
    group: str = "patient_id"  # leave-one-out: the sheet column that is left out, as `site`
    stratify: list[str] = []


Score = Literal[
    "auroc", "auprc", "accuracy", "balanced_accuracy", "f1_macro", "f1_weighted",
    "sensitivity", "specificity", "ppv", "npv", "pearson", "spearman", "mae", "r2",
    "kappa", "auroc_cuts", "c_index", "c_index_uno", "auroc_time", "integrated_brier",
]  # fmt: skip
SCORES: dict[str, tuple[str, ...]] = {  # the first where a task names none
    "classification": (
        "auroc", "auprc", "accuracy", "balanced_accuracy", "f1_macro", "f1_weighted",
        "sensitivity", "specificity", "ppv", "npv",
    ),
    "regression": ("spearman", "pearson", "mae", "r2"),
    "ordinal": ("kappa", "auroc_cuts", "accuracy", "balanced_accuracy"),
    "survival": ("c_index", "c_index_uno", "auroc_time", "integrated_brier"),
}  # fmt: skip
FUSED_KINDS = ("mean", "abmil")  # of heads that take clinical columns
MIN_ORDERED = 3  # classes of kind ordinal
NOT_OF: dict[str, tuple[str, ...]] = {  # keys of a task that say nothing to a kind
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
COLUMNS_OF: dict[str, tuple[str, ...]] = {"survival": ("time", "event")}  # other kinds: label
SURVIVAL_CLASSES = {"event", "censored"}


def _as_word(value: Any) -> Any:
    """A number of YAML as the word that a sheet has for it; `true` is no word of a sheet."""
    if isinstance(value, bool):
        raise ValueError(f"YAML reads {value} instead of a word: put it in quotes")
    return f"{value:g}" if isinstance(value, int | float) else value


class FineTune(Model):
    """How `protocol: fine-tune` trains an encoder's network on the labels of a tile task."""

    tune: Tune = "full"  # what of the network is trained: full, last-N (blocks, stages) or lora
    lora: Adapters = Adapters()  # of tune: lora
    epochs: Positive = 20  # at most
    patience: Positive = 3  # epochs without a lower validation loss
    batch_size: Annotated[int, Field(ge=2)] = 64
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 1e-4
    freeze_norms: bool = True  # batch norms keep their statistics; those of method random do not
    color: ColorKind = "weak"  # jitter, as of an encoder
    stain_jitter: StainJitterKind = "hed"  # likewise
    stain_jitter_strength: Annotated[float, Field(gt=0)] | None = None  # likewise
    consistency: Annotated[float, Field(ge=0)] = 0.0  # weight of answering alike in another stain

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
        """How many blocks or stages are trained; None: not so many (`full`, `lora`)."""
        return _last_blocks(self.tune)


class Task(Model):
    """A question: a label, its level, cohorts and a split."""

    level: Literal["tile", "slide", "patient"]
    # What the label is: a class, a number (regression), one of ordered 'classes' (ordinal), the
    # time to an event (survival).
    kind: Literal["classification", "regression", "ordinal", "survival"] = "classification"
    label: str = ""  # the sheet's column; of kind survival there are two
    labels: list[Name] = []  # kind classification: several columns that one model answers together
    time: str = ""  # kind survival: the column of the time to the event, or to the last contact
    event: str = ""  # kind survival: the column that says whether it is the event (1) or not (0)
    hazard: Literal["discrete", "cox"] = "discrete"  # kind survival: what heads learn of it
    na: list[str] = []  # words of the label that are unknown, beside the usual ones
    classes: dict[str, list[str]] = {}  # class → its words, in the classes' order; {}: every word
    positive: str | None = None  # of two classes; null: the one named 'positive', else the last
    class_weight: Literal["balanced", "none"] = "balanced"  # in training
    threshold: Literal["validation"] | Share = "validation"  # or a probability; of two classes
    sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.95  # that the second threshold is to have
    # Of the probabilities, by validation patients: platt (two classes), or temperature.
    recalibrate: Literal["none", "platt", "temperature"] = "none"
    cohorts: Annotated[list[str], Field(min_length=1)]
    split: Split = Split()
    external: list[str] = []  # cohorts that every fold's model is tested on and none is trained on
    clinical: list[str] = []  # columns of the sheet that a baseline may know: age, grade …
    # Rows of slides and clinical columns together: pooled answers, or one head.
    fusion: Literal["none", "late", "gated"] = "none"
    metrics: Annotated[list[Score], Field(min_length=1)] = [
        "auroc"
    ]  # shown and compared; regression: spearman
    protocol: Literal["probe", "fine-tune"] = "probe"  # level tile: how an encoder is asked
    fine_tune: FineTune = FineTune()  # of protocol fine-tune

    @model_validator(mode="before")
    @classmethod
    def _words_are_text(cls, given: Any) -> Any:
        """Words of a label may be written as numbers in YAML."""
        if not isinstance(given, dict):
            return given
        known = dict(given)
        if (kind := known.get("kind")) in SCORES:
            known.setdefault("metrics", [SCORES[kind][0]])
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
        """Key → the sheet's column, of all that the label is read from."""
        if self.labels:
            return {f"labels.{place}": column for place, column in enumerate(self.labels)}
        return {key: getattr(self, key) for key in COLUMNS_OF.get(self.kind, ("label",))}

    def questions(self, name: str) -> dict[str, Task]:
        """The task as it is judged: of several labels a task each, named `NAME.LABEL`.

        Args:
            name: of the task in the config.
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
        if strange := [one for one in self.metrics if one not in SCORES[self.kind]]:
            raise ValueError(
                f"metrics: {', '.join(strange)} is not for kind {self.kind}: choose from"
                f" {', '.join(SCORES[self.kind][:4])}"
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
        """Whether an encoder's network is trained on the labels, rather than asked as it is."""
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
    """The network that aggregates a bag."""

    kind: Literal["mean", "abmil", "clam", "dsmil", "transmil"]
    epochs: Positive = 40
    lr: Annotated[float, Field(gt=0, le=100)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 1e-2
    hidden: Positive = 64  # width of a tile's representation; mean pooling has none
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25
    max_tiles: Positive = 512  # tiles of a bag drawn for a step; prediction takes all
    patience: Positive = 8  # epochs without a lower validation loss


class Benchmark(Model):
    """Tasks × encoders × heads: one table."""

    tasks: Annotated[list[str], Field(min_length=1)]
    encoders: Annotated[list[str], Field(min_length=1)]
    heads: list[str] = []
    robustness: bool = True


class Run(NamedTuple):
    """One encoder under one seed: what a job trains and a table's row shows."""

    name: str
    key: str
    encoder: Encoder
    seed: int


class Config(Model):
    """Everything a run needs to know; `load` reads it."""

    results: Path = Path("results")  # a folder; braces would be wildcards
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
        """Where the outputs of every stage are."""
        return Paths(self.results, {name: one.tiling for name, one in self.cohorts.items()})

    def tiling_of(self, cohort: str) -> Tiling:
        """How a cohort's slides are tiled."""
        return self.tilings[self.cohorts[cohort].tiling]

    @property
    def needs_slides(self) -> bool:
        """Whether slides are read: not where every encoder is imported features."""
        return not self.encoders or any(e.sees_tiles for e in self.encoders.values())

    def runs(self) -> list[Run]:
        """Every encoder under every seed; one seed has the encoder's name, several get `.seed`."""
        return [run for key in self.encoders for run in self.runs_of(key)]

    def runs_of(self, key: str) -> list[Run]:
        """The runs of one encoder."""
        encoder, seeds = self.encoders[key], self.encoders[self.origin(key)].seeds
        single = len(seeds) == 1
        return [Run(key if single else f"{key}.{s}", key, encoder, s) for s in seeds]

    def origin(self, key: str) -> str:
        """The encoder that an encoder's vectors come from in the end: itself without `vectors`."""
        passed = [key]
        while (key := self.encoders[passed[-1]].vectors or "") in self.encoders:
            if key in passed:
                break  # a circle, which is refused
            passed.append(key)
        return passed[-1]

    def origin_run(self, run: Run) -> Run | None:
        """The run whose vectors a run is made from, where it has `vectors`."""
        key = run.encoder.vectors
        if key is None:
            return None
        return next(other for other in self.runs_of(key) if other.seed == run.seed)

    def stored_run(self, name: str) -> Run:
        """The run whose stored vectors a run uses: another's where it centres them."""
        run = self.run(name)
        other = self.origin_run(run) if run.encoder.center else None
        return other or run

    def runs_on(self, cohort: str) -> list[Run]:
        """The runs whose embeddings of a cohort are asked for: all, where no benchmark says.

        A centred one has none of its own; those that others are made from are among them.
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
        """The encoders that an encoder's vectors are made from, one after the other."""
        while (other := self.encoders[key].vectors) is not None:
            yield other
            key = other

    def benchmarked(self) -> list[tuple[str, str]]:
        """(task, encoder) of every row of every benchmark, each once, in their order."""
        pairs = [
            (task, encoder)
            for benchmark in self.benchmarks.values()
            for task in benchmark.tasks
            for encoder in benchmark.encoders
        ]
        return list(dict.fromkeys(pairs))

    def questions(self) -> dict[str, Task]:
        """Every task as it is judged: of several labels a task each."""
        return {n: q for name, task in self.tasks.items() for n, q in task.questions(name).items()}

    def sources(self) -> dict[str, tuple[str, str]]:
        """Question → the task that it is of, and the label where that has several."""
        return {
            question: (name, one.label if task.labels else "")
            for name, task in self.tasks.items()
            for question, one in task.questions(name).items()
        }

    def initial_run(self, run: Run) -> Run | None:
        """The run that another starts from where `init` names an encoder of this config.

        Of several seeds it is the same one, else the first.
        """
        key = run.encoder.init
        if key is None or key == run.key or key not in self.encoders:
            return None
        runs = self.runs_of(key)
        return next((other for other in runs if other.seed == run.seed), runs[0])

    def start_of(self, key: str) -> str:
        """The weights that an encoder, or the one that it starts from, begins with.

        Of random ones it is the timm name of the network.
        """
        run = self.runs_of(key)[0]
        while (other := self.initial_run(run)) is not None:
            run = other
        return run.encoder.source or run.encoder.architecture

    def run(self, name: str) -> Run:
        """The run of that name.

        Raises:
            StainsslError: no encoder makes it.
        """
        found = {run.name: run for run in self.runs()}
        if name not in found:
            raise StainsslError(f"No encoder is named {name!r}{nearest(name, found)}")
        return found[name]


def folded(name: str) -> str:
    """A name without case, spaces, hyphens and underscores, for comparisons."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """The end of a sentence that names the nearest known word, or all of them."""
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
    """Sentences about names that the config uses and does not define."""
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
    """CLAM learns tiles by classes, which the other kinds do not give it."""
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
    """Heads of a benchmark that have no slide vector for clinical columns to meet."""
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
    """Encoders of a benchmark whose network its fine-tuned tasks cannot train."""
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
    """What an encoder is that sees no tiles."""
    if encoder.features is not None:
        return "imported features"
    return f"computed from embeddings by {encoder.vectors!r}"


def _vectors_problems(config: Config, name: str) -> Iterator[str]:
    """An encoder's vectors are another's, in no circle, and centred once."""
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
    """Tasks of a benchmark that its encoders' vectors cannot answer."""
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
    """An encoder starts from a network, and not, over others, from itself."""
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
    """A target's candidates are tiles that the encoder is trained on."""
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
    """The config of a parsed YAML mapping.

    Args:
        data: what `yaml.safe_load` gave.
        source: the file's name, for messages.

    Raises:
        StainsslError: every problem at once, a line each, with key, value and what is known.
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
    """YAML whose mappings name each key once; the language lets the last one win."""

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
    """What a YAML file holds.

    Raises:
        StainsslError: the file is missing, not YAML, or names a key twice.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise StainsslError(f"{path}: no such config file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StainsslError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def load(path: Path) -> Config:
    """The config in a YAML file.

    Raises:
        StainsslError: the file is missing, not YAML, or `parse` finds problems.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise StainsslError(f"{path}: expected a mapping of keys, found {_short(data)}.")
    return parse(data, str(path))


def dump(config: Config) -> str:
    """The config as resolved, defaults included, as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
