#!/usr/bin/env bash
# All that needs a GPU, most important first: `bench/on_a_gpu.sh OUT [--rehearse] [--synthetic] [PART ...]`.
#
# For a machine without a package registry and without git: what it lacks is in .whl/ (bench/fetch_wheels.sh). Each part takes
# less than ten minutes, is of use alone and has a log in OUT; one that fails does not stop the rest, and makes the script fail
# at its end. Without parts: all. Parts that train (cifar10, cells, table4) stop in time with their state saved; the next call
# goes on, as long as FASTDRPL_STATE (default: fastdrpl-gpu in $TMPDIR) is there.
#
# Real data arrive in .data/ in parts (bench/carry_data.py), over several calls if need be; --synthetic makes random images
# instead, which is enough for timing. --rehearse runs every part on the CPU, tiny, the kernels in Triton's interpreter, in a
# copy of the tree and an environment that has only what bench/gpu-machine.txt names.
#
# PYTHON says which Python, PART_SECONDS how long a part may take (550), FASTDRPL_COMMIT which commit the files are.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
parts=(smoke tests_augment tests_loss_head tests_rest parity epochs_relabel epochs_semi epochs_512 epochs_64 losses
    kernels_loss kernels_pad kernels_resized mixture data cifar10 cells table4 memcheck racecheck)
cells=("nonuniform 0.4" "uniform 0.4" "uniform 0.2" "none 0")
tiny_run=() # flags that make a run small

usage() { sed -n 2p "$root/bench/on_a_gpu.sh" | cut -c3-; printf 'Parts: %s\n' "${parts[*]}"; exit 2; }

out='' asked=() rehearse=0 synthetic=0 only=''
while (($#)); do
    case $1 in
        --rehearse) rehearse=1 ;;
        --synthetic) synthetic=1 ;;
        --do) only=$2; shift ;; # one part, within its time: how the script calls itself
        -*) usage ;;
        *) if [[ -z $out ]]; then out=$(realpath -m "$1"); else asked+=("$1"); fi ;;
    esac
    shift
done
[[ -n $out ]] || usage
for name in "${asked[@]}"; do
    [[ " ${parts[*]} " == *" $name "* ]] || { echo "no part $name" >&2; usage; }
done
mkdir -p "$out"
cd "$root" || exit

export PYTHON=${PYTHON:-python3} PART_SECONDS=${PART_SECONDS:-550}
export FASTDRPL_STATE=${FASTDRPL_STATE:-${TMPDIR:-/tmp}/fastdrpl-gpu}
site=$FASTDRPL_STATE/site device=cuda

# --- A rehearsal: the same script, in a copy of the tree, in an environment of its own.
if ((rehearse)) && [[ -z ${FASTDRPL_REHEARSED:-} ]]; then
    fresh=$(mktemp -d) && trap 'rm -rf "$fresh"' EXIT
    FASTDRPL_COMMIT=$(git rev-parse HEAD) && export FASTDRPL_COMMIT
    [[ -d .whl ]] || bench/fetch_wheels.sh >/dev/null || exit 1
    mkdir "$fresh/tree" "$fresh/tmp"
    { git ls-files -coz --exclude-standard; find .whl -type f -print0; } | tar -c --null --ignore-failed-read -T - | tar -x -C "$fresh/tree"
    bare=$("$PYTHON" bench/bare_machine.py "$fresh/python") || exit 1
    env -u PYTHONPATH -u VIRTUAL_ENV FASTDRPL_REHEARSED=1 PYTHON="$bare" TMPDIR="$fresh/tmp" FASTDRPL_STATE="$fresh/tmp/state" \
        TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES='' HOME="$fresh/tmp" "$fresh/tree/bench/on_a_gpu.sh" "$out" --rehearse "${asked[@]}"
    exit
fi
((rehearse)) && device=cpu
mkdir -p "$FASTDRPL_STATE"

# --- What the parts are made of.
pytest() { "$PYTHON" -m pytest -q -p no:cacheprovider "$@"; }
many() { pytest -n 8 "$@"; }
epochs() { "$PYTHON" bench/throughput_epoch.py --device "$device" --out "$out/throughput_epoch.jsonl" "$@"; }
kernels() { "$PYTHON" bench/throughput_kernels.py --device "$device" --out "$out/throughput_kernels.jsonl" "$@"; }
bmm() { "$PYTHON" bench/throughput_bmm.py --device "$device" --out "$out/throughput_bmm.jsonl" "$@"; }
fastdrpl() { "$PYTHON" -m fastdrpl "$@"; }

# Train until the part's time is over; the run saves itself and ends with 75.
train() { # SECONDS FOLDER WORDS...
    local seconds=$1 run=$FASTDRPL_STATE/runs/$2 code
    shift 2
    timeout --preserve-status -k 60 -s TERM "$seconds" "$PYTHON" -m fastdrpl train cifar10 --data "$FASTDRPL_STATE/data/cifar10" \
        --run "$run" --checkpoint.every 60 "$@"
    code=$?
    for file in result.json metrics.csv manifest.json; do
        [[ -f $run/$file ]] && cp "$run/$file" "$out/$(basename "$run").$file"
    done
    return $code
}
noise() { if [[ $1 == none ]]; then echo --noise.kind none; else echo --noise.kind "$1" --noise.ratio "$2"; fi; }
left() { echo $((PART_SECONDS - SECONDS - 40)); } # seconds, with room for saving

need_data() { # of cifar10, and of cifar100 where it came too
    if ((synthetic)); then "$PYTHON" bench/synthetic.py "$FASTDRPL_STATE/data/cifar10"
    else "$PYTHON" bench/carry_data.py join "${FASTDRPL_DATA:-.data}" "$FASTDRPL_STATE/data"; fi
}
compare() { # GRID WORDS...: until the time is over; a row for each cell that is done
    local grid=$1 code
    shift
    cd "$FASTDRPL_STATE" || return 1
    PYTHONPATH="$OLDPWD:$PYTHONPATH" timeout --preserve-status -k 60 -s TERM "$(left)" "$PYTHON" -m fastdrpl compare "$grid" \
        --out "$FASTDRPL_STATE/table4" "$@"
    code=$?
    "$PYTHON" "$OLDPWD/bench/table4_rows.py" "$grid" --out "$FASTDRPL_STATE/table4" --rows "$out/table4.jsonl" || return 1
    cp "$FASTDRPL_STATE/table4/tables.md" "$out/table4.md" 2>/dev/null
    return $code
}
# A sanitizer sees what leaves an allocation: each tensor must be one of its own, which rules out captured graphs.
sanitize() { # TOOL WORDS: file by file; what a call has no time for is left to the next
    local tool=$1 words=$2 past=$FASTDRPL_STATE/$1.done file code=0 run=()
    ((rehearse)) || run=(compute-sanitizer --error-exitcode 9 --tool "$tool")
    touch "$past"
    for file in "${sanitized[@]}"; do
        grep -qx "$file" "$past" && continue
        (($(left) > 60)) || return 75
        timeout "$(left)" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${run[@]}" "$PYTHON" -m pytest -q -p no:cacheprovider "$file" -k "$words"
        case $? in
            0 | 5) echo "$file" >>"$past" ;; # 5: no test of these words
            *) echo "$file: FAILED, or too long" && code=1 ;;
        esac
    done
    return $code
}
plain="not captured and not graph and not compile and not random and not reference_gives and not large"
sanitized=(tests/test_gpu_augment.py tests/test_gpu_mixup.py tests/test_gpu_loss_head.py tests/test_gpu_pseudo_label.py
    tests/test_gpu_beta_mixture.py)

# --- The parts.
smoke() { "$PYTHON" bench/gpu_smoke.py && fastdrpl train digits --epochs_scale 0.05 --detect.collapse relax --run "$FASTDRPL_STATE/runs/smoke" &&
    many tests/test_gpu_augment.py tests/test_gpu_mixup.py tests/test_gpu_loss_head_operations.py tests/test_gpu_beta_mixture.py \
        -k "captured or graph or warm_up"; }
tests_augment() { many tests/test_gpu_philox.py tests/test_gpu_augment.py tests/test_gpu_mixup.py; }
tests_loss_head() { many tests/test_gpu_loss_head.py tests/test_gpu_loss_head_edges.py tests/test_gpu_loss_head_operations.py; }
tests_rest() { many tests/test_gpu_pseudo_label.py tests/test_gpu_beta_mixture.py tests/test_augment.py tests/test_detection.py; }
capture_tests=tests/test_gpu_capture.py # optional: steps captured, compiled and eager give the same
parity() {
    if [[ ! -f $capture_tests ]]; then echo "SKIPPED: there is no $capture_tests"; return 0; fi
    pytest $capture_tests
}
epochs_relabel() { epochs --tasks relabel --sizes 32 --batches 128 --profile; }
epochs_semi() { epochs --tasks semi --sizes 32 --batches 128 --profile; }
epochs_512() { epochs --sizes 32 --batches 512 --sides ours bare plain; }
epochs_64() { epochs --sizes 64 --batches 128 --sides ours bare plain; }
losses() { epochs --losses 200 --sizes 32 --batches 128; }
kernels_loss() { kernels pad32 loss; }
kernels_pad() { kernels pad64 pad224; }
kernels_resized() { kernels resized224 store; }
mixture() { bmm; }
data() { need_data; }
cifar10() { need_data && train "$(left)" u08 --noise.kind uniform --noise.ratio 0.8; }
cells() {
    need_data || return
    local cell code=0
    for cell in "${cells[@]}"; do
        (($(left) > 20)) || return 75
        # shellcheck disable=SC2046,SC2086 - words
        train "$(left)" "${cell/ /-}" $(noise $cell) "${tiny_run[@]}" || { code=$?; ((code == 75)) && return 75; }
    done
    return $code
}
table4() { need_data && compare table4 --per_gpu 3 --only 'cifar10/drpl/*' 'cifar10/ce/*'; }
memcheck() { sanitize memcheck "$plain"; }
racecheck() { sanitize racecheck "$plain"; }

# --- The same, tiny.
((rehearse)) && tiny_run=(--epochs_scale 0.01 --limit 40 --limit_test 20 --model.width 4 --engine.threads 1
    --detect.collapse relax)
tiny() { epochs --quick --threads 1 --images 64 --batches 32 --widths 4 "$@"; }
rehearse_smoke() { "$PYTHON" bench/gpu_smoke.py && fastdrpl train digits --run "$FASTDRPL_STATE/runs/smoke" "${tiny_run[@]}" &&
    pytest tests/test_gpu_beta_mixture.py -k captured; }
rehearse_tests_augment() { pytest tests/test_gpu_philox.py tests/test_gpu_augment.py tests/test_gpu_mixup.py -k "same_bits or strided"; }
rehearse_tests_loss_head() { pytest tests/test_gpu_loss_head.py tests/test_gpu_loss_head_edges.py tests/test_gpu_loss_head_operations.py \
    -k "add_up_to_1 or repeated_rows or empty_batch or captured"; }
rehearse_tests_rest() { pytest tests/test_gpu_pseudo_label.py tests/test_gpu_beta_mixture.py tests/test_augment.py tests/test_detection.py \
    -k "rounded_down or stream_of_a_redraw or same_losses or refused"; }
rehearse_parity() { parity; }
rehearse_epochs_relabel() { tiny --tasks relabel --profile; }
rehearse_epochs_semi() { tiny --tasks semi --sides ours bare reference --profile; }
rehearse_epochs_512() { tiny --batches 64 --tasks relabel --sides ours bare; }
rehearse_epochs_64() { tiny --sizes 64 --tasks semi --sides ours bare; }
rehearse_losses() { tiny --tasks relabel --losses 3; }
rehearse_kernels_loss() { kernels --quick loss; }
rehearse_kernels_pad() { kernels --quick pad64; }
rehearse_kernels_resized() { kernels --quick store; }
rehearse_mixture() { bmm 2000; }
rehearse_data() { # in two parts, of which the second comes later
    local sent=$FASTDRPL_STATE/sent code
    [[ ! -d $FASTDRPL_STATE/data ]] || return 0
    "$PYTHON" bench/synthetic.py "$FASTDRPL_STATE/made/cifar10" --train 300 --test 60 &&
        "$PYTHON" bench/carry_data.py split "$FASTDRPL_STATE/made/cifar10" "$sent" --largest 4000000 || return
    mkdir -p .data && cp "$sent"/cifar10.json "$sent"/cifar10.000 .data/
    need_data
    code=$?
    ((code == 3)) || { echo "with a part missing: code $code, want 3"; return 1; }
    cp "$sent"/cifar10.* .data/ && need_data
}
rehearse_cifar10() { # stopped within its first stage, and called again
    rehearse_data || return
    local run=$FASTDRPL_STATE/runs/u08 code
    tiny_run[1]=0.05
    train 500 u08 --noise.kind uniform --noise.ratio 0.8 "${tiny_run[@]}" &
    until [[ -s $run/metrics.jsonl ]]; do sleep 0.2; kill -0 $! || return; done
    kill -TERM "$(pgrep -P $! timeout)"
    wait $!
    code=$?
    ((code == 75)) || { echo "stopped: code $code, want 75"; return 1; }
    train "$(left)" u08 --noise.kind uniform --noise.ratio 0.8 "${tiny_run[@]}"
}
rehearse_cells() { rehearse_data && cells=("nonuniform 0.4") && cells; }
rehearse_table4() { # the shipped grid, with smaller runs
    rehearse_data || return
    { cat fastdrpl/compare/grids/table4.toml; printf '\n[flags]\n'; printf '%s = %s\n' epochs_scale 0.01 limit 40 limit_test 20 \
        model.width 4 engine.threads 1 detect.collapse '"relax"'; } >"$FASTDRPL_STATE/table4.toml"
    compare "$FASTDRPL_STATE/table4.toml" --only 'cifar10/ce/U-0.8'
}
rehearse_memcheck() { sanitize memcheck "($plain) and strided"; }
rehearse_racecheck() { sanitize racecheck "($plain) and rounded_down"; }

# --- One part, or all that were asked for.
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
if [[ -n $only ]]; then
    trap : TERM # what runs is told too; its end is ours
    SECONDS=0
    "$only"
    exit
fi
((rehearse)) || nvidia-smi >"$out/nvidia-smi.log" 2>&1 || { echo "no GPU: nvidia-smi fails" >&2; exit 1; }
if compgen -G '.whl/*.whl' >/dev/null; then
    "$PYTHON" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
        .whl/*.whl || exit 1
fi
failed=() waiting=()
((${#asked[@]})) || asked=("${parts[@]}")
prefix='' flags=()
((rehearse)) && prefix=rehearse_ flags=(--rehearse)
((synthetic)) && flags+=(--synthetic)
for name in "${asked[@]}"; do
    began=$SECONDS
    timeout -k 30 "$((PART_SECONDS + 20))" bash bench/on_a_gpu.sh "$out" "${flags[@]}" --do "$prefix$name" >"$out/$name.log" 2>&1
    case $? in
        0) result=done ;;
        3) result='WAITS' waiting+=("$name") ;;
        75) result='GOES ON' waiting+=("$name") ;;
        124 | 137) result='TOO LONG' failed+=("$name") ;;
        *) result='FAILED' failed+=("$name") ;;
    esac
    printf '%-16s %-9s %4d s   %s\n' "$name" "$result" $((SECONDS - began)) "$(tail -n 1 "$out/$name.log" | cut -c1-110)"
done
((${#waiting[@]})) && echo "call these again: ${waiting[*]}"
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
