"""Cost of a training step from given weights, compared with one from random weights.

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.continued measure REAL_DATA
    python -m benchmarks.continued write

CPU time of steps of SimCLR on the same batch of real tiles, alternating in one process: with
EfficientNet-lite0 and ViT-S, from random weights or continued (`init`) with all layers, the last
blocks or adapters. For adapters also their share of the network, in parameters and in bytes.
Writes `benchmarks/results/continued.json`; `write` writes the table of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import save_for_hf

from benchmarks.machine import processor
from benchmarks.pretrain import by_turns, tiles_of
from stainssl.config import Encoder
from stainssl.encoders.adapters import Base
from stainssl.encoders.initial import Backbone, backbone_of
from stainssl.encoders.loading import vector_length
from stainssl.encoders.saving import save_adapter
from stainssl.pretrain.data import Batch
from stainssl.pretrain.methods import PRETRAINING_METHODS, ViewSettings
from stainssl.pretrain.objectives import OBJECTIVES
from stainssl.pretrain.train import Learner, Preprocessing, TrainSettings
from stainssl.pretrain.tuning import DistillationLoss
from stainssl.stages.pretrain import freeze
from stainssl.stores.atomic import write_text
from tools.pages import fill, marks

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "continued.json"
PAGE = ROOT / "docs" / "benchmarks.md"
NETWORKS = {  # timm name → side in px, tiles per batch
    "tf_efficientnet_lite0": (64, 32),
    "vit_small_patch16_224": (224, 4),
}
KINDS: dict[str, dict[str, Any]] = {
    "random weights": {},
    "all of it": {"tune": "full"},
    "last-2": {"tune": "last-2"},
    "lora": {"tune": "lora"},
    "all of it, keep": {"tune": "full", "keep": 1.0},
}


def learner(name: str, kind: str, source: str) -> tuple[Learner, Backbone, Any]:
    """A network to train as in `pretrain`, its initial backbone, and its adapters or None."""
    size, keys = NETWORKS[name][0], KINDS[kind]
    init = {"init": source} if keys else {"backbone": name}
    train: Any = {"cohorts": ["d"]}
    encoder = Encoder(method="simclr", train=train, input_size=size, **init, **keys)
    torch.manual_seed(0)
    adapted = encoder.tune == "lora"
    backbone = backbone_of(source if keys else None, name, None, size, adapted)
    distillation = DistillationLoss(backbone.model, encoder.keep) if encoder.keep else None
    adapters = freeze(backbone.model, encoder, size, 0) if keys else None
    objective = OBJECTIVES["nt-xent"](backbone.model, vector_length(backbone.model, size), 0.2, 0)
    method = PRETRAINING_METHODS["simclr"](ViewSettings(size, "weak", 0), None)
    settings = TrainSettings(steps=1000, lr=1e-3, weight_decay=1e-4, freeze_norms=bool(keys))
    prepare = Preprocessing(backbone.mean, backbone.std)
    module = Learner(backbone.model, objective, method, prepare, settings, None, distillation)
    return module, backbone, adapters


class Step:
    """A training step without lightning, whose overhead is not measured."""

    def __init__(self, module: Learner) -> None:
        self._module, self._optimizer = module, module.configure_optimizers()["optimizer"]

    def __call__(self, batch: Batch) -> None:
        loss = self._module.training_step(batch, 0)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def measure_network(name: str, real_data: Path, work: Path) -> dict[str, Any]:
    """CPU seconds of a step of every kind, and the relative size of adapters."""
    size, count = NETWORKS[name]
    source = _source(name, work)
    images = torch.from_numpy(tiles_of(real_data, count, size)).permute(0, 3, 1, 2).contiguous()
    number = np.arange(count)
    made = {kind: learner(name, kind, source) for kind in KINDS}
    steps = {kind: Step(one[0]) for kind, one in made.items()}
    batch = Batch(images, number, number)
    seconds = by_turns({k: partial(s, batch) for k, s in steps.items()}, time.process_time)
    _, backbone, adapters = made["lora"]
    folder = work / f"{name}-adapter"
    save_adapter(
        adapters, folder, Base(source, backbone.sha256), backbone=backbone.name, input_size=size,
        mean=backbone.mean, std=backbone.std, card={},
    )  # fmt: skip
    values = list(backbone.model.parameters())
    learnt = sum(v.numel() for v in values if v.requires_grad)
    return {
        "px": size, "tiles": count, "seconds": seconds,
        "lora_parameters": learnt / (sum(v.numel() for v in values) - learnt),
        "lora_bytes": _bytes(folder) / _bytes(Path(source.removeprefix("local-dir:"))),
    }  # fmt: skip


def _source(name: str, work: Path) -> str:
    """Save random weights to continue as a timm folder; the cost does not depend on the values."""
    torch.manual_seed(1)
    folder = work / name
    save_for_hf(timm.create_model(name, num_classes=0), str(folder))
    return f"local-dir:{folder}"


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def section(found: dict[str, Any]) -> str:
    """Markdown table for docs/benchmarks.md."""
    kinds = list(KINDS)
    head = [
        "network", *(f"{kind} / {kinds[0]}" for kind in kinds[1:]),
        "adapter: parameters (target < 5 %)", "adapter: bytes (target < 5 %)",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in found["networks"].items():
        seconds = row["seconds"]
        ratios = [f"{seconds[kind] / seconds[kinds[0]]:.2f}" for kind in kinds[1:]]
        shares = [f"{100 * row[key]:.1f} %" for key in ("lora_parameters", "lora_bytes")]
        shown = f"`{name}`, {row['px']} px, {row['tiles']} tiles"
        lines.append("| " + " | ".join([shown, *ratios, *shares]) + " |")
    return f"\n\nMeasured on {found['machine']}.\n\n" + "\n".join(lines) + "\n\n"


def main() -> None:
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["measure", "write"])
    parser.add_argument("real_data", type=Path, nargs="?", default=Path())
    words = parser.parse_args()
    if words.verb == "write":
        fill(PAGE, marks(RESULTS.stem), section(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": f"one thread of {processor()}", "networks": {}}
    with tempfile.TemporaryDirectory() as work:
        for name in NETWORKS:
            found["networks"][name] = measure_network(name, words.real_data, Path(work))
            print(name, json.dumps(found["networks"][name]), flush=True)
    write_text(RESULTS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
