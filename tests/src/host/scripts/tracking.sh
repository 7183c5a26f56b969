# Trackers on this host: accuracy and cost, as rows of a report.
# Wants: TRACKING ROUNDS MEMORY.
# shellcheck shell=sh disable=SC2154  # the variables come from the job
step "measuring"
rows=$("$TRACKING" --emulated --rounds "$ROUNDS" --memory "$MEMORY" 2>"$EBB_WORK/errors") || fail "ebb-tracking: $(tr '\n' ' ' <"$EBB_WORK/errors")"
result rows "$rows"
