# The page_idle tracker against the truth, on memory of a program of ours. Wants: TOOL ROUNDS PAGES SEED.
# shellcheck shell=sh disable=SC2154  # the variables come from the job
cd "$EBB_WORK" || fail "no $EBB_WORK"
echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled
step "tracking"
"$TOOL" --rounds "$ROUNDS" --pages "$PAGES" --seed "$SEED" >told 2>errors
status=$?
while IFS='=' read -r name value; do result "$name" "$value"; done <told
[ "$status" -eq 0 ] || fail "the program ended with $status: $(cat errors)"
