"""Public benchmarks with their own ratings."""
