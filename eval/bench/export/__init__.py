"""Benchmarks as tasks of other harnesses: data beside, protocol and scorer cut out of ours, no import of dpeer."""
