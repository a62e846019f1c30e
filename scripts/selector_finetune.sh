#!/usr/bin/env bash
# Distillation of the gains into the selector, with the published setting (fp16 needs a GPU; on a CPU it is float32).
#
#   PROCESSES=8 bash scripts/selector_finetune.sh                  $WORK/train.jsonl -> $SELECTOR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

if [ "$SELECTOR/trainer_state.json" -nt "$WORK/train.jsonl" ]; then # the weights are whole when this is there
  say "$SELECTOR is trained already; remove it to train again"
  exit 0
fi
say "training $SELECTOR from $SELECTOR_START"
cd "$REPO/gainRAG"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + PROCESSES - 1) / PROCESSES))}" # torchrun's own default is 1
# shellcheck disable=SC2086
torchrun --standalone --nproc_per_node "$PROCESSES" -m selector_finetune --model_name_or_path "$SELECTOR_START" \
  --train_data "$WORK/train.jsonl" --output_dir "$SELECTOR" --overwrite_output_dir \
  --resume_from_checkpoint True --train_group_size "$GROUP_SIZE" \
  --knowledge_distillation True --query_max_len "$QUERY_MAX_LEN" --passage_max_len "$PASSAGE_MAX_LEN" --pad_to_multiple_of 8 \
  --learning_rate "$LEARNING_RATE" --fp16 --num_train_epochs "$EPOCHS" --per_device_train_batch_size "$BATCH" \
  --gradient_accumulation_steps 1 --dataloader_drop_last True --warmup_ratio 0.1 --weight_decay 0.01 \
  --logging_steps 1 --save_steps 1000 $TRAINING_FLAGS
