"""What each stage reads and writes."""
