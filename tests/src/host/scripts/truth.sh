# A guest touches known sets of its memory, and each tracker's idle bitmap is held against what it touched.
# Wants: EBB HTTP TRUTH KERNEL INITRD LOGLEVEL MEMORY_MIB PAGES DISK_BYTES TRACKERS ROUNDS.
# shellcheck shell=sh disable=SC2154  # the variables come from the job
cd "$EBB_WORK" || fail "no $EBB_WORK"
give_up() {
  sed 's/^/ebb: /' ebb.log >&2
  tail -n 30 console.log | sed 's/^/guest: /' >&2
  kill -9 "$ebb" 2>/dev/null
  fail "$*"
}

first=${TRACKERS%% *}
truncate -s "$DISK_BYTES" disk.img
mkfifo input
step "guest boots and touches its arena"
"$EBB" run --kernel "$KERNEL" --initrd "$INITRD" --cpus 1 --memory "${MEMORY_MIB}M" --disk disk.img --tracker "$first" --api-sock api.sock \
  --console stdio --cmdline "console=ttyS0 loglevel=$LOGLEVEL panic=-1 ebb.do=work:arena:$PAGES:/dev/vda+console" <input >console.log 2>ebb.log &
ebb=$!
exec 3>input
# Writing to a guest that has ended is an error to notice, not the end of this script.
trap '' PIPE
until_line 120 console.log '^READY' || give_up "the guest has no arena"
result arena "$(tr -d '\r' <console.log | grep '^ARENA')"

for tracker in $TRACKERS; do
  step "$tracker"
  [ "$tracker" = "$first" ] || "$HTTP" api.sock PUT /memtier/tracker "{\"tracker\":\"$tracker\"}" >answer 2>&1 || give_up "$tracker: $(tr '\n' ' ' <answer)"
  "$HTTP" api.sock GET /memtier | grep -q "\"tracker\":\"$tracker\"" || give_up "$tracker is not the tracker in use"
  # It writes its results itself, and says itself why it gives up.
  "$TRUTH" api.sock disk.img input "$tracker" "$ROUNDS" >"$EBB_RESULTS" || give_up "$tracker: no results"
done
step "guest ends"
echo end >&3
exec 3>&-
wait "$ebb" || give_up "ebb ended with status $?"
grep -q '^GUEST work_status=0' console.log || give_up "the guest's program did not end well"
