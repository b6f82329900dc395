#!/usr/bin/env bash
# The wheels of bench/gpu-wheels.txt, for Python 3.12 on Linux, into .whl/ (or FOLDER): `bench/fetch_wheels.sh [FOLDER]`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-.whl}
most=$((60 << 20)) # bytes that travel with the working tree
rm -rf "$folder"
"${PYTHON:-python3}" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --dest "$folder" \
    --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 -r bench/gpu-wheels.txt
size=$(cat "$folder"/*.whl | wc -c)
((size <= most)) || { echo "the wheels have $size bytes, more than $most: they cannot be carried" >&2; exit 1; }
echo "$folder: $(ls "$folder" | wc -l) wheels, $size bytes"
