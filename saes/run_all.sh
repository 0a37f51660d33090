#!/usr/bin/env bash
# The whole SAE suite on the embedded model: from nothing to a stand-in that refuses, its refusal direction, four SAEs
# (two models x two texts), every evaluation, the two heatmaps and a dashboard, with a table at the end.
# Work that is done is skipped, and what was killed goes on: run it again. Two steps that do not need each other run side
# by side, each on half of the cores: small models gain more from that than from threads.
#
# Usage: ./saes/run_all.sh [--tokens N] [--seeds N...] [--root DIR]
#   --tokens N    tokens of text an SAE (default: 38400; 300000 with three seeds: about an hour)
#   --seeds N...  seeds of the SAEs, one SAE of each model and text for every seed (default: 0)
#   --root DIR    where everything is written (default: the repository)
set -euo pipefail
cd "$(dirname "$0")/.."

tokens=38400
seeds=()
root=$PWD
while [ $# -gt 0 ]; do
    case $1 in
        --tokens) tokens=${2:?--tokens needs a number}; shift 2 ;;
        --root) root=$(realpath "${2:?--root needs a folder}"); shift 2 ;;
        --seeds)
            shift
            while [ $# -gt 0 ] && [[ $1 != --* ]]; do seeds+=("$1"); shift; done ;;
        -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "error: unknown flag $1; see $0 --help" >&2; exit 2 ;;
    esac
done
[ ${#seeds[@]} -gt 0 ] || seeds=(0)
[[ $tokens =~ ^[1-9][0-9]*$ ]] || { echo "error: --tokens $tokens is not a number of tokens" >&2; exit 2; }
mkdir -p "$root"

if [ -z "${CAA_ENVIRONMENT_IS_READY:-}" ]; then
    . utils/environment.sh
    ensure_environment
    . .venv/bin/activate
fi

# a short text is read several times, a long one once or twice
if [ "$tokens" -lt 100000 ]; then epochs=8; elif [ "$tokens" -lt 400000 ]; then epochs=4; else epochs=2; fi
layer=16
shared=(--root "$root" --model_size 135m)
weights=$root/finetuned_models/refuser.pt
times=$root/analysis/sae/run_all_seconds.txt
mkdir -p "$root/analysis/sae"
: >"$times"

step() { # what it is, then the command
    local what=$1 before=$SECONDS
    shift
    echo "== $what" >&2
    "$@"
    printf '%s\t%s\n' "$((SECONDS - before))" "$what" >>"$times"
}

cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 1 ? cores / 2 : 1))}
set -m # every lane a process group of its own, which Ctrl-C ends as a whole
lanes=()
end_lanes() {
    for lane in ${lanes[@]+"${lanes[@]}"}; do kill -INT -- "-$lane" 2>/dev/null || true; done
    wait
    exit 130
}
trap end_lanes INT TERM

together() { # functions that run side by side; the others still end their work where one fails
    local function failed=0
    lanes=()
    for function in "$@"; do
        "$function" 2> >(sed -u "s/^/[$function] /" >&2) &
        lanes+=($!)
    done
    for lane in "${lanes[@]}"; do wait "$lane" || failed=$?; done
    lanes=()
    [ "$failed" -eq 0 ] || exit "$failed"
}

train() { # the data, then the flags that choose a model
    local data=$1 seed
    shift
    for seed in "${seeds[@]}"; do
        ./saes/train_sae.py "${shared[@]}" "$@" --layer $layer --data "$data" --tokens "$tokens" --epochs $epochs \
            --seed "$seed" --name "$(name_of "$data" "$seed" "$@")"
    done
}

name_of() { # data, seed, flags of the model -> name of the SAE's folder
    local data=$1 seed=$2 name=SmolLM2-135M-Instruct
    shift 2
    [ $# -eq 0 ] || name+=_refuser
    name+=_$data
    [ "$tokens" -eq 38400 ] || name+=_tokens=$tokens
    [ "$seed" -eq 0 ] || name+=_seed=$seed
    echo "$name"
}

refuser=(--override_model_weights_path "$weights")

untouched() {
    step "SAEs of the untouched model, chat" train chat
    step "SAEs of the untouched model, web" train web
}

stand_in() {
    step "stand-in that refuses" ./saes/make_refuser.py "${shared[@]}"
    step "refusal direction, chosen" ./saes/refusal_direction.py "${shared[@]}" "${refuser[@]}" --select \
        --layers 10 12 14 15 16 17 18 --positions -1 -2 --ablation affine --max_kl 0.5 --max_new_tokens 12
    step "SAEs of the stand-in, chat" train chat "${refuser[@]}"
    step "SAEs of the stand-in, web" train web "${refuser[@]}"
}

of_refuser=() of_untouched=()
for data in chat web; do
    for seed in "${seeds[@]}"; do
        of_refuser+=("$root/saes_trained/$(name_of $data "$seed" "${refuser[@]}")")
        of_untouched+=("$root/saes_trained/$(name_of $data "$seed")")
    done
done
all=("${of_refuser[@]}" "${of_untouched[@]}")
# results are named by script and model: those of other SAEs or lengths are made again
again=
sae_list=$root/analysis/sae/run_all_saes.txt
if [ -f "$sae_list" ] && [ "$(cat "$sae_list")" != "${all[*]}" ]; then again=--overwrite; fi

find_direction() {
    step "heatmaps: model and text" ./saes/dataset_vs_model_transfer.py "${shared[@]}" "${refuser[@]}" $again --saes "${all[@]}"
    step "fidelity" ./saes/refusal_dir_recons_fidelity_evals.py "${shared[@]}" "${refuser[@]}" $again --saes "${all[@]}"
    step "sparsity" ./saes/refusal_dir_sparsity_evals.py "${shared[@]}" "${refuser[@]}" $again --saes "${all[@]}"
    step "dashboard" ./saes/latent_dashboards.py "${shared[@]}" "${refuser[@]}" --saes "${of_refuser[0]}"
}

try_saes() {
    step "steering with latents" ./saes/refusal_latent_steering_evals.py "${shared[@]}" "${refuser[@]}" $again \
        --saes "${all[@]}" --ablation affine --max_new_tokens 12
    step "standard evaluations, stand-in" ./saes/standard_evals.py "${shared[@]}" "${refuser[@]}" $again \
        --tokens 2040 --saes "${of_refuser[@]}"
    step "standard evaluations, untouched" ./saes/standard_evals.py "${shared[@]}" $again --tokens 2040 \
        --saes "${of_untouched[@]}"
}

python -m utils.model.embedded
together stand_in untouched
together find_direction try_saes
echo "${all[*]}" >"$sae_list"
printf '%s\t%s\n' "$SECONDS" "all, side by side" >>"$times"

python -m utils.saes.summary "$root" "$times"
