#!/usr/bin/env bash
# Steering that can be seen, on the embedded model, from nothing to answers side by side, a figure and a page.
# Usage: ./quickstart.sh
set -euo pipefail
cd "$(dirname "$0")"
. utils/environment.sh
ensure_environment
. .venv/bin/activate

behaviors="refusal positive-sentiment"
vectors="--read answer --model_size 135m"  # read over whole answers: at the letter a small model has next to nothing
layers="8 11 14 17 20"

python -m utils.model.embedded
./generate_vectors.py --behaviors $behaviors --layers $layers $vectors
./normalize_vectors.py --behaviors $behaviors --layers $layers $vectors
# the preference for the matching answer's text, by layer
./prompting_with_steering.py --behaviors $behaviors --layers $layers --multipliers -1 0 1 --type answer_text $vectors
# free answers, side by side, and what can be measured of them without a judge
./prompting_with_steering.py --behaviors positive-sentiment --layers 14 --multipliers -2 -1 0 1 2 --type open_ended \
    --max_new_tokens 40 $vectors
./scoring.py --metrics --behaviors positive-sentiment --model_size 135m
# every figure, and one page with the answers side by side: analysis/report_*.html
./plot_results.py --behaviors $behaviors --report $vectors
