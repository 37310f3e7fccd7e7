"""Benchmarks as tasks of other harnesses: data beside, protocol and scorer cut out of the plug-in, no import of dpeer."""
