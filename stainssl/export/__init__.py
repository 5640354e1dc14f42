"""Export embeddings and attention to the formats of other tools, and read their feature files."""
