#!/usr/bin/env bash
# The paper's main table with our numbers beside it: six question sets; no retrieval, standard RAG, rerank and GainRAG.
#
#   bash scripts/table_main.sh                                        -> $WORK/table_main.json, table_main.md
#   DATASETS="NaturalQA_test" LIMIT=20 bash scripts/table_main.sh     a small run
#   CONFIG=scripts/demo.conf bash scripts/table_main.sh               the demo's models and questions
source "$(dirname "${BASH_SOURCE[0]}")/tables_common.sh"

need_selector
read -r -a sets <<<"$DATASETS"
need_retrieved "${sets[@]}"
select_all
answer_all
write_table main table_main "$RUN/answers"
