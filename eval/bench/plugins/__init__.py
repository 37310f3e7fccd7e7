"""The benchmarks, a file each; `docs/bench.md` says how to add one."""
