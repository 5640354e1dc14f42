"""Browser viewer of slides, model outputs and benchmarks."""
