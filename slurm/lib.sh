# shellcheck shell=bash
# Shared functions of the Slurm scripts; docs/cluster.md explains them. Sourced inside a job, on its first node.
#
# What the exit code of the command (dpeer train, ...) means:
#    0  done
#   85  pre-empted, a checkpoint is saved: the job is put back into the queue
#   73  a node refuses its folder (DPEER_TMP): final, as another attempt would meet the same
#   86  a node was lost: Slurm puts the job back (or this script, when Slurm does not); at most DPEER_MAX_LOSSES times
#    *  final; the last line of the output says why
#
# Settings, all from the environment:
#   DPEER_HOME            the checkout, for jobs submitted from elsewhere              [the folder of the submission]
#   DPEER_ENV             file to source first, e.g. a virtual environment's activate  [the checkout's .venv/bin/activate]
#   DPEER_CONTAINER       prefix that runs a command in a container, e.g. "apptainer exec --nv dpeer.sif"
#   DPEER_LOGS            folder on a file system that all nodes share                 [logs]
#   DPEER_TMP             folder on each node, at most 12 characters long              [/tmp]
#   DPEER_INTERFACE       network interface for Ray, if a node's name does not lead to the right one
#   DPEER_PORT            Ray's port on the first node                                 [from the job's number]
#   DPEER_START_TIMEOUT   seconds until all nodes must have joined                     [600]
#   DPEER_OBJECT_STORE    bytes of shared memory for Ray on each node                  [2000000000]
#   DPEER_PREEMPT_SIGNAL  the signal of #SBATCH --signal; another one where NCCL uses it  [USR1]
#   DPEER_GRACE_S         its seconds before the end: saves that take longer are warned of     [from the script's #SBATCH line]
#   DPEER_MAX_LOSSES      restarts after a lost node or a failed start                 [3]
#   DPEER_LOSS_PATIENCE   seconds that Slurm may take to see a lost node               [its SlurmdTimeout + 60]
#   NCCL_*, GLOO_*        passed on as they are, never set here
set -uo pipefail # not -e: exit codes are looked at one by one

EX_FAILED=1 EX_REFUSED=73 EX_PREEMPTED=85 EX_NODE_LOST=86

say() { echo "[$(date '+%F %T')] $*"; }

final() { # final CODE REASON...: the end of the job
  stop_ray
  say "final, exit code $1: ${*:2}"
  exit "$1"
}

begin() { # settings, folders and traps of this attempt
  # shellcheck disable=SC1090  # the user's file
  if [ -f "${DPEER_ENV:=${DPEER_HOME:-.}/.venv/bin/activate}" ]; then . "$DPEER_ENV"; fi
  unset RAY_ADDRESS RAY_AUTH_TOKEN # of another cluster
  : "${DPEER_LOGS:=logs}" "${DPEER_TMP:=/tmp}" "${DPEER_START_TIMEOUT:=600}" "${DPEER_MAX_LOSSES:=3}"
  export DPEER_PREEMPT_SIGNAL=${DPEER_PREEMPT_SIGNAL:-USR1}
  export DPEER_GRACE_S=${DPEER_GRACE_S:-$(sed -nE 's/^#SBATCH --signal=.*@([0-9]+)$/\1/p' "$0" | head -n 1)}
  read -ra container <<<"${DPEER_CONTAINER:-}"
  if [ -z "${DPEER_CONTAINER:-}" ] && ! command -v dpeer >/dev/null; then
    final $EX_FAILED "no dpeer on PATH and no $DPEER_ENV; run make setup in the checkout, or set DPEER_ENV or DPEER_CONTAINER"
  fi

  restarts=${SLURM_RESTART_COUNT:-0}
  job_logs=$(realpath -m "$DPEER_LOGS")/$SLURM_JOB_ID
  logs=$job_logs/attempt-$restarts
  mkdir -p "$logs" || final $EX_FAILED "cannot write to $logs; set DPEER_LOGS to a folder that all nodes share"

  nodes=$SLURM_JOB_NUM_NODES
  gpus=${SLURM_GPUS_ON_NODE:-0}
  ray_dir=$DPEER_TMP/dpeer-$SLURM_JOB_ID-$restarts
  head=$(node_address)
  [ -n "$head" ] || final $EX_FAILED "no network address of $(hostname) was found; set DPEER_INTERFACE"
  port=${DPEER_PORT:-$((20000 + SLURM_JOB_ID % 500 * 10))}
  export DPEER_ENGINE_TMP=$ray_dir/tmp RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$logs/private/token
  (umask 077 && mkdir -p "$logs/private" && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

  child='' ray_step='' signalled=''
  # shellcheck disable=SC2064  # the signal's name is known now
  trap "pass_on $DPEER_PREEMPT_SIGNAL" "$DPEER_PREEMPT_SIGNAL"
  trap 'pass_on TERM' TERM

  local losses=$((restarts - $(preemptions)))
  say "job $SLURM_JOB_ID, attempt $restarts ($losses after a loss), $nodes nodes with $gpus GPUs each, logs in $logs"
  ((losses <= DPEER_MAX_LOSSES)) || give_up "$losses"
}

preemptions() { cat "$job_logs/preemptions" 2>/dev/null || echo 0; }

node_address() { # this node's address in the network that the nodes share
  if [ -n "${DPEER_INTERFACE:-}" ]; then
    ip -4 -o addr show dev "$DPEER_INTERFACE" | awk '{sub("/.*", "", $4); print $4; exit}'
  else
    { getent ahostsv4 "$(hostname)"; hostname -I | tr ' ' '\n'; } | awk '$1 !~ /^127\./ && NF {print $1; exit}'
  fi
}

pass_on() { # pass_on SIGNAL: the script was sent a signal; the running command shall act on it
  signalled=$1
  say "SIG$1 received"
  if [ -n "$child" ]; then kill -s "$1" "$child" 2>/dev/null; fi
}

reachable() { timeout 5 bash -c ": <>/dev/tcp/$head/$port" 2>/dev/null; } # is Ray on the first node there?

complete() { # are all nodes still there, with their GPUs?
  reachable && "${container[@]}" dpeer wait-for-nodes "$nodes" --gpus "$gpus" --timeout 30 >/dev/null 2>&1
}

attend() { # attend COMMAND...: run it so that signals reach it at once; returns its exit code
  "$@" &
  child=$!
  while kill -0 "$child" 2>/dev/null; do wait "$child"; done
  wait "$child" # a trap ends the one before early
  local code=$?
  child=''
  return $code
}

# The part of one node, under srun. It sees exported variables only.
ray_node() {
  trap '' "$DPEER_PREEMPT_SIGNAL" # Ray inherits this: a signal to all of the job ends none of its processes
  export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # nothing is left to drain when the command has ended
  if [ "$SLURM_NODEID" = 0 ]; then echo "$SLURM_JOB_ID.$SLURM_STEP_ID" >"$logs/step"; fi
  private_folder || { echo "$(hostname): $ray_dir cannot be made, or is another user's; set DPEER_TMP" >>"$logs/refused"; return 73; }
  mkdir -p "$DPEER_ENGINE_TMP"
  local where=(--head --port="$port" --include-dashboard=false)
  if [ "$SLURM_NODEID" != 0 ]; then
    where=(--address="$head:$port")
    until reachable; do
      ((SECONDS < DPEER_START_TIMEOUT)) || { echo "$(hostname) cannot reach $head:$port"; return 75; }
      sleep 1
    done
  fi
  local prefix
  read -ra prefix <<<"${DPEER_CONTAINER:-}"
  "${prefix[@]}" ray start "${where[@]}" --node-ip-address="$(node_address)" --temp-dir="$ray_dir/ray" \
    --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="$gpus" --min-worker-port=0 --max-worker-port=0 \
    --object-store-memory="$DPEER_OBJECT_STORE" --disable-usage-stats --block &
  local ray=$!
  trap 'kill -TERM "$ray"' TERM
  while kill -0 "$ray" 2>/dev/null; do wait "$ray"; done
  clear_node
}

private_folder() { # Ray opens its own folder to everybody, so it lies inside one that is ours alone
  mkdir -m 700 "$ray_dir" 2>/dev/null || [ "$(stat -c '%u %a %F' "$ray_dir")" = "$(id -u) 700 directory" ]
}

clear_node() { # Ray's agents outlive a raylet that has lost the head; they are known by their open logs
  find /proc/[0-9]*/fd -lname "$ray_dir/*" 2>/dev/null | cut -d/ -f3 | sort -u | xargs -r kill -KILL 2>/dev/null
  rm -rf "$ray_dir"
}

start_ray() { # Ray on all nodes; returns 0 once they have joined with all their GPUs
  export head port gpus logs ray_dir DPEER_START_TIMEOUT
  export DPEER_INTERFACE=${DPEER_INTERFACE:-} DPEER_CONTAINER=${DPEER_CONTAINER:-} DPEER_OBJECT_STORE=${DPEER_OBJECT_STORE:-2000000000}
  srun --overlap --kill-on-bad-exit=0 --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 \
    --cpus-per-task="$SLURM_CPUS_ON_NODE" --output="$logs/ray-%N.log" \
    bash -c "$(declare -f ray_node node_address reachable private_folder clear_node); ray_node" &
  ray_step=$!
  export RAY_ADDRESS=$head:$port
  attend joined
}

joined() { # waits for all nodes, and no longer for one that refuses
  "${container[@]}" dpeer wait-for-nodes "$nodes" --gpus "$gpus" --timeout "$DPEER_START_TIMEOUT" &
  local waiting=$!
  # shellcheck disable=SC2064  # the process is known now
  trap "kill $waiting" TERM "$DPEER_PREEMPT_SIGNAL"
  until [ -s "$logs/refused" ]; do
    kill -0 "$waiting" 2>/dev/null || { wait "$waiting"; return; }
    sleep 0.5
  done
  kill "$waiting"
  return "$EX_REFUSED"
}

stop_ray() { # a signal to srun itself would kill its tasks before they can tidy up
  if [ -z "${ray_step:-}" ]; then return; fi
  scancel --signal=TERM "$(cat "$logs/step")"
  local i
  for ((i = 0; i < 60; i++)); do kill -0 "$ray_step" 2>/dev/null && sleep 0.5; done
  kill -TERM "$ray_step" 2>/dev/null
  ray_step=''
}

run_on_ray() { # run_on_ray COMMAND...: Ray, then the command on the first node, then what its exit code asks for
  begin
  if start_ray; then
    say "all nodes are there; running: $*"
    local log=$logs/driver.log
    : >"$log"
    tail -n +1 -s 0.5 -F "$log" 2>/dev/null &
    local mirror=$!
    attend logged "$log" "${container[@]}" "$@"
    local code=$?
    # It ended before it could listen, or does not know the signal: what it wrote is kept, as after any other end.
    if [ "$signalled" = "$DPEER_PREEMPT_SIGNAL" ] && [ $code = $((128 + $(kill -l "$DPEER_PREEMPT_SIGNAL"))) ]; then
      code=$EX_PREEMPTED
    fi
    if [ -z "$signalled" ] && [ $code != 0 ] && ! complete; then code=$EX_NODE_LOST; fi # whatever it says of the reason
    sleep 1 && kill "$mirror" 2>/dev/null # it has shown the rest by now
    wait "$mirror" 2>/dev/null
    finish "$code" "$1 ended with $code: $(reason "$log")"
  elif [ -s "$logs/refused" ]; then
    finish $EX_REFUSED "$(head -n 1 "$logs/refused")"
  elif [ "$signalled" = "$DPEER_PREEMPT_SIGNAL" ]; then
    finish $EX_PREEMPTED "pre-empted before the start"
  elif [ "$signalled" = TERM ]; then
    finish 143 "stopped before the start"
  else
    finish $EX_NODE_LOST "Ray did not start on all $nodes nodes; see $logs/ray-*.log"
  fi
}

logged() { exec "${@:2}" >"$1" 2>&1; } # exec: signals reach the command itself

reason() { # the error that a command has printed, on one line; else its last line that is not Ray's, which come last
  local error
  error=$(sed -nE '/^(error|unexpected [A-Za-z]+):/,$p' "$1" | paste -sd ' ')
  echo "${error:-$(grep -v $'^[[:space:]\033]' "$1" | grep . | tail -n 1)}"
}

finish() { # finish CODE REASON
  case $1 in
    0) final 0 "done" ;;
    "$EX_PREEMPTED")
      echo $(($(preemptions) + 1)) >"$job_logs/preemptions"
      say "pre-empted: $2"
      stop_ray
      requeue "$EX_PREEMPTED"
      ;;
    "$EX_NODE_LOST")
      local losses=$((restarts - $(preemptions)))
      ((losses < DPEER_MAX_LOSSES)) || give_up $((losses + 1))
      say "node lost: $2"
      stop_ray
      local patience=${DPEER_LOSS_PATIENCE:-$(($(scontrol show config | awk '$1 == "SlurmdTimeout" {print $3}') + 60))}
      say "waiting up to $patience s for Slurm to see it and to restart the job"
      attend sleep "$patience"
      requeue "$EX_NODE_LOST"
      ;;
    *) final "$1" "$2" ;;
  esac
}

requeue() { # requeue CODE
  scontrol requeue "$SLURM_JOB_ID" || final $EX_FAILED "the job could not be put back into the queue; submit it again"
  attend sleep 120 # Slurm ends the script here
  exit "$1"
}

give_up() { # give_up LOSSES
  scontrol update JobId="$SLURM_JOB_ID" Requeue=0
  final $EX_NODE_LOST "lost a node $1 times, DPEER_MAX_LOSSES is $DPEER_MAX_LOSSES; submit the job again to go on from the checkpoint"
}
