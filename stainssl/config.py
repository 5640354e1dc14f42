"""The whole config as typed models: the only place where a key is known."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from stainssl.status import StainsslError

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """A frozen part of the config that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Slides(Model):
    """How slides are opened and what a bad one costs."""

    reader: Literal["auto", "openslide", "patches"] = "auto"
    part_size: Positive = 32  # slides a part, the unit of a job
    on_missing: Literal["error", "quarantine"] = "error"
    max_bad_slides: Share = 0.1  # share of a cohort's slides past which the run stops


class Demo(Model):
    """The synthetic cohort: patients per site, drawn from a seed."""

    seed: int = 0
    patients: dict[Name, Positive] = {"a": 10, "b": 10, "c": 12}


class Cohort(Model):
    """Slides or patches of one source, named in one sheet."""

    sheet: Path | None = None  # CSV, a row per slide
    root: Path = Path(".")  # paths in the sheet are relative to it
    demo: Demo | None = None  # instead of a sheet
    kind: Literal["slides", "patches"] = "slides"
    annotations: str | None = None  # pattern with {slide_id}: GeoJSON
    tiling: str = "default"

    @model_validator(mode="after")
    def _one_source(self) -> Cohort:
        if (self.sheet is None) == (self.demo is None):
            raise ValueError("give either 'sheet' (a CSV) or 'demo' (the synthetic cohort)")
        return self


class Mask(Model):
    """The tissue mask, drawn on a thumbnail."""

    mpp: Annotated[float, Field(gt=0)] = 8.0  # µm/px of the thumbnail
    min_area_um2: Annotated[float, Field(ge=0)] = 20_000  # smaller specks are not tissue
    min_hole_um2: Annotated[float, Field(ge=0)] = 10_000  # smaller holes are filled


class Filters(Model):
    """Limits on a tile's own figures; null is no limit."""

    max_pen: Share | None = 0.1  # share of the tile's area
    min_sharpness: Annotated[float, Field(ge=0)] | None = None
    min_saturation: Share | None = None


class Tiling(Model):
    """How slides become tiles."""

    mpp: Annotated[float, Field(ge=0.05, le=50)] = 0.5  # µm/px
    size: Positive = 256  # px at `mpp`
    overlap: Annotated[int, Field(ge=0)] = 0  # px at `mpp`
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


class Target(Model):
    """The profile(s) that images are normalised to."""

    policy: Literal["batch", "cohort", "site", "medoid", "spread", "fixed"] = "batch"
    per: Literal["iteration", "image"] = "iteration"
    path: Path | None = None  # policy fixed: a target.json


class Encoder(Model):
    """Tile → vector: trained here (`method`), given (`weights`), or made before (`features`)."""

    method: Literal["stain-invariant", "simclr", "random"] | None = None
    weights: str | None = None  # local-dir:FOLDER, hf-hub:NAME, a timm name or NAME@FILE
    features: str | None = None  # clam:FOLDER or trident:FOLDER, files of vectors
    train: Train | None = None
    tiling: str = "default"
    backbone: str = "resnet50"  # any timm name
    input_size: Annotated[int, Field(ge=32)] | None = None  # px; null: the tiling's size
    target: Target = Target()
    normalizer: Literal["macenko", "reinhard"] = "macenko"
    views: Literal["one", "same", "different"] = "one"  # which views are normalised
    colour: Literal["none", "weak", "strong"] = "weak"  # jitter beside the stain target
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    frozen: bool = False  # true: never retrained, whatever changed
    epochs: Positive = 100
    steps: Positive | None = None  # stop after so many steps; null: after `epochs`
    batch_size: Annotated[int, Field(ge=2)] = 256
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    temperature: Annotated[float, Field(gt=0)] = 0.2

    @model_validator(mode="after")
    def _one_kind(self) -> Encoder:
        if sum(given is not None for given in (self.method, self.weights, self.features)) != 1:
            raise ValueError(
                "give one of 'method' (trained here), 'weights' (given), 'features' (files)"
            )
        if self.is_trained and self.train is None:
            raise ValueError(f"method {self.method} needs 'train: {{cohorts: [...]}}'")
        return self

    @property
    def is_trained(self) -> bool:
        """Whether pretraining sees tiles."""
        return self.method not in (None, "random")

    @property
    def needs_target(self) -> bool:
        """Whether pretraining normalises to a target."""
        return self.method == "stain-invariant"


class Split(Model):
    """How patients become training, validation and test patients."""

    kind: Literal["cv", "sheet", "leave-one-out"] = "cv"
    folds: Annotated[int, Field(ge=2)] = 5
    repeats: Positive = 1
    group: str = "patient_id"  # leave-one-out: the sheet column that is left out, as `site`
    stratify: list[str] = []


class Task(Model):
    """A question: a label, its level, cohorts and a split."""

    level: Literal["tile", "slide", "patient"]
    label: str
    cohorts: Annotated[list[str], Field(min_length=1)]
    split: Split = Split()
    external: list[str] = []  # cohorts that no fold sees, scored by all fold models
    clinical: list[str] = []  # columns of the sheet that a baseline may know: age, grade …


class Head(Model):
    """The network that aggregates a bag."""

    kind: Literal["mean", "abmil", "clam", "dsmil", "transmil"]
    epochs: Positive = 40
    lr: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
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

    results: Path = Path("results")
    seed: int = 0
    slides: Slides = Slides()
    cohorts: dict[Name, Cohort]
    tilings: dict[Name, Tiling] = {"default": Tiling()}
    encoders: dict[Name, Encoder] = {}
    tasks: dict[Name, Task] = {}
    heads: dict[Name, Head] = {}
    benchmarks: dict[Name, Benchmark] = {}

    @property
    def needs_slides(self) -> bool:
        """Whether slides are read: not where every encoder is imported features."""
        return not self.encoders or any(e.features is None for e in self.encoders.values())

    def runs(self) -> list[Run]:
        """Every encoder under every seed; one seed has the encoder's name, several get `.seed`."""
        return [run for key in self.encoders for run in self.runs_of(key)]

    def runs_of(self, key: str) -> list[Run]:
        """The runs of one encoder."""
        encoder = self.encoders[key]
        single = len(encoder.seeds) == 1
        return [Run(key if single else f"{key}.{s}", key, encoder, s) for s in encoder.seeds]

    def run(self, name: str) -> Run:
        """The run of that name.

        Raises:
            StainsslError: no encoder makes it.
        """
        found = {run.name: run for run in self.runs()}
        if name not in found:
            raise StainsslError(f"No encoder is named {name!r}{nearest(name, found)}")
        return found[name]


def nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """The end of a sentence that names the nearest known word, or all of them."""
    close = difflib.get_close_matches(word, list(known), n=1)
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


def _uses(config: Config) -> Iterator[tuple[str, str, str, str, Mapping[str, Any]]]:
    for name, cohort in config.cohorts.items():
        yield "cohorts", name, "tiling", cohort.tiling, config.tilings
    for name, encoder in config.encoders.items():
        yield "encoders", name, "tiling", encoder.tiling, config.tilings
        for cohort_name in encoder.train.cohorts if encoder.train else []:
            yield "encoders", name, "train.cohorts", cohort_name, config.cohorts
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
    if problems := [f"{source}: {sentence}" for sentence in _references(config)]:
        raise StainsslError("\n".join(problems))
    return config


def load(path: Path) -> Config:
    """The config in a YAML file.

    Raises:
        StainsslError: the file is missing, not YAML, or `parse` finds problems.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StainsslError(f"{path}: no such config file.") from None
    except yaml.YAMLError as error:
        raise StainsslError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise StainsslError(f"{path}: expected a mapping of keys, found {_short(data)}.")
    return parse(data, str(path))


def dump(config: Config) -> str:
    """The config as resolved, defaults included, as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
