"""Apply fold models to bags, and save and load fold models."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stainssl.errors import StainsslError
from stainssl.evaluation.thresholds import DecisionRule
from stainssl.mil import heads
from stainssl.mil.bags import Bag
from stainssl.mil.target import Target
from stainssl.mil.targets import target_from_dict
from stainssl.mil.train import FoldModel, HeadSettings, with_columns
from stainssl.stores.atomic import replacing

SCHEMA = 1
# Tiles in memory as float32 at once: 16,384 × 1,024 features are 64 MB.
CHUNK_TILES = 16_384


@torch.inference_mode()
def predict_bag(
    model: FoldModel, bag: Bag, chunk: int = CHUNK_TILES
) -> tuple[np.ndarray, np.ndarray]:
    """Predict one bag from all of its tiles.

    Args:
        model: the model of a fold.
        bag: a bag of at least one tile, with as many features as the model has.
        chunk: number of tiles in memory as float32 at once.

    Returns:
        Float32 vector of predictions (see `Target.predict`) and (N,) float32 attention that sums to
        one.
    """
    logits, attention = model.head.stream(_blocks(model, bag, chunk))
    return model.target.predict(logits), attention.numpy()


def _blocks(model: FoldModel, bag: Bag, chunk: int) -> Iterator[Tensor]:
    """Yield the tiles of a bag as input of the head, in blocks of at most `chunk`."""
    for block in bag.chunks(chunk):
        features = torch.from_numpy((block - model.mean) / model.std)
        if model.settings.columns:
            features = with_columns(features, torch.tensor([bag.columns]))
        yield features


def with_thresholds(
    model: FoldModel, val: Sequence[Bag], rule: DecisionRule, train: Sequence[Bag] = ()
) -> FoldModel:
    """Return a model with recalibration and thresholds from its validation bags.

    Without validation bags nothing is recalibrated, and a threshold of classes that is to be chosen
    on them is 0.5.

    Args:
        model: the model of a fold.
        val: its validation bags.
        rule: how to recalibrate and to choose thresholds.
        train: its training bags, for targets with `thresholds_use_training` or `is_joint`.
    """
    if model.target.is_joint:
        model = _with_baseline(model, train)
    if rule.recalibrate != "none":
        target = model.target.recalibrated(
            rule, [bag.label for bag in val], _predict_bags(model, val)
        )
        model = dataclasses.replace(model, target=target)
    bags = [*train, *val] if model.target.thresholds_use_training else val
    thresholds = model.target.thresholds(
        rule, [bag.label for bag in bags], _predict_bags(model, bags)
    )
    return dataclasses.replace(model, thresholds=thresholds)


@torch.inference_mode()
def _with_baseline(model: FoldModel, train: Sequence[Bag]) -> FoldModel:
    outputs = [model.head.stream(_blocks(model, bag, CHUNK_TILES))[0] for bag in train]
    labels = [bag.label for bag in train]
    target = model.target.with_baseline(labels, torch.stack(outputs).numpy())
    return dataclasses.replace(model, target=target)


def _predict_bags(model: FoldModel, bags: Sequence[Bag]) -> np.ndarray:
    """Predictions of B bags, one row each."""
    predictions = [predict_bag(model, bag)[0] for bag in bags]
    return np.stack(predictions) if predictions else np.empty((0, model.target.outputs))


def prediction_table(
    bags: Sequence[Bag], predictions: np.ndarray, target: Target, repeat: int, fold: int
) -> pd.DataFrame:
    """Rows of `predictions.parquet` for the test bags of one fold.

    Args:
        bags: the B test bags.
        predictions: B rows of predictions, see `predict_bag`.
        target: the model's target.
        repeat: repeat of the split, from 0.
        fold: fold of the repeat, from 0.

    Returns:
        Columns `patient_id`, `slide_id` ("" for a patient), `site`, `repeat`, `fold`, `y` (class
        name or follow-up, "" if unknown; or number, NaN if unknown), and those of the target
        (float32): `p_<class>` (and `grade` for ordered classes), `value`, or `risk` and `s_<time>`.
    """
    return pd.DataFrame(
        {
            "patient_id": [bag.patient_id for bag in bags],
            "slide_id": [bag.slide_id for bag in bags],
            "site": [bag.site for bag in bags],
            "repeat": np.full(len(bags), repeat, np.int32),
            "fold": np.full(len(bags), fold, np.int32),
            "y": target.true_values(bags),
            **target.prediction_columns(predictions),
        }
    )


def predictions_of(
    model: FoldModel,
    bags: Sequence[Bag],
    predictions: np.ndarray,
    repeat: int,
    fold: int,
    unknown: bool = False,
) -> dict[str, pd.DataFrame]:
    """Label ("" if there is only one) → `prediction_table` with the model's thresholds as columns.

    Args:
        model: the model of the fold.
        bags, predictions, repeat, fold: see `prediction_table`.
        unknown: whether to keep bags whose label is unknown, if the model has several labels.
    """
    return {
        one.label: prediction_table(
            one.bags, predictions[list(one.rows), one.outputs], one.target, repeat, fold
        ).assign(**one.thresholds)
        for one in model.target.label_tasks(bags, model.thresholds, unknown)
    }


def concatenated(tables: Iterable[Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Concatenate the tables of each label."""
    found: dict[str, list[pd.DataFrame]] = {}
    for one in tables:
        for label, table in one.items():
            found.setdefault(label, []).append(table)
    return {label: pd.concat(several, ignore_index=True) for label, several in found.items()}


def model_name(repeat: int, fold: int) -> str:
    """File name of a fold's model, without a suffix."""
    return f"repeat{repeat}-fold{fold}"


def load_models(folder: Path) -> dict[tuple[int, int], FoldModel]:
    """(repeat, fold) → model, of all models that `save_model` wrote as `model_name` to a folder.

    Raises:
        StainsslError: there is no model, or one has another schema.
    """
    found = {
        tuple(map(int, match.groups())): file.with_suffix("")
        for file in folder.glob("*.safetensors")
        if (match := re.fullmatch(r"repeat(\d+)-fold(\d+)", file.stem))
    }
    if not found:
        raise StainsslError(f"{folder} has no fold model: run `stainssl mil` for the task first.")
    return {(key[0], key[1]): load_model(found[key]) for key in sorted(found)}


def save_model(model: FoldModel, path: Path) -> None:
    """Write `{path}.safetensors` (weights, `mean`, `std`) and `{path}.json` (everything else)."""
    tensors = {f"head.{name}": value for name, value in model.head.state_dict().items()}
    tensors |= {"mean": torch.from_numpy(model.mean), "std": torch.from_numpy(model.std)}
    with replacing(path.with_name(path.name + ".safetensors")) as temporary:
        save_file(tensors, temporary)
    card = {
        "schema": SCHEMA,
        "settings": dataclasses.asdict(model.settings),
        **model.target.to_dict(),
        "dim": len(model.mean),
        "epoch": model.epoch,
        "cuts": {name: value for name, value in model.thresholds.items() if np.isfinite(value)},
        "history": [[round(train, 6), round(val, 6)] for train, val in model.history],
    }
    with replacing(path.with_name(path.name + ".json")) as temporary:
        temporary.write_text(json.dumps(card, indent=1).replace("NaN", "null"))


def load_model(path: Path) -> FoldModel:
    """Load a model that `save_model` wrote to `path`.

    Raises:
        StainsslError: the model has another schema.
    """
    card = json.loads(path.with_name(path.name + ".json").read_text())
    if card.get("schema") != SCHEMA:
        raise StainsslError(
            f"{path}.json has schema {card.get('schema')}, but this version reads {SCHEMA}: "
            "train the task's head again."
        )
    tensors = load_file(path.with_name(path.name + ".safetensors"))
    mean, std = tensors.pop("mean").numpy(), tensors.pop("std").numpy()
    settings, target = HeadSettings(**card["settings"]), target_from_dict(card)
    head = heads.create(
        settings.kind, card["dim"], target.outputs, settings.hidden, settings.dropout,
        settings.columns,
    )  # fmt: skip
    head.load_state_dict({name.removeprefix("head."): v for name, v in tensors.items()})
    history = [(train, float("nan") if val is None else val) for train, val in card["history"]]
    return FoldModel(
        head.eval(),
        settings,
        target,
        mean,
        std,
        card["epoch"],
        history,
        card.get("cuts", {}),
    )
