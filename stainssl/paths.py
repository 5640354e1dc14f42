"""Every path under the results folder, once: the Snakefile and the verbs both ask here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """Where each stage's outputs are; a config's are `Config.paths`.

    Names may be Snakemake wildcards (`"{part}"`).

    Attributes:
        results: the folder that all of them are in.
        tilings: cohort → the name of its tiling.
    """

    results: Path
    tilings: Mapping[str, str] = field(default_factory=dict)

    def config(self) -> Path:
        """The config of the latest run, as resolved (YAML)."""
        return self.results / "config.yaml"

    def run_config(self, digest: str) -> Path:
        """The config that a run was started with, as resolved (YAML)."""
        return self.results / "configs" / f"{digest}.yaml"

    def groups(self) -> Path:
        """Which given encoders embed a cohort together (JSON)."""
        return self.results / "encoder-groups.json"

    def revisions(self) -> Path:
        """Which commits of the hub given weights have had here (JSON)."""
        return self.results / "encoder-revisions.json"

    def demo(self) -> Path:
        """Folder of the synthetic cohort."""
        return self.results / "demo"

    def _cohort(self, cohort: str, *names: str) -> Path:
        # joined at once: a dry-run of 10,000 slides asks for some 25,000 paths
        return self.results.joinpath("cohorts", cohort, self.tilings[cohort], *names)

    def tiles(self, cohort: str, part: str) -> Path:
        """Tiles of a part (parquet)."""
        return self._cohort(cohort, "tiles", f"{part}.parquet")

    def qc(self, cohort: str, part: str) -> Path:
        """What happened to the slides of a part (parquet)."""
        return self._cohort(cohort, "qc", f"{part}.parquet")

    def checked(self, cohort: str) -> Path:
        """The cohort's slides and their statuses (CSV)."""
        return self._cohort(cohort, "slides.csv")

    def slides_page(self, cohort: str) -> Path:
        """The same as a page with reasons (HTML)."""
        return self._cohort(cohort, "slides.html")

    def gate(self, cohort: str) -> Path:
        """Written where few enough of the cohort's slides are bad (JSON)."""
        return self._cohort(cohort, "gate.json")

    def overview(self, cohort: str) -> Path:
        """Contact sheet of the cohort's tissue masks (PNG)."""
        return self._cohort(cohort, "tissue.png")

    def previews(self, cohort: str, part: str) -> Path:
        """Folder of mask and tile pictures, one a slide."""
        return self._cohort(cohort, "previews", part)

    def labels(self, cohort: str, part: str) -> Path:
        """Tile labels of a part (parquet)."""
        return self._cohort(cohort, "labels", f"{part}.parquet")

    def pixels(self, cohort: str, part: str) -> Path:
        """Encoded tiles of a part (zarr)."""
        return self._cohort(cohort, "pixels", f"{part}.zarr")

    def embeddings(self, cohort: str, encoder: str, part: str) -> Path:
        """Vectors of a part under one encoder (zarr)."""
        return self._cohort(cohort, "embeddings", encoder, f"{part}.zarr")

    def embedded(self, cohort: str, encoder: str) -> Path:
        """How many tiles of each slide have a vector under one encoder (CSV)."""
        return self._cohort(cohort, "embeddings", encoder, "slides.csv")

    def _encoder(self, encoder: str) -> Path:
        return self.results / "encoders" / encoder

    def target(self, encoder: str) -> Path:
        """The encoder's stain target (JSON)."""
        return self._encoder(encoder) / "target.json"

    def target_png(self, encoder: str) -> Path:
        """The stain space with the target in it."""
        return self._encoder(encoder) / "target.png"

    def model(self, encoder: str) -> Path:
        """The trained backbone, a timm `local-dir` folder."""
        return self._encoder(encoder) / "model"

    def metrics(self, encoder: str) -> Path:
        """Loss, speed and geometry of the embedding, a row per epoch (CSV)."""
        return self._encoder(encoder) / "metrics.csv"

    def curves(self, encoder: str) -> Path:
        """The pretraining curves (PNG)."""
        return self._encoder(encoder) / "curves.png"

    def seen(self, encoder: str) -> Path:
        """Patients whose tiles pretraining saw (CSV)."""
        return self._encoder(encoder) / "seen.csv"

    def checkpoints(self, encoder: str) -> Path:
        """Folder of checkpoints, from which a killed pretraining goes on."""
        return self._encoder(encoder) / "checkpoints"

    def _task(self, task: str) -> Path:
        return self.results / "tasks" / task

    def folds(self, task: str) -> Path:
        """Roles of patients in every repeat and fold (CSV)."""
        return self._task(task) / "folds.csv"

    def probe(self, task: str, encoder: str) -> Path:
        """Folder of a tile task's linear probe: predictions and metrics."""
        return self._task(task) / encoder / "probe"

    def fine_tuned(self, task: str, encoder: str) -> Path:
        """Folder of a tile task's fine-tuned networks: predictions and metrics."""
        return self._task(task) / encoder / "fine-tune"

    def tuning(self, task: str, encoder: str) -> Path:
        """Folder of checkpoints, from which a killed fine-tuning goes on."""
        return self._encoder(encoder) / "fine-tune" / task

    def mil(self, task: str, encoder: str, head: str, label: str = "") -> Path:
        """Folder of a slide task: predictions, metrics, models, attention.

        Of several labels each has its predictions and metrics in a folder of its own.
        """
        return of_label(self._task(task) / encoder / head, label)

    def robustness(self, encoder: str) -> Path:
        """Folder of an encoder's robustness figures."""
        return self.results / "robustness" / encoder

    def benchmark(self, benchmark: str) -> Path:
        """Folder of a benchmark's table and figures."""
        return self.results / "benchmarks" / benchmark

    def figures(self, benchmark: str) -> Path:
        """Folder of those figures of a benchmark that have something to show (PNG)."""
        return self.benchmark(benchmark) / "figures"


def of_label(folder: Path, label: str) -> Path:
    """The folder of one of several labels in that of a task's head; "" of a single label."""
    return folder / "labels" / label if label else folder
