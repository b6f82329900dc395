#!/usr/bin/env bash
# All that needs a GPU, in one go, most important first: `bench/on_a_gpu.sh OUT [PYTHON]`.
#
# Tests of the kernels (the operations themselves, CUDA graphs, large batches), compute-sanitizer over them, the rows of
# every bench that has a side on a GPU. Each part has a log and a time limit; a part that fails does not stop the rest, and makes
# the script fail at its end. Rows and logs go to OUT, which the next call may share.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(realpath -m "${1:?say where results go}") python=${2:-python3}
mkdir -p "$out"
failed=()

part() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2 began=$SECONDS
    shift 2
    if timeout "$seconds" "$@" >"$out/$name.log" 2>&1; then result=done; else result="FAILED ($?)"; failed+=("$name"); fi
    printf '%-24s %-12s %4d s   %s\n' "$name" "$result" $((SECONDS - began)) "$(tail -n 1 "$out/$name.log" | cut -c1-100)"
}

nvidia-smi >"$out/nvidia-smi.log" 2>&1 || { echo "no GPU: nvidia-smi fails" >&2; exit 1; }
kernel_tests=(tests/test_gpu_*.py)
part tests 600 "$python" -m pytest -q -p no:cacheprovider "${kernel_tests[@]}"
part throughput_kernels 900 "$python" bench/throughput_kernels.py --device cuda --out "$out/throughput_kernels.jsonl"
part throughput_bmm 300 "$python" bench/throughput_bmm.py --device cuda --out "$out/throughput_bmm.jsonl"
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        part "$tool" 900 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
            "$python" -m pytest -q -p no:cacheprovider -k "not random_cases and not statistics" "${kernel_tests[@]}"
    done
else
    echo "compute-sanitizer is not installed: memcheck and racecheck were not run"
    failed+=(compute-sanitizer)
fi
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
