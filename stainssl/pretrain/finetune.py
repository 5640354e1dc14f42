"""Fine-tuning: train a network end to end on tile labels, with early stopping.

As in pretraining, the batch, flips, jitter and dropout of a step depend only on the seed and the
number of the step, so that a checkpoint needs no random state.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from torch import Tensor, nn

from stainssl.errors import StainsslError
from stainssl.pretrain.data import Batch, Index, TrainTiles
from stainssl.pretrain.methods import ViewSettings
from stainssl.pretrain.train import learning_rate
from stainssl.pretrain.tuning import frozen_norms, hold_norms, parameter_groups
from stainssl.pretrain.views import ViewGeometry
from stainssl.runtime.prefetch import prefetched
from stainssl.stores.atomic import replacing

log = logging.getLogger(__name__)

# No crop: what the label is about, such as the center of a tile, must stay visible at its scale.
WHOLE = ViewGeometry(area=(1.0, 1.0), ratio=(1.0, 1.0))
CHECKPOINT_SECONDS = 300.0  # between two checkpoints within an epoch; each epoch ends with one
WARM_UP = 0.1  # share of the steps
Floats = npt.NDArray[np.float64]
ViewMaker = Callable[[Batch, int], Sequence[Tensor]]


@dataclass(frozen=True)
class TuneSettings:
    """Settings of fine-tuning.

    Attributes:
        epochs: maximum number.
        patience: epochs without a lower validation loss after which training stops.
        batch_size: tiles per step.
        lr: peak learning rate.
        weight_decay: of weights; biases and norms have none.
        class_weight: `balanced` for equal weight of all classes, or None.
        consistency: weight of the loss for different predictions of a tile's two views.
    """

    epochs: int
    patience: int
    batch_size: int
    lr: float
    weight_decay: float
    class_weight: str | None = "balanced"
    consistency: float = 0.0


class TileClassifier(nn.Module):
    """A backbone with a linear classifier of its embeddings.

    Args:
        backbone: (B, 3, S, S) → (B, D).
        dim: D.
        stain_normalized: (B, 3, H, W) uint8 tiles → the same, normalized if the encoder has a stain
            profile.
        prepared: (B, 3, H, W) in [0, 1] → (B, 3, S, S), the input of the backbone.
        trained: indices of the C classes that occur in training, ascending.
        classes: K, including classes that do not occur in training.
        freeze_norms: keep all batch norms in evaluation mode, not only those of frozen layers.
    """

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        stain_normalized: Callable[[Tensor], Tensor],
        prepared: Callable[[Tensor], Tensor],
        trained: Sequence[int],
        classes: int,
        *,
        freeze_norms: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(dim, len(trained))
        self.stain_normalized, self._prepared = stain_normalized, prepared
        self.trained, self.classes = list(trained), classes
        self._frozen_norms = frozen_norms(backbone, all_of_them=freeze_norms)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.head.weight.device

    def train(self, mode: bool = True) -> TileClassifier:
        """Switch to training or evaluation mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        hold_norms(self.backbone, self._frozen_norms)
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → (B, C) logits, float32."""
        seen = self._prepared(pixels)
        half = seen.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        # Predictions are made in full precision: bfloat16's eight bits would make many of them tie.
        with torch.autocast(seen.device.type, torch.bfloat16, enabled=half and self.training):
            vectors = self.backbone(seen)
        return self.head(vectors.float())

    def changing(self) -> dict[str, Tensor]:
        """Tensors that training changes, by name: trained parameters and statistics of norms."""
        fixed = {n for n, value in self.named_parameters() if not value.requires_grad}
        return {n: value for n, value in self.state_dict().items() if n not in fixed}


@dataclass(frozen=True)
class TileSubset:
    """The training or validation tiles of a fold.

    Attributes:
        tile: (n,) tile numbers.
        y: (n,) class index.
    """

    tile: Index
    y: Index


class Batches:
    """The training batches of a fold, by step.

    Args:
        tiles: of all patients.
        part: the training tiles.
        batch_size: maximum number of tiles per batch.
        seed: of the order.

    Attributes:
        per_epoch: batches per epoch.

    Raises:
        StainsslError: there are fewer than two training tiles.
    """

    def __init__(self, tiles: TrainTiles, part: TileSubset, batch_size: int, seed: int) -> None:
        if len(part.tile) < 2:
            raise StainsslError(
                f"{len(part.tile)} training tile(s) have a known label: at least two are needed."
            )
        self._tiles, self._part, self._seed = tiles, part, seed
        self._size = min(batch_size, len(part.tile))
        self.per_epoch = len(part.tile) // self._size
        self._held: tuple[int, Index] = (-1, part.tile)

    def _order(self, epoch: int) -> Index:
        """The training tiles in the order of an epoch, in which stores are read in blocks."""
        if self._held[0] != epoch:
            every = self._tiles.order(self._seed, epoch).take(0, len(self._tiles))
            self._held = (epoch, every[np.isin(every, self._part.tile)])
        return self._held[1]

    def after(self, step: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps `step` to `stop` − 1.

        The last tiles of an epoch that fill no batch are dropped. A tile that cannot be decoded is
        replaced by another one of its batch.
        """
        for number in range(step, stop):
            epoch, place = divmod(number, self.per_epoch)
            rows = slice(place * self._size, (place + 1) * self._size)
            yield self._tiles.batch(self._order(epoch)[rows])


@dataclass
class TuningState:
    """Progress of a training.

    Attributes:
        step: of the next batch.
        losses: validation loss after each epoch.
        best: `TileClassifier.changing` at the lowest validation loss.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def best_epoch(self) -> int:
        """Index of the epoch with the lowest loss, the first in case of ties."""
        return int(np.argmin(self.losses))

    def is_over(self, patience: int) -> bool:
        """Whether the last `patience` epochs brought no lower loss."""
        return bool(self.losses) and len(self.losses) - 1 - self.best_epoch >= patience


class Checkpoint:
    """A checkpoint of fine-tuning in safetensors format, written atomically.

    Args:
        path: of the file.
        mark: fingerprint of the training; a file with another one is ignored.
    """

    def __init__(self, path: Path, mark: str) -> None:
        self._path, self._mark, self._last = path, mark, time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether `CHECKPOINT_SECONDS` have passed since the last one was written."""
        return time.monotonic() - self._last >= CHECKPOINT_SECONDS

    def save(
        self, network: TileClassifier, optimizer: torch.optim.Optimizer, progress: TuningState
    ) -> None:
        """Write the checkpoint, replacing the previous one."""
        moments = optimizer.state_dict()["state"]
        tensors = {f"network/{name}": value for name, value in network.changing().items()}
        tensors |= {f"best/{name}": value for name, value in progress.best.items()}
        tensors |= {f"moments/{i}/{k}": v for i, of in moments.items() for k, v in of.items()}
        told = {"mark": self._mark, "step": progress.step, "losses": progress.losses}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as made:
            save_file({n: _plain(v) for n, v in tensors.items()}, made, {"told": json.dumps(told)})
        self._last = time.monotonic()

    def restore(self, network: TileClassifier, optimizer: torch.optim.Optimizer) -> TuningState:
        """Load the checkpoint and return its progress; that of a new training if there is none.

        Args:
            network: modified in place.
            optimizer: modified in place.
        """
        if not self._path.exists():
            return TuningState()
        try:
            with safe_open(self._path, "pt") as file:
                told = json.loads(file.metadata()["told"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors raises its own exceptions
            log.warning("%s is an incomplete checkpoint (%s): starting over", self._path, error)
            return TuningState()
        if told["mark"] != self._mark:
            return TuningState()
        network.load_state_dict(_below("network", tensors), strict=False)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": _moments(tensors)})
        log.info("resuming from step %d", told["step"])
        return TuningState(told["step"], told["losses"], _below("best", tensors))


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().clone()


def _below(word: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{word}/"
    return {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}


def _moments(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in _below("moments", tensors).items():
        number, key = name.split("/")
        found.setdefault(int(number), {})[key] = value
    return found


def single_view(settings: ViewSettings) -> ViewMaker:
    """Return a function that makes one augmented view of each tile of a batch."""
    return lambda batch, step: settings.colored(settings.crops(batch, step, 1), batch, step)


def fit(
    network: TileClassifier,
    tiles: TrainTiles,
    train: TileSubset,
    val: TileSubset,
    settings: TuneSettings,
    views: ViewMaker,
    *,
    seed: int,
    checkpoint: Checkpoint,
) -> TuningState:
    """Train on the tiles of the training patients, with early stopping by the validation loss.

    Args:
        network: trained in place; ends with the weights of the lowest validation loss, or of the
            last epoch if there are no validation tiles.
        tiles: of all patients.
        train, val: tiles of the fold's training and validation patients.
        settings: of the training.
        views: (batch, step) → one view of each tile, or two with a consistency loss.
        seed: of the order of the tiles, and of dropout.
        checkpoint: training resumes from it, and writes it.

    Returns:
        The progress at the end.

    Raises:
        StainsslError: fewer than two training tiles, or a loss that is not finite.
    """
    batches = Batches(tiles, train, settings.batch_size, seed)
    steps = settings.epochs * batches.per_epoch
    heads, backbone = parameter_groups(
        network.backbone, [network.head], weight_decay=settings.weight_decay,
        lr_backbone=settings.lr, layer_decay=1.0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW([*heads, *backbone], lr=settings.lr)
    progress = checkpoint.restore(network, optimizer)
    loss_of = _Loss(network, train, settings, len(tiles))
    while progress.step < steps and not progress.is_over(settings.patience):
        end = (progress.step // batches.per_epoch + 1) * batches.per_epoch
        for batch in prefetched(batches.after(progress.step, end)):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * learning_rate(progress.step, steps, WARM_UP)
            _learn(network, optimizer, loss_of, views, batch, progress.step, seed)
            progress.step += 1
            if checkpoint.is_due and progress.step < end:
                checkpoint.save(network, optimizer, progress)
        if len(val.tile):
            _validate(network, tiles, val, settings, progress)
        checkpoint.save(network, optimizer, progress)
    network.load_state_dict(progress.best, strict=False)
    return progress


class _Loss:
    """Cross-entropy with class weights, plus a consistency loss if there is a second view.

    The consistency loss is the Kullback–Leibler divergence of the second view's prediction from
    the first's, without a gradient for the first (Xie et al. 2020, arXiv 1904.12848).
    """

    def __init__(
        self, network: TileClassifier, train: TileSubset, settings: TuneSettings, tiles: int
    ) -> None:
        self._network, self._consistency = network, settings.consistency
        own = np.searchsorted(network.trained, train.y)
        weights = compute_class_weight(
            settings.class_weight, classes=np.arange(len(network.trained)), y=own
        )
        self._weights = torch.tensor(weights, dtype=torch.float32, device=network.device)
        self._y = torch.full((tiles,), -1, dtype=torch.int64)
        self._y[torch.from_numpy(train.tile)] = torch.from_numpy(own)

    def __call__(self, views: Sequence[Tensor], tile: Index) -> Tensor:
        said = self._network(torch.cat(list(views))).log_softmax(1).chunk(len(views))
        y = self._y[torch.from_numpy(tile)].to(said[0].device)
        loss = F.nll_loss(said[0], y, self._weights)
        if len(said) == 1:
            return loss
        unlike = F.kl_div(said[1], said[0].detach(), log_target=True, reduction="batchmean")
        return loss + self._consistency * unlike


def _learn(
    network: TileClassifier, optimizer: torch.optim.Optimizer, loss_of: _Loss, views: ViewMaker,
    batch: Batch, step: int, seed: int,
) -> None:  # fmt: skip
    """Take one training step; views are made in full precision."""
    with torch.no_grad():
        images = network.stain_normalized(batch.images.to(network.device))
        seen = views(batch._replace(images=images), step)
    network.train()
    torch.manual_seed(seed + step)  # dropout and stochastic depth, if the backbone has any
    loss = loss_of(seen, batch.tile)
    if not bool(loss.isfinite()):
        raise StainsslError(f"the loss is not finite at step {step}: use a lower fine_tune.lr.")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _validate(
    network: TileClassifier, tiles: TrainTiles, val: TileSubset, settings: TuneSettings,
    progress: TuningState,
) -> None:  # fmt: skip
    """Add an epoch's validation loss to the progress, and the weights if it is the lowest."""
    p, good = predict(network, tiles, val.tile, settings.batch_size)
    y, known, loss = val.y[good], np.arange(network.classes), float("inf")
    if len(y):
        weights = compute_sample_weight(settings.class_weight, y)
        loss = float(log_loss(y, p, labels=known, sample_weight=weights))
    progress.losses.append(loss)
    if progress.best_epoch == len(progress.losses) - 1:
        progress.best = {name: _plain(value) for name, value in network.changing().items()}
    log.info("epoch %d: validation loss %.4f", len(progress.losses), loss)


@torch.inference_mode()
def predict(
    network: TileClassifier, tiles: TrainTiles, tile: Index, batch_size: int
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Predict class probabilities of tiles, without augmentation.

    Args:
        network: set to evaluation mode.
        tiles: of all patients.
        tile: (n,) tile numbers.
        batch_size: tiles per batch.

    Returns:
        (m, K) probabilities of the tiles that can be decoded, 0 for classes that do not occur in
        training; and a (n,) bool mask of these tiles.
    """
    network.eval()
    blocks = (tile[i : i + batch_size] for i in range(0, len(tile), batch_size))
    said, readable = [np.empty((0, network.classes))], [np.empty(0, bool)]
    for images, good in prefetched(map(tiles.readable, blocks)):
        readable.append(good)
        out = np.zeros((len(images), network.classes))
        if len(images):
            pixels = network.stain_normalized(images.to(network.device)).float().div(255)
            out[:, network.trained] = network(pixels).double().softmax(1).cpu().numpy()
        said.append(out)
    return np.concatenate(said), np.concatenate(readable)
