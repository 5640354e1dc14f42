"""Paths in the results folder, for the Snakefile and the verbs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """Paths of the outputs of all stages; those of a config are `Config.paths`.

    Names may be Snakemake wildcards (`"{part}"`).

    Attributes:
        results: the results folder.
        tilings: cohort → name of its tiling.
    """

    results: Path
    tilings: Mapping[str, str] = field(default_factory=dict)

    def config(self) -> Path:
        """Resolved config of the latest run (YAML)."""
        return self.results / "config.yaml"

    def run_config(self, digest: str) -> Path:
        """Resolved config of a run (YAML).

        Args:
            digest: `plan.run.short_digest` of its text.
        """
        return self.results / "configs" / f"{digest}.yaml"

    def groups(self) -> Path:
        """Groups of pretrained encoders that embed a cohort together (JSON)."""
        return self.results / "encoder-groups.json"

    def revisions(self) -> Path:
        """Commits of pretrained weights from the hub used in these results (JSON)."""
        return self.results / "encoder-revisions.json"

    def demo(self) -> Path:
        """Folder of the synthetic cohort."""
        return self.results / "demo"

    def _cohort(self, cohort: str, *names: str) -> Path:
        # One call of joinpath: a dry-run of 10,000 slides needs some 25,000 paths.
        return self.results.joinpath("cohorts", cohort, self.tilings[cohort], *names)

    def tiles(self, cohort: str, part: str) -> Path:
        """Tiles of a part (parquet)."""
        return self._cohort(cohort, "tiles", f"{part}.parquet")

    def qc(self, cohort: str, part: str) -> Path:
        """Statuses of the slides of a part (parquet)."""
        return self._cohort(cohort, "qc", f"{part}.parquet")

    def slide_statuses(self, cohort: str) -> Path:
        """Slides of a cohort with their statuses (CSV)."""
        return self._cohort(cohort, "slides.csv")

    def slides_page(self, cohort: str) -> Path:
        """Page of a cohort's slides with statuses and reasons (HTML)."""
        return self._cohort(cohort, "slides.html")

    def gate(self, cohort: str) -> Path:
        """Written if few enough slides of the cohort are bad (JSON)."""
        return self._cohort(cohort, "gate.json")

    def overview(self, cohort: str) -> Path:
        """Contact sheet of a cohort's tissue masks (PNG)."""
        return self._cohort(cohort, "tissue.png")

    def previews(self, cohort: str, part: str) -> Path:
        """Folder of previews, one per slide: tissue mask and tiles (PNG)."""
        return self._cohort(cohort, "previews", part)

    def labels(self, cohort: str, part: str) -> Path:
        """Tile labels of a part (parquet)."""
        return self._cohort(cohort, "labels", f"{part}.parquet")

    def pixels(self, cohort: str, part: str) -> Path:
        """Encoded tiles of a part (zarr)."""
        return self._cohort(cohort, "pixels", f"{part}.zarr")

    def embeddings(self, cohort: str, encoder: str, part: str) -> Path:
        """Embeddings of a part by one encoder (zarr)."""
        return self._cohort(cohort, "embeddings", encoder, f"{part}.zarr")

    def embedded(self, cohort: str, encoder: str) -> Path:
        """Number of embedded tiles of each slide for one encoder (CSV)."""
        return self._cohort(cohort, "embeddings", encoder, "slides.csv")

    def _encoder(self, encoder: str) -> Path:
        return self.results / "encoders" / encoder

    def target(self, encoder: str) -> Path:
        """Stain target of an encoder (JSON)."""
        return self._encoder(encoder) / "target.json"

    def target_png(self, encoder: str) -> Path:
        """Figure of the stain space with the target (PNG)."""
        return self._encoder(encoder) / "target.png"

    def model(self, encoder: str) -> Path:
        """Trained backbone, a timm `local-dir` folder."""
        return self._encoder(encoder) / "model"

    def metrics(self, encoder: str) -> Path:
        """Loss, learning rate, speed and geometry of the embedding, one row per epoch (CSV)."""
        return self._encoder(encoder) / "metrics.csv"

    def curves(self, encoder: str) -> Path:
        """Pretraining curves (PNG)."""
        return self._encoder(encoder) / "curves.png"

    def seen(self, encoder: str) -> Path:
        """Patients whose tiles were seen in pretraining (CSV)."""
        return self._encoder(encoder) / "seen.csv"

    def checkpoints(self, encoder: str) -> Path:
        """Folder of checkpoints, from which an interrupted pretraining resumes."""
        return self._encoder(encoder) / "checkpoints"

    def _task(self, task: str) -> Path:
        return self.results / "tasks" / task

    def folds(self, task: str) -> Path:
        """Role of each patient in every repeat and fold (CSV)."""
        return self._task(task) / "folds.csv"

    def probe(self, task: str, encoder: str) -> Path:
        """Folder of a tile task's linear probe: predictions, metrics."""
        return self._task(task) / encoder / "probe"

    def fine_tuned(self, task: str, encoder: str) -> Path:
        """Folder of a tile task's fine-tuned network: predictions, metrics."""
        return self._task(task) / encoder / "fine-tune"

    def tuning(self, task: str, encoder: str) -> Path:
        """Folder of checkpoints, from which an interrupted fine-tuning resumes."""
        return self._encoder(encoder) / "fine-tune" / task

    def mil(self, task: str, encoder: str, head: str, label: str = "") -> Path:
        """Folder of a slide or patient task: predictions, metrics, models, attention.

        Args:
            label: one label of a task with several, whose predictions and metrics are in a
                subfolder; "" for the task's folder.
        """
        return of_label(self._task(task) / encoder / head, label)

    def robustness(self, encoder: str) -> Path:
        """Folder of an encoder's robustness metrics."""
        return self.results / "robustness" / encoder

    def benchmark(self, benchmark: str) -> Path:
        """Folder of a benchmark's table and figures."""
        return self.results / "benchmarks" / benchmark

    def figures(self, benchmark: str) -> Path:
        """Folder of a benchmark's figures, those that apply to its tasks (PNG)."""
        return self.benchmark(benchmark) / "figures"


def of_label(folder: Path, label: str) -> Path:
    """Subfolder of one label of a task with several; `folder` itself if `label` is empty."""
    return folder / "labels" / label if label else folder
