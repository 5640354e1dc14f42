"""Check before any job starts that the networks of a config can be loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stainssl.config import REFERENCE, Config, Encoder, dump
from stainssl.encoders import quick_checks, recipes
from stainssl.encoders.weights import FILE, HUB, LOCAL, read_source, weight_files
from stainssl.plan.run import short_digest


def network_problems(config: Config) -> list[str]:
    """List networks and weights that cannot be loaded, one sentence each, as `cohort check` does.

    torch takes seconds to import. It is used only if names and headers of weights are not
    sufficient, and only until a run of this config has started, since that run was checked.
    """
    is_certain = all(_certainly_loads(config, name) for name in config.encoders)
    if is_certain and not _tunes_blocks(config):
        return []
    if _has_passed(config):
        return []
    from stainssl.cohort import encoder_checks

    return list(encoder_checks.problems(config))


def _certainly_loads(config: Config, name: str) -> bool:
    encoder = config.encoders[name]
    if encoder.features or encoder.center:
        return True  # no network
    if encoder.vectors or encoder.last_blocks:
        return False
    if encoder.weights is not None:
        return _loads_for_embedding(encoder, encoder.source or "")
    side = encoder.input_size or config.tilings[encoder.tiling].size
    if encoder.init is not None:
        is_given = config.initial_run(config.runs_of(name)[0]) is None
        loads = not is_given or quick_checks.loads(encoder.source or "")
        return loads and _loads_for_training(encoder, config.start_of(name), side)
    network = encoder.architecture
    return quick_checks.is_architecture(network) and quick_checks.takes_side(network, side)


def _loads_for_embedding(encoder: Encoder, source: str) -> bool:
    is_folder = Path((encoder.weights or "").removeprefix(LOCAL)).is_dir()
    stains = set(encoder.named_stains) - {REFERENCE}
    architecture, side = quick_checks.architecture_of(source), encoder.input_size
    return (
        quick_checks.loads(source)
        and (side is None or quick_checks.takes_side(architecture, side))
        and not (encoder.preprocess and (is_folder or stains))
    )


def _loads_for_training(encoder: Encoder, start: str, side: int) -> bool:
    architecture, found = quick_checks.architecture_of(start), recipes.find(start)
    return (
        encoder.backbone in (None, architecture)
        and (found is None or found[1].is_saved_by_timm)
        and quick_checks.takes_side(architecture, side)
    )


def _tunes_blocks(config: Config) -> bool:
    """Whether a benchmark fine-tunes the last blocks: only the built network has their number."""
    return any(config.tasks[task].fine_tune.last_blocks for task, _ in config.benchmarked())


def _has_passed(config: Config) -> bool:
    """Whether a run of this config has started since its weight files last changed."""
    file = config.paths.run_config(short_digest(dump(config)))
    if not file.exists():
        return False
    started = file.stat().st_mtime
    given = [path for encoder in config.encoders.values() for path in _given(encoder)]
    return all(path.exists() and path.stat().st_ctime <= started for path in given)


def _given(encoder: Encoder) -> Iterator[Path]:
    """Files and folders named by an encoder."""
    source = encoder.source or ""
    weights, _ = read_source(source)
    if FILE in weights and not weights.startswith(HUB):
        yield Path(weights.partition(FILE)[2])
    elif weights.startswith(LOCAL):
        yield Path(weights.removeprefix(LOCAL))
    yield from weight_files(source)
    yield from (Path(name) for name in encoder.named_stains if name != REFERENCE)
