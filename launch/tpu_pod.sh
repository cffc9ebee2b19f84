#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, and starts them again when one was lost:
#
#   TPU=my-slice ZONE=us-central1-a launch/tpu_pod.sh \
#     --config=configs/densenet121.py --config.mesh.preset=tpu --workdir=/mnt/shared/runs/121
#
# Needed on every host: this checkout in ~/densenet_jax with its .venv (make demo makes it, and
# .venv/bin/pip install "jax[tpu]"), and the directory of --workdir on a file system that they share
# (Filestore, or a bucket mounted by gcsfuse).  JAX finds the other hosts by itself.
set -uo pipefail

: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
restarts=${RESTARTS:-10}
words=$(printf ' %q' "$@")
while true; do
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd ~/densenet_jax && exec .venv/bin/python main.py$words"
  code=$?
  # 0: done. 2: the user's to mend. 3: the numbers went bad.
  case $code in 0 | 2 | 3) exit $code ;; esac
  [ "$restarts" -gt 0 ] || exit $code
  restarts=$((restarts - 1))
  echo "the slice ended with code $code; starting again ($restarts more times)" >&2
  sleep "${PAUSE:-30}"
done
