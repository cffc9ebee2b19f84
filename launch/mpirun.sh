#!/usr/bin/env bash
# Trains with N processes under Open MPI, and starts them again when they were taken away:
#
#   launch/mpirun.sh 8 --config=configs/densenet121.py --workdir=/shared/runs/121
#   HOSTFILE=hosts launch/mpirun.sh 32 --config=...    # a line a host: node1 slots=8
#
# One process a GPU, or fewer: those of a host share its GPUs evenly.  On CPUs: JAX_PLATFORMS=cpu.
# Plain `mpirun -n 8 python main.py ...` works as well; what is added here:
#   --bind-to none   Open MPI gives a process one core otherwise, too few to decode images
#   SIGUSR1          after SIGTERM mpirun leaves its processes a second, too little to save the state
set -uo pipefail
cd "$(dirname "$0")/.." || exit

count=${1:?usage: launch/mpirun.sh N --config=FILE --workdir=DIR ...}
shift
restarts=${RESTARTS:-10}

set -m # a group of its own, so that Ctrl-C does not reach mpirun
stopped=
# mpirun hands SIGUSR1 on to all processes, on all hosts.
trap 'stopped=1; kill -USR1 "$job" 2>/dev/null' TERM INT HUP
while true; do
  # Options are words.
  # shellcheck disable=SC2086
  mpirun -n "$count" ${HOSTFILE:+--hostfile "$HOSTFILE"} --bind-to none ${MPIRUN_OPTIONS:-} \
    "${PYTHON:-python}" main.py "$@" </dev/null &
  job=$!
  wait "$job"
  code=$?
  if [ -n "$stopped" ]; then wait "$job"; code=$?; fi  # the signal has ended the first wait
  # 0: done. 2: the user's to mend. 3: the numbers went bad. 75: asked to stop, and saved.
  case $code in 0 | 2 | 3) exit $code ;; esac
  if [ -n "$stopped" ] || [ "$restarts" -le 0 ]; then exit $code; fi
  restarts=$((restarts - 1))
  echo "mpirun ended with code $code; starting again ($restarts more times)" >&2
  sleep "${PAUSE:-5}"
done
