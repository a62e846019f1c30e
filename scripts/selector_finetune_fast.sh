#!/usr/bin/env bash
# The same training with the fastest setting that has the same loss: bfloat16, nothing computed twice, compiled,
# questions of like length together. Needs a GPU with bfloat16 (Ampere or newer); benchmarks/training.py times both.
#
#   GPUS=8 bash scripts/selector_finetune_fast.sh                  $WORK/train.jsonl -> $SELECTOR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

SPEED_FLAGS=(--bf16 --tf32 True --torch_compile --train_sampling_strategy group_by_length --pad_to_multiple_of 32
  --logging_steps 50 --dataloader_num_workers 4)
script selector_finetune "$@"
