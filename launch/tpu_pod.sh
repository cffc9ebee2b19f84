#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, and restarts them if one is lost:
#
#   TPU=my-slice ZONE=us-central1-a launch/tpu_pod.sh \
#     --config=configs/densenet121.py --config.mesh.preset=tpu --workdir=/mnt/shared/runs/121
#
# Every host needs this checkout in ~/densenet_jax with its .venv (created by `make demo`, followed by
# .venv/bin/pip install "jax[tpu]").  The directory of --workdir must be on a file system that all
# hosts share (Filestore, or a bucket mounted with gcsfuse).  JAX finds the other hosts by itself.
# Variables: RESTARTS (at most 10 restarts), PAUSE (30 seconds before a restart).
set -uo pipefail

: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
restarts=${RESTARTS:-10}
words=$(printf ' %q' "$@")
while true; do
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd ~/densenet_jax && exec .venv/bin/python main.py$words"
  code=$?
  # 0: finished. 2: usage or configuration error. 3: non-finite numbers.  A restart does not help.
  case $code in 0 | 2 | 3) exit $code ;; esac
  [ "$restarts" -gt 0 ] || exit $code
  restarts=$((restarts - 1))
  echo "the slice ended with exit code $code; restarting ($restarts restarts left)" >&2
  sleep "${PAUSE:-30}"
done
