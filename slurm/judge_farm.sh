#!/bin/bash
# Answers and ratings on as many nodes as are given, each engine on engine.tensor_parallel GPUs; answers first:
#   first=$(RECIPE=evaluation.yaml sbatch --parsable --nodes=4 slurm/judge_farm.sh generate)
#   RECIPE=evaluation.yaml sbatch --nodes=4 --dependency=afterok:"$first" slurm/judge_farm.sh judge
# Finished parts are kept: a job that was pre-empted or lost a node goes on where it was.
#SBATCH --job-name=dpeer-judge
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
# shellcheck source=slurm/lib.sh
. "${DPEER_HOME:-$SLURM_SUBMIT_DIR}/slurm/lib.sh"

run_on_ray dpeer "${1:-judge}" "${RECIPE:?name an evaluation recipe}" "${@:2}"
