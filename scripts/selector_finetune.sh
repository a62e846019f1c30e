#!/usr/bin/env bash
# Distillation of the gains into the selector, with the published setting: fp16, recomputation, DeepSpeed. A run that
# was interrupted resumes from its last checkpoint, a finished one does nothing, and other settings than those of the
# selector that is there are refused (OVERWRITE=1 trains it anew). Where the memory runs out, batches are halved. FAST=1
# has the fastest flags with the same loss, and wants a GPU with bfloat16; benchmarks/training.py times both.
#
#   GPUS=8 bash scripts/selector_finetune.sh                       $WORK/train.jsonl -> $SELECTOR
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

need_nothing "$@"
[ -e "$WORK/train.jsonl" ] || fail "$WORK/train.jsonl: no such file; scripts/llm_supervision.sh writes it"
need_even_batch
if [[ -n "$OVERWRITE" && -e "$SELECTOR/config.json" && ! -e "$SELECTOR/training.settings.json" ]]; then
  fail "$SELECTOR was not trained here, so OVERWRITE=1 does not replace it; name another folder: SELECTOR=FOLDER"
fi
say "training $SELECTOR from $SELECTOR_START, $BATCH groups an update"
launch=(torchrun --standalone --nproc_per_node "$PROCESSES")
if [ "$GPUS" -eq 0 ] && [ "$PROCESSES" -eq 1 ]; then launch=(python); fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + PROCESSES - 1) / PROCESSES))}" # torchrun's own default is 1
command=("${launch[@]}" -m gainRAG.selector_finetune --model_name_or_path "$SELECTOR_START"
  --train_data "$WORK/train.jsonl" --output_dir "$SELECTOR" --resume_from_checkpoint auto
  ${OVERWRITE:+--overwrite_output_dir} --train_group_size "$GROUP_SIZE"
  --knowledge_distillation True --query_max_len "$QUERY_MAX_LEN" --passage_max_len "$PASSAGE_MAX_LEN"
  --learning_rate "$LEARNING_RATE" --num_train_epochs "$EPOCHS" --per_device_train_batch_size $((BATCH / PROCESSES))
  --gradient_accumulation_steps 1 --dataloader_drop_last True --warmup_ratio 0.1 --weight_decay 0.01
  --save_steps 1000 "${SPEED_FLAGS[@]}" "${TRAINING_FLAGS[@]}")
batch_that_fits() { cat "$SELECTOR/training.batch.json" 2>/dev/null || true; } # of a training that ran out of memory
until known="$(batch_that_fits)" && "${command[@]}"; do
  code=$?
  [ "$(batch_that_fits)" != "$known" ] || exit "$code"
  say "the memory ran out: again, from the last checkpoint, with smaller batches and as many groups an update"
done
