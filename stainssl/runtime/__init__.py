"""The machine: devices, threads, and work that overlaps."""
