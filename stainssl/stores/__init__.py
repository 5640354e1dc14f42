"""Readers and writers of the on-disk formats: Parquet tables, zarr pixels and embeddings."""
