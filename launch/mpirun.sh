#!/usr/bin/env bash
# Trains with N processes under Open MPI, and restarts them if they are killed:
#
#   launch/mpirun.sh 8 --config=configs/densenet121.py --workdir=/shared/runs/121
#   HOSTFILE=hosts launch/mpirun.sh 32 --config=...    # a line for each host: node1 slots=8
#
# Start one process for each GPU, or fewer: the processes of a host share its GPUs evenly.  On CPUs,
# set JAX_PLATFORMS=cpu.  Plain `mpirun -n 8 python main.py ...` works as well; this script adds
#   --bind-to none   because Open MPI otherwise binds a process to one core, too few to decode images
#   SIGUSR1          to stop a run, because after a SIGTERM mpirun kills its processes within a
#                    second, too soon to save the state
#   restarts         at most RESTARTS (10), PAUSE (5) seconds after the processes ended
# Further variables: PYTHON (the interpreter), MPIRUN_OPTIONS (more options for mpirun).
set -uo pipefail
cd "$(dirname "$0")/.." || exit

count=${1:?usage: launch/mpirun.sh N --config=FILE --workdir=DIR ...}
shift
restarts=${RESTARTS:-10}

set -m # mpirun gets a process group of its own, so that Ctrl-C does not reach it
stopped=
# mpirun forwards SIGUSR1 to all processes on all hosts.
trap 'stopped=1; kill -USR1 "$job" 2>/dev/null' TERM INT HUP
while true; do
  # MPIRUN_OPTIONS is unquoted, because it is split into words.
  # shellcheck disable=SC2086
  mpirun -n "$count" ${HOSTFILE:+--hostfile "$HOSTFILE"} --bind-to none ${MPIRUN_OPTIONS:-} \
    "${PYTHON:-python}" main.py "$@" </dev/null &
  job=$!
  wait "$job"
  code=$?
  if [ -n "$stopped" ]; then wait "$job"; code=$?; fi  # the signal interrupted the first wait
  # 0: finished. 2: usage or configuration error. 3: non-finite numbers.  A restart does not help.
  # 75: stopped on request, with the state saved.
  case $code in 0 | 2 | 3) exit $code ;; esac
  if [ -n "$stopped" ] || [ "$restarts" -le 0 ]; then exit $code; fi
  restarts=$((restarts - 1))
  echo "mpirun ended with exit code $code; restarting ($restarts restarts left)" >&2
  sleep "${PAUSE:-5}"
done
