"""The words that the config takes are those that the registries have, both ways."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from stainssl.config import Encoder, Head, Mask, Recipe, Slides, TargetSettings, Task
from stainssl.encoders.listing import VECTOR
from stainssl.encoders.loading import RESIZES
from stainssl.encoders.tensors import BY_LAYOUT
from stainssl.evaluation.kinds import LABELS
from stainssl.mil.heads import HEADS
from stainssl.pretrain.methods import PRETRAINING_METHODS
from stainssl.pretrain.objectives import OBJECTIVES
from stainssl.slides.readers import READERS
from stainssl.slides.tissue import MASKERS
from stainssl.stain import METHODS
from stainssl.stain.targets import POLICIES


def words(annotation: Any) -> set[str]:
    """The strings of every literal in a type."""
    if get_origin(annotation) is Literal:
        return {word for word in get_args(annotation) if isinstance(word, str)}
    return {word for inner in get_args(annotation) for word in words(inner)}


@pytest.mark.parametrize(
    ("model", "key", "registry", "beside"),
    [
        (Slides, "reader", READERS, {"auto"}),
        (Mask, "kind", MASKERS, {"stain"}),
        (TargetSettings, "policy", POLICIES, set()),
        (Encoder, "normalizer", METHODS, set()),
        (Encoder, "method", PRETRAINING_METHODS, set()),
        (Encoder, "loss", OBJECTIVES, set()),
        (Head, "kind", HEADS, set()),
        (Recipe, "layout", BY_LAYOUT, {"timm"}),
        (Recipe, "pooling", VECTOR, set()),
        (Recipe, "interpolation", RESIZES, set()),
        (Task, "kind", LABELS, set()),
    ],
)
def test_the_config_takes_the_words_of_the_registry(
    model: type[BaseModel], key: str, registry: Iterable[str], beside: set[str]
) -> None:
    assert words(model.model_fields[key].annotation) == set(registry) | beside
