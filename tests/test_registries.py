"""The values that the config accepts equal those of the registries."""

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


def allowed_values(annotation: Any) -> set[str]:
    """The strings of all literals in a type."""
    if get_origin(annotation) is Literal:
        return {value for value in get_args(annotation) if isinstance(value, str)}
    return {value for inner in get_args(annotation) for value in allowed_values(inner)}


@pytest.mark.parametrize(
    ("model", "key", "registry", "additional"),
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
def test_allowed_values_equal_those_of_the_registry(
    model: type[BaseModel], key: str, registry: Iterable[str], additional: set[str]
) -> None:
    assert allowed_values(model.model_fields[key].annotation) == set(registry) | additional
