"""The formats on disk, and nothing but the formats: parquet tables, zarr pixels and embeddings."""
