#!/bin/bash
# Trains any recipe:   RECIPE=llama3_8b sbatch slurm/train.sh [dpeer train's options]
# The recipe says how many ranks there are; for two nodes of 8 GPUs:
#   RECIPE=llama3_8b sbatch --nodes=2 slurm/train.sh --set cluster.policy_workers=16 --set cluster.reference_workers=16
# Nodes, GPUs and time are options of sbatch; all else is in the environment, see slurm/lib.sh.
# Submit from the folder that holds slurm/, on a file system that all nodes share.
# The run's folder is keyed by the run's name: submitting again, or being requeued, resumes it.
#SBATCH --job-name=dpeer
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Ten minutes before the end: time for the step at hand and a checkpoint.
#SBATCH --signal=B:USR1@600
# shellcheck source=slurm/lib.sh
. "${DPEER_HOME:-$SLURM_SUBMIT_DIR}/slurm/lib.sh"

run_on_ray dpeer train "${RECIPE:?name a recipe}" --auto-resume "$@"
