#!/bin/bash
# A sweep, one cell per task of a job array, at most 4 at a time:
#   cells=$(dpeer sweep plan tolerance.yaml --count)
#   SWEEP=tolerance.yaml sbatch --array=0-$((cells - 1))%4 slurm/sweep_tolerance.sh
# Each task has nodes of its own; a finished cell ends at once, so that the whole array can be submitted again.
#SBATCH --job-name=dpeer-sweep
#SBATCH --array=0
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@600
# shellcheck source=slurm/lib.sh
. "${DPEER_HOME:-$SLURM_SUBMIT_DIR}/slurm/lib.sh"

run_on_ray dpeer sweep run "${SWEEP:?name a sweep file}" --cell "$SLURM_ARRAY_TASK_ID" "$@"
