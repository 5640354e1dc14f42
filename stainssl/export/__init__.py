"""Our embeddings and attention as the files of other tools, and their features as ours."""
