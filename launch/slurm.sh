#!/usr/bin/env bash
# Trains on several nodes under Slurm, and goes on after a time limit, a preemption or a lost node:
#
#   sbatch --nodes=4 launch/slurm.sh --config=configs/densenet121.py --workdir=/shared/runs/121
#
# One task a node, which takes all of its GPUs; --ntasks-per-node=8 for one task a GPU works as well
# (then --cpus-per-task is the cores of a node by 8).
#SBATCH --job-name=densenet
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Two minutes before the time limit: save and stop.  It reaches the steps that srun starts.
#SBATCH --signal=TERM@120
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" || exit

# --kill-on-bad-exit: a process that fails takes the others with it.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  "${PYTHON:-.venv/bin/python}" main.py "$@" &
wait $!
code=$?

# 0: done. 2: the user's to mend. 3: the numbers went bad. 75: asked to stop, and saved.
case $code in 0 | 2 | 3) exit $code ;; esac
if [ "${SLURM_RESTART_COUNT:-0}" -ge "${RESTARTS:-100}" ]; then
  echo "srun ended with code $code, after ${SLURM_RESTART_COUNT} restarts; giving up" >&2
  exit $code
fi
echo "srun ended with code $code; queued again" >&2
scontrol requeue "$SLURM_JOB_ID"
