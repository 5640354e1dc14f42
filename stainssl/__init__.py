"""Stain-invariant self-supervised pretraining and its benchmark, for breast H&E."""

__version__ = "0.1.0"
