#!/usr/bin/env bash
# Trains on several nodes under Slurm, and resumes after a time limit, a preemption or a lost node:
#
#   sbatch --nodes=4 launch/slurm.sh --config=configs/densenet121.py --workdir=/shared/runs/121
#
# Each node has one task that uses all of its GPUs.  One task for each GPU works as well, with
# --ntasks-per-node=8 and an eighth of a node's cores as --cpus-per-task.  The job is requeued at
# most RESTARTS (100) times.
#SBATCH --job-name=densenet
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Two minutes before the time limit, SIGTERM makes the processes that srun started save and stop.
#SBATCH --signal=TERM@120
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" || exit

# --kill-on-bad-exit: if a process fails, the others are killed as well.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  "${PYTHON:-.venv/bin/python}" main.py "$@" &
wait $!
code=$?

# 0: finished. 2: usage or configuration error. 3: non-finite numbers. A restart does not help.
# After any other code, such as 75 (stopped on request, with the state saved), the job is requeued.
case $code in 0 | 2 | 3) exit $code ;; esac
if [ "${SLURM_RESTART_COUNT:-0}" -ge "${RESTARTS:-100}" ]; then
  echo "srun ended with exit code $code after ${SLURM_RESTART_COUNT} restarts; giving up" >&2
  exit $code
fi
echo "srun ended with exit code $code; requeueing the job" >&2
scontrol requeue "$SLURM_JOB_ID"
