"""Contrastive pretraining: the stain-invariant method and its rivals under one recipe."""
