# Boots one guest to its end and reports how it went. Wants: EBB KERNEL INITRD LOGLEVEL CPUS MEMORY CMDLINE DO, and OPTIONS for more words to `ebb run`.
# shellcheck shell=sh disable=SC2154  # the variables come from the job
cd "$EBB_WORK" || fail "no $EBB_WORK"
dd if=/dev/urandom of=disk.img bs=1M count=4 2>/dev/null
truncate -s 8M second.img

step "booting"
begin=$(now_us)
# A guest that hangs is ended by a signal, so that what it said last is not lost.
# shellcheck disable=SC2086  # words
timeout 120 "$EBB" run --kernel "$KERNEL" --initrd "$INITRD" --cpus "$CPUS" --memory "$MEMORY" --disk disk.img --disk second.img,ro \
  --cmdline "console=ttyS0 loglevel=$LOGLEVEL panic=-1 $CMDLINE ebb.do=$DO" --console console.log $OPTIONS </dev/null 2>ebb.log
result status $?
result seconds "$(seconds_since "$begin")"
result stderr "$(tr '\n' '|' <ebb.log)"
cat ebb.log console.log >/dev/console
tr -d '\r' <console.log | grep '^GUEST ' | while read -r _ line; do echo "GUEST $line" >"$EBB_RESULTS"; done
grep -q 'Kernel panic' console.log && result panicked yes
true
