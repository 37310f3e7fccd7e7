"""What a run costs: memory, throughput, sizes on disk. No training step uses any of it."""
