#!/usr/bin/env bash
# All that needs a GPU, most important first: `bench/on_a_gpu.sh OUT [PART ...]`; PYTHON says which Python.
#
# Parts: tests_augment, tests_loss_head, tests_rest (the operations themselves, CUDA graphs, large batches), kernels_small, kernels_large,
# mixture (rows), memcheck, racecheck (compute-sanitizer). Each has a log in OUT and takes ten minutes at most; one that fails does not
# stop the rest, and makes the script fail at its end. Without parts: all.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(realpath -m "${1:?say where results go}")
shift
asked=${*:-tests_augment tests_loss_head tests_rest kernels_small kernels_large mixture memcheck racecheck}
python=${PYTHON:-python3}
mkdir -p "$out"
failed=()

part() { # NAME COMMAND...
    local name=$1 began=$SECONDS result
    shift
    if timeout 550 "$@" >"$out/$name.log" 2>&1; then result=done; else result="FAILED ($?)"; failed+=("$name"); fi
    printf '%-18s %-12s %4d s   %s\n' "$name" "$result" $((SECONDS - began)) "$(tail -n 1 "$out/$name.log" | cut -c1-100)"
}

tests=("$python" -m pytest -q -p no:cacheprovider)
bench=("$python" bench/throughput_kernels.py --device cuda --out "$out/throughput_kernels.jsonl")
# A sanitizer sees what leaves an allocation: each tensor must be one of its own, which rules out captured graphs.
check=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9 --target-processes all)
few=(tests/test_gpu_augment.py tests/test_gpu_mixup.py tests/test_gpu_loss_head*.py tests/test_gpu_pseudo_label.py tests/test_gpu_beta_mixture.py
    -k "not captured and not graph and not compile and not random and not reference_gives and not large")

nvidia-smi >"$out/nvidia-smi.log" 2>&1 || { echo "no GPU: nvidia-smi fails" >&2; exit 1; }
for name in $asked; do
    case $name in
        tests_augment) part "$name" "${tests[@]}" tests/test_gpu_philox.py tests/test_gpu_augment.py tests/test_gpu_mixup.py ;;
        tests_loss_head) part "$name" "${tests[@]}" tests/test_gpu_loss_head*.py ;;
        tests_rest) part "$name" "${tests[@]}" tests/test_gpu_pseudo_label.py tests/test_gpu_beta_mixture.py tests/test_augment.py tests/test_detection.py ;;
        kernels_small) part "$name" "${bench[@]}" pad32 loss ;;
        kernels_large) part "$name" "${bench[@]}" pad64 pad224 resized224 store ;;
        mixture) part "$name" "$python" bench/throughput_bmm.py --device cuda --out "$out/throughput_bmm.jsonl" ;;
        memcheck | racecheck) part "$name" "${check[@]}" --tool "$name" "${tests[@]}" "${few[@]}" ;;
        *) echo "no part $name" >&2; exit 2 ;;
    esac
done
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
