#!/usr/bin/env bash
# Does this recipe still train, with these data and these packages? Minutes on a CPU; nothing is downloaded.
# Ends at the first thing that does not hold, with its exit code.
#
#     RECIPE=recipes/mine.yaml DATA=tests/sample.jsonl DEVICE=a100-80 bash ci-smoke.sh
set -euo pipefail

: "${RECIPE:=demo}"          # a shipped recipe, or a file of your own
: "${DATA:=patterns}"        # some hundred records like those you train on, kept beside the recipe
: "${READER:=demo/small}"    # whose tokenizer counts them; of a real student its small files are enough
: "${DEVICE:=24GiB}"         # what the real run is to fit
: "${OUT:=runs/ci}"

export HF_HUB_OFFLINE=1      # what is not here is an error, not a download

# The recipe is valid, every record can be used, and the whole run fits the device that it is meant for.
vlsi recipes check "$RECIPE"
vlsi data check --recipe "$RECIPE" --data "$DATA" --model "$READER" --limit 200 --strict \
    --set evaluation.data=null --set watch.samples=0
vlsi plan --recipe "$RECIPE" --data "$DATA" --device "$DEVICE" --strict

# The demo pair in place of the recipe's models: two steps of each stage, and a student that was saved and loaded again.
# The last three lines set back what only the real machine has. Settings of a stage that the recipe leaves out
# (interaction: null) would bring it back: leave those lines out too.
vlsi distill --recipe "$RECIPE" --teacher demo/large --student demo/small --data "$DATA" --output "$OUT" --overwrite \
    --set verbalization.steps=2 --set verbalization.epochs=null \
    --set verbalization.batch_size=2 --set verbalization.gradient_accumulation=1 \
    --set interaction.steps=2 --set interaction.epochs=null \
    --set interaction.batch_size=2 --set interaction.gradient_accumulation=1 \
    --set reinforcement.steps=2 --set reinforcement.epochs=null \
    --set reinforcement.batch_size=2 --set reinforcement.gradient_accumulation=1 \
    --device auto --set teacher.placement=device --set teacher.quantization=none \
    --set teacher.cache=null --set teacher.verbalizers=null \
    --set evaluation.data=null --set watch.samples=0 --set 'watch.report_to=[]'
