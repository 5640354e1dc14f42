"""Encoders of tiles and slides: recipes, loading, embedding and saving."""
