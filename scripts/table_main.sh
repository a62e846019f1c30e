#!/usr/bin/env bash
# The paper's main table: six question sets, no retrieval, standard RAG, rerank and GainRAG, beside our numbers.
#
#   bash scripts/table_main.sh                                        -> $WORK/table_main.json, table_main.md
#   DATASETS="NaturalQA_test" LIMIT=20 bash scripts/table_main.sh     a small run
#   source scripts/demo_paths.sh; bash scripts/table_main.sh          the demo's models and questions
source "$(dirname "${BASH_SOURCE[0]}")/tables_common.sh"

need_selector
need_retrieved
run_stages
write_table main table_main "$RUN/answers"
