#!/bin/bash
# Trains any recipe:   RECIPE=demo sbatch --nodes=2 slurm/train.sh [dpeer train's options]
# Resources are options of sbatch (or SBATCH_* variables); all else is in the environment, see slurm/lib.sh.
# Submit from the folder that holds slurm/, on a file system that all nodes share. Submitting again resumes.
#SBATCH --job-name=dpeer
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@600
# shellcheck source=slurm/lib.sh
. "${DPEER_HOME:-$SLURM_SUBMIT_DIR}/slurm/lib.sh"

run_on_ray dpeer train "${RECIPE:?name a recipe}" --auto-resume "$@"
