"""Stages of gpu.py, one file each: `run(device, quick, out)` returns {"passed": bool or None, "lines": [...], ...}."""
