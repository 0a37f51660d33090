#!/usr/bin/env bash
# The main job on the embedded model, from nothing to a figure: vectors, normalised vectors, A/B sweep, plot.
# Usage: ./quickstart.sh [BEHAVIOR]     (default: sycophancy)
set -euo pipefail
cd "$(dirname "$0")"
. utils/environment.sh
ensure_environment
. .venv/bin/activate

behavior=${1:-sycophancy}
model="--model_size 135m"

python -m utils.model.embedded
./generate_vectors.py --behaviors "$behavior" $model
./normalize_vectors.py $model
./prompting_with_steering.py --behaviors "$behavior" --multipliers -1 0 1 --type ab $model
./plot_results.py --behaviors "$behavior" --multipliers -1 0 1 --type ab $model
