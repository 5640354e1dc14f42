"""Slides: reading at an exact pixel size, tissue masks, tile quality, tiling and annotations."""
