"""Slides: reading at an exact scale, tissue, quality, tiles and annotations."""
