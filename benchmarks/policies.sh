#!/bin/sh
# Measure precisions and batching policies as `tightpack demo` shows them, and put the numbers into the README.
# Takes about two minutes on two cores; keep the machine otherwise idle.
# Any argument goes to `tightpack demo`, for example: benchmarks/policies.sh --num-threads 2
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
"$python" -m tightpack.cli.main demo --json "benchmarks/results/$(date -u +%Y-%m-%d)-policies.json" \
  --html "${TMPDIR:-/tmp}/tightpack-demo.html" "$@"
"$python" benchmarks/make_table.py
