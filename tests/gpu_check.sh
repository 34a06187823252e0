#!/usr/bin/env bash
# Everything that needs a GPU, in one command.
#
#   tests/gpu_check.sh [part ...]        parts: build info tests sanitizer verify bench; all by default
#
#   PYTHON   the interpreter (default .venv/bin/python where there is one, else python3)
#   OUT      folder for logs and results (default ./gpu-check-out)
#
# Each part writes $OUT/<part>.log. summary.json says for each what became of it ("ok", "failed", "absent"),
# and how long it took; the exit status is 1 where one failed.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-gpu-check-out}
mkdir -p "$OUT"
[ "$OUT" = gpu-check-out ] && echo '*' > "$OUT/.gitignore"  # results that are kept go to benchmarks/results
OUT=$(cd "$OUT" && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi

build() { "$PYTHON" setup.py -q build_ext --inplace; }

info() {
    command -v nvidia-smi > /dev/null && nvidia-smi > "$OUT/nvidia-smi.txt"
    "$PYTHON" -m fastrnn info --json | tee "$OUT/info.json"
}

tests() {
    "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "torch sees no GPU")' || return 1
    "$PYTHON" -m pytest tests/test_cuda.py tests/test_sru_cuda.py tests/test_cuda_compile.py -q -rs --junitxml="$OUT/tests.xml"
}

# Small shapes of every kernel under NVIDIA's checkers; cuBLAS' own kernels are left out. torch's caching
# allocator would hide an access beyond a tensor's end, so it is switched off.
sanitizer() {
    local tool found=$1 status=0
    for tool in memcheck racecheck synccheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$found" --tool "$tool" --error-exitcode 9 \
            --kernel-name kernel_substring=fastrnn "$PYTHON" -m pytest tests/test_cuda.py -q -k "test_layer and float32 and packed" || status=1
    done
    return $status
}

verify() { "$PYTHON" -m fastrnn verify --device cuda; }

bench() { "$PYTHON" -m fastrnn bench --device cuda --quick --out "$OUT/bench"; }

results=()
failed=0
run_part() {
    local part=$1 start=$SECONDS status=ok
    shift
    echo "== $part"
    if ! "$part" "$@" > >(tee "$OUT/$part.log") 2>&1; then
        status=failed
        failed=1
    fi
    results+=("\"$part\": {\"status\": \"$status\", \"seconds\": $((SECONDS - start))}")
}

parts=("$@")
[ ${#parts[@]} -eq 0 ] && parts=(build info tests sanitizer verify bench)
for part in "${parts[@]}"; do
    case $part in
        build | info | tests | verify | bench) run_part "$part" ;;
        sanitizer)
            checker=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
            if [ -n "$checker" ]; then
                run_part sanitizer "$checker"
            else
                echo "== sanitizer: compute-sanitizer is not here"
                results+=('"sanitizer": {"status": "absent", "seconds": 0}')
            fi
            ;;
        *)
            echo "unknown part: $part" >&2
            exit 2
            ;;
    esac
done

(
    IFS=,
    echo "{${results[*]}}"
) | "$PYTHON" -m json.tool | tee "$OUT/summary.json"
exit $failed
