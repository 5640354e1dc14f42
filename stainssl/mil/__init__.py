"""Multiple-instance learning: from the tile embeddings of a patient or slide to its label."""
