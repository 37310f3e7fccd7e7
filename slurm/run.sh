#!/bin/bash
# Any command of dpeer on Ray over whole nodes, such as a preflight before a long run, or the export of a large one:
#   sbatch --nodes=8 slurm/run.sh preflight llama3_70b --set cluster.nodes=8
#   sbatch --nodes=8 slurm/run.sh export runs/llama3-70b
#SBATCH --job-name=dpeer-run
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=02:00:00
#SBATCH --no-requeue
#SBATCH --open-mode=append
# shellcheck source=slurm/lib.sh
. "${DPEER_HOME:-$SLURM_SUBMIT_DIR}/slurm/lib.sh"

run_on_ray dpeer "${@:?name a command of dpeer}"
