"""Multiple-instance learning: predicts the label of a patient or slide from tile embeddings."""
