"""Numbers of parameters of the recipes' networks, known without building them; a test checks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PARAMETERS_M: Mapping[str, int] = MappingProxyType({  # millions
    "uni": 303, "uni2-h": 681, "virchow": 631, "virchow2": 631, "prov-gigapath": 1135,
    "h-optimus-0": 1135, "h-optimus-1": 1135, "h0-mini": 86, "phikon": 86, "phikon-v2": 303,
    "hibou-b": 86, "hibou-l": 304, "midnight": 1135, "gpfm": 303, "kaiko-vits16": 22,
    "kaiko-vits8": 22, "kaiko-vitb16": 86, "kaiko-vitb8": 86, "kaiko-vitl14": 304,
    "lunit-vits16": 22, "lunit-vits8": 22, "conch": 88, "conch-madeleine": 87, "conch-v1.5": 307,
    "keep": 305, "musk": 304, "ctranspath": 28, "retccl": 24, "efficientnet-lite0": 3,
})  # fmt: skip
