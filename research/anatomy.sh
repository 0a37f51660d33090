#!/usr/bin/env bash
# What one behavior's steering vector is made of and what it does on its way up, on the embedded model: singular vectors
# and SAEs (decompose_vectors.py), the layers above (trace_steering.py), tokens by the logit lens and the J-lens, its
# linear range, how much it depends on its pairs, cosines under the causal inner product, and the report page.
# Work that is done is skipped, and what was killed goes on: run it again.
#
# Usage: ./research/anatomy.sh [BEHAVIOR] [--layer N] [--saes DIR...] [--root DIR]
#   BEHAVIOR      (default: refusal)
#   --layer N     decoder block whose vector is taken apart (default: 16)
#   --saes DIR... SAEs of that layer or a later one (default: none)
#   --root DIR    where everything is read and written (default: the repository)
set -euo pipefail
cd "$(dirname "$0")/.."

behavior=refusal
layer=16
root=$PWD
saes=()
while [ $# -gt 0 ]; do
    case $1 in
        --layer) layer=${2:?--layer needs a number}; shift 2 ;;
        --root) root=$(realpath "${2:?--root needs a folder}"); shift 2 ;;
        --saes)
            shift
            while [ $# -gt 0 ] && [[ $1 != --* ]]; do saes+=("$1"); shift; done ;;
        -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) echo "error: unknown flag $1; see $0 --help" >&2; exit 2 ;;
        *) behavior=$1; shift ;;
    esac
done
[[ $layer =~ ^[0-9]+$ ]] || { echo "error: --layer $layer is not the number of a layer" >&2; exit 2; }
[ -d "$root" ] || { echo "error: --root $root is not a folder; create it or name another one" >&2; exit 2; }

if [ -z "${CAA_ENVIRONMENT_IS_READY:-}" ]; then
    . utils/environment.sh
    ensure_environment
    . .venv/bin/activate
fi

kind=(--root "$root" --read answer --model_size 135m)
one=(--behaviors "$behavior" --layers "$layer" "${kind[@]}")
with_saes=()
[ ${#saes[@]} -eq 0 ] || with_saes=(--saes "${saes[@]}")
times=$root/analysis/research/anatomy_seconds_$behavior.txt
mkdir -p "$root/analysis/research"
: >"$times"

step() { # what it is, then the command
    local what=$1 before=$SECONDS
    shift
    echo "== $what" >&2
    "$@"
    printf '%s\t%s\n' "$((SECONDS - before))" "$what" >>"$times"
}

python -m utils.model.embedded
step "vectors, with the activations they are made from" ./generate_vectors.py --save_activations "${one[@]}"
step "normalised" ./normalize_vectors.py "${one[@]}"
step "singular vectors and SAEs" ./research/decompose_vectors.py "${one[@]}" "${with_saes[@]}"
step "downstream" ./research/trace_steering.py "${one[@]}" "${with_saes[@]}"
step "tokens, by the logit lens and the J-lens" ./analyze_vectors.py --decode "${one[@]}"
step "how much the vector depends on its pairs" ./analyze_vectors.py --stability "${one[@]}"
step "cosines under the causal inner product" ./analyze_vectors.py --inner_product causal --behaviors "$behavior" "${kind[@]}"
# the page is about sweeps; it shows what lies beside them
step "a sweep for the page" ./prompting_with_steering.py --multipliers -1 0 1 --type answer_text "${one[@]}"
step "report page" ./plot_results.py --type answer_text --report "${one[@]}"

cat "$times"
echo "figures and tables: $root/analysis/$behavior, $root/analysis/research; the page: $root/analysis/report_*.html"
