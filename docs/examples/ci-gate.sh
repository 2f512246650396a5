#!/usr/bin/env bash
# Is a trained model good enough, and no worse than the one before it? Ends with exit code 10 where it is not.
#
#     MODEL=runs/mine BENCHES=mmmu,mmstar REQUIRE='mmmu>=40' BASELINE=baseline bash ci-gate.sh
set -euo pipefail

: "${MODEL:=demo/small}"     # a run folder, a checkpoint or a hub id
: "${BENCHES:=patterns}"     # each with its data on this machine
: "${LIMIT:=1000}"           # questions of each
: "${REQUIRE:=patterns>=25}"
: "${BASELINE:=baseline}"    # the --output folder of the model before, as it was written
: "${EVAL:=runs/eval}"       # kept from job to job: what was answered is not asked again

vlsi eval -m "$MODEL" -b "$BENCHES" --limit "$LIMIT" --output "$EVAL" --require "$REQUIRE"

if [ -e "$BASELINE/report.json" ]; then
    vlsi eval compare "$BASELINE" "$EVAL" --no-worse
else
    echo "no baseline in $BASELINE: keep $EVAL there, and the next model is held against this one" >&2
fi
