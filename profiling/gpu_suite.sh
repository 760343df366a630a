#!/usr/bin/env bash
# One command for a bare machine with an NVIDIA GPU and this repository. No network is used.
#
#   profiling/gpu_suite.sh OUT [BUNDLE] [--dry-run] [--wheels DIR]
#
# BUNDLE is the shipped editor where none is named. Parts are independent, bounded in time and
# ordered by value; each leaves OUT/PART.json (a record) or OUT/PART.failed.txt, and OUT/summary.txt
# comes last. With --wheels, packages are installed from DIR into OUT/wheels, ahead of what the
# machine's python3 already has. --dry-run runs every part at toy size on the CPU.
set -uo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
out='' bundle='' dry='' wheels=''
while [ $# -gt 0 ]; do
    case "$1" in
        --dry-run) dry=--dry-run ;;
        --wheels) wheels=${2:?--wheels needs a folder}; shift ;;
        -*) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
        *) if [ -z "$out" ]; then out=$1; else bundle=$1; fi ;;
    esac
    shift
done
if [ -z "$out" ]; then
    echo "usage: $0 OUT [BUNDLE] [--dry-run] [--wheels DIR]" >&2
    exit 2
fi
bundle=$(cd "${bundle:-$repository/runtime/assets/tiny}" && pwd -P) || exit 2
mkdir -p "$out"
out=$(cd "$out" && pwd)

python=${PYTHON:-python3}
if [ -n "$wheels" ]; then
    # No virtual environment: made from another one, it would not see that one's packages.
    # Wheel by wheel: one that does not fit this machine must not cost the others.
    for wheel in "$wheels"/*.whl; do
        folder=$out/wheels/$(basename "$wheel" .whl)
        if "$python" -m pip install --quiet --no-index --no-deps --target "$folder" "$wheel"; then
            PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH}
        else
            echo "not installed: $(basename "$wheel")"
        fi
    done
fi
export PYTHONPATH="$repository/src${PYTHONPATH:+:$PYTHONPATH}"
# A cache of another run may hold code compiled from another version of the network.
export TORCHINDUCTOR_CACHE_DIR="$out/inductor"
# A part that is stopped leaves gigabytes behind.
TMPDIR=$(mktemp -d) && export TMPDIR || exit 1
trap 'rm -rf "$TMPDIR"' EXIT
if ! command -v make > /dev/null && command -v ninja > /dev/null; then
    export CMAKE_GENERATOR=Ninja
fi
cd "$repository" || exit 1

if [ -z "$dry" ]; then
    nvidia-smi > "$out/nvidia-smi.txt" 2>&1 || { echo "no NVIDIA driver here; try --dry-run" >&2; exit 1; }
    export LIVEEDIT_REQUIRE_GPU=1
    if command -v cmake > /dev/null && command -v nvcc > /dev/null; then
        (cmake -S . -B "$out/build" -DCMAKE_BUILD_TYPE=Release -DLIVEEDIT_PLUGINS=ON \
            -DCMAKE_CUDA_ARCHITECTURES=native \
            && cmake --build "$out/build" -j"$(nproc)" \
            && cmake --install "$out/build" --prefix "$repository/src") > "$out/build.txt" 2>&1 \
            && export LIVEEDIT_LIBRARIES="$out/build" \
            || echo "kernels were not built; see $out/build.txt"
    fi
elif [ -z "${LIVEEDIT_LIBRARIES:-}" ] && command -v cmake > /dev/null; then
    # The kernels' twins, so that a dry run calls them too.
    (cmake -S . -B "$out/build" -DLIVEEDIT_PLUGINS=OFF && cmake --build "$out/build") \
        > "$out/build.txt" 2>&1 \
        && export LIVEEDIT_LIBRARIES="$out/build" \
        || echo "host kernels were not built; see $out/build.txt"
fi
if [ -z "$dry" ]; then
    # Plans for this GPU, in a copy: the bundle stays as it is.
    cp -rT "$bundle" "$out/bundle" || exit 1
    bundle=$out/bundle
    for flavour in tensorrt tensorrt-rtx; do
        timeout --kill-after=10 600 "$python" -m liveedit build "$bundle" --flavour "$flavour" \
            > "$out/plans-$flavour.txt" 2>&1 \
            || echo "no $flavour plans: $(tail -n 1 "$out/plans-$flavour.txt")"
    done
fi

failed=0
while read -r part limit; do
    echo "== $part (at most $limit s)"
    rm -f "$out/$part.json" "$out/$part.failed.txt"  # of an earlier run
    arguments=(run "$part" --out "$out" --bundle "$bundle")
    [ -n "$dry" ] && arguments+=("$dry")
    begin=$SECONDS
    if timeout --kill-after=10 "$limit" "$python" -m liveedit.profiling.gpu_parts \
        "${arguments[@]}" < /dev/null > "$out/$part.txt" 2>&1; then
        echo "   done in $((SECONDS - begin)) s"
    else
        status=$?
        { echo "exit status $status after $((SECONDS - begin)) s"; tail -n 20 "$out/$part.txt"; } \
            > "$out/$part.failed.txt"
        echo "   FAILED with status $status; see $part.failed.txt"
        failed=$((failed + 1))
    fi
    find "$TMPDIR" -mindepth 1 -delete
done < <("$python" -m liveedit.profiling.gpu_parts list)

"$python" -m liveedit.profiling.gpu_parts summary --out "$out" | tee "$out/summary.txt"
echo "$failed parts failed"
[ "$failed" -eq 0 ]
