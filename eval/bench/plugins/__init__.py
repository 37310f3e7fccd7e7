"""The benchmarks, a file each; `docs/benchmarks.md` says how to add one."""
