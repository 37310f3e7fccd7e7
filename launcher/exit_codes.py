"""Exit codes of a training run that schedulers act on; slurm/lib.sh is their other half."""

DONE = 0
FAILED = 1
PREEMPTED = 85
"""The pre-emption signal came, and a checkpoint is saved: start the same command again."""
NODE_LOST = 86
"""The cluster is smaller than the run needs; the last checkpoint is kept: start again on whole nodes."""
