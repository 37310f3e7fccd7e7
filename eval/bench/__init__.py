"""Benchmarks of the two failures, giving way and refusing too much: how to run them, and what their rates are."""
