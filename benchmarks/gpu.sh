#!/bin/sh
# Measure on one GPU all that docs/benchmarks.md says of GPUs: at most 10 minutes, nothing is downloaded.
#
#   bash benchmarks/gpu.sh            writes results/gpu_<card>.json and prints the lines for the docs
#   bash benchmarks/gpu.sh --quick    tiny models for an instant, on a CPU too; writes no file
#
# PYTHON is the interpreter (default: python). The first GPU of CUDA_VISIBLE_DEVICES is measured; leave it to this alone.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if ! "$python" -c 'import torch; exit(not torch.cuda.is_available())' && [ "${1:-}" != --quick ]; then
    echo "gpu.sh: error: torch finds no GPU here; --quick runs on a CPU" >&2
    exit 2
fi
"$python" -m benchmarks.gpu_steps --out "$folder/steps.json" "$@"
"$python" -m benchmarks.gpu_jobs --out "$folder/jobs.json" "$@"
"$python" -m benchmarks.gpu_report "$folder/steps.json" "$folder/jobs.json" "$@"
