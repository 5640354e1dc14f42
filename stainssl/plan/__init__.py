"""What each stage reads, writes and depends on: the Snakefile and the stages both ask here."""
