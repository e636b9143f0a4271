#!/usr/bin/env bash
# Create the work pool and its queues and register every deployment with the Prefect server of PREFECT_API_URL.
# GPUS: how many studies may evaluate at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
prefect work-pool create --type process --overwrite merging
prefect work-queue inspect --pool merging gpu > /dev/null 2>&1 || prefect work-queue create --pool merging --priority 1 gpu
prefect work-queue set-concurrency-limit --pool merging gpu "${GPUS:-1}"
prefect --no-prompt deploy --all
