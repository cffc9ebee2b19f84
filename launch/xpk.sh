#!/usr/bin/env bash
# Trains on TPU slices or GPU nodes of a cluster that xpk made, through a JobSet that restarts itself:
#
#   CLUSTER=my-cluster TYPE=v5litepod-256 IMAGE=registry.example.com/densenet_jax:latest \
#     launch/xpk.sh --config=configs/densenet121.py --config.mesh.preset=tpu --workdir=/runs/121
#
# The image has this checkout and its requirements with "jax[tpu]" or "jax[cuda13]" as its working
# directory; /runs and the data are storage that all pods mount (`xpk storage attach`).  JAX finds the
# other hosts by itself.  Variables: WORKLOAD (name; "densenet"), SLICES (1), RESTARTS (10).
set -euo pipefail

: "${CLUSTER:?the name of the cluster}" "${TYPE:?such as v5litepod-256 or h100-80gb-8}"
: "${IMAGE:?the image with this checkout}"
words=$(printf ' %q' "$@")
# Exit codes 2 (usage or configuration) and 3 (non-finite numbers) end the workload; xpk restarts it
# after 42 and 127 to 255 by itself, and here also after 1 (a lost process) and 75 (stopped, saved).
exec xpk workload create --cluster="$CLUSTER" --workload="${WORKLOAD:-densenet}" \
  --device-type="$TYPE" --num-slices="${SLICES:-1}" --docker-image="$IMAGE" \
  --max-restarts="${RESTARTS:-10}" --restart-on-exit-codes=1,75 \
  --termination-grace-period-seconds=120 --command="python main.py$words"
