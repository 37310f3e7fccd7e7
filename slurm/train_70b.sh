#!/bin/bash
# Llama 3 70B on 8 nodes with 8 GPUs each:   sbatch slurm/train_70b.sh [dpeer train's options]
# Other sizes: sbatch --nodes=4 slurm/train_70b.sh; one policy and one reference rank per GPU follow from what Slurm gives.
# RECIPE names another recipe; all other settings of the environment are in slurm/lib.sh.
# The run's folder is keyed by the run's name: submitting again, or being requeued, resumes it.
#SBATCH --job-name=dpeer-70b
#SBATCH --nodes=8
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

ranks=$((SLURM_JOB_NUM_NODES * ${SLURM_GPUS_ON_NODE:-0}))
run_on_ray dpeer train "${RECIPE:-llama3_70b}" --auto-resume \
  --set cluster.policy_workers=$ranks --set cluster.reference_workers=$ranks "$@"
