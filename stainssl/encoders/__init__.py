"""Encoders: how they are loaded, how tiles become vectors, which of them read a cohort together."""
