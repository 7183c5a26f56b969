# The main job: a guest fills memory, is left alone, its cold memory leaves, and every byte is verified when it comes back, with a disk at work.
# Wants: EBB KERNEL INITRD LOGLEVEL CPUS MEMORY_MIB SWAP_MIB PERCENT SEED ROUNDS.
# shellcheck shell=sh disable=SC2154  # the variables come from the job
cd "$EBB_WORK" || fail "no $EBB_WORK"
ctl() { "$EBB" ctl --sock api.sock "$@" --json; }
say() { echo "$*" >&3; }
# lines PATTERN COUNT: whether the console has that many such lines by now.
lines() { [ "$(grep -c -e "$1" console.log)" -ge "$2" ]; }
alive() { kill -0 "$ebb" 2>/dev/null; }
give_up() {
  sed 's/^/ebb: /' ebb.log >&2
  tail -n 30 console.log | sed 's/^/guest: /' >&2
  kill -9 "$ebb" 2>/dev/null
  fail "$*$(alive || echo '; ebb has ended')"
}
answered() { until_true "$3" lines "$1" "$2" || give_up "the guest did not say $1 within $3 s"; }
last_line() { tr -d '\r' <console.log | grep -e "$1" | tail -n 1; }
# The kernel's own count of what guest memory holds on this host: the blocks of the memory files, each once however many descriptors it has.
held_pages() {
  for fd in /proc/"$ebb"/fd/*; do
    case $(readlink "$fd") in /memfd:*) stat -L -c '%i %b' "$fd" ;; esac
  done | awk '!seen[$1]++ { sum += $2 / 8 } END { print sum + 0 }'
}
status() {
  ctl status >status.json || give_up "no status"
  result "$1" "$(tr -d '\n' <status.json)"
  result "$1.held" "$(held_pages)"
}

truncate -s 64M disk.img
mkfifo input
step "guest boots"
begin=$(now_us)
"$EBB" run --kernel "$KERNEL" --initrd "$INITRD" --cpus "$CPUS" --memory "${MEMORY_MIB}M" --disk disk.img \
  --swap "swap,size=${SWAP_MIB}M" --tracker unmap --api-sock api.sock --console stdio \
  --cmdline "console=ttyS0 loglevel=$LOGLEVEL panic=-1 ebb.do=probe,work:seed:$SEED+fill:$PERCENT+console" <input >console.log 2>ebb.log &
ebb=$!
exec 3>input
# Writing to a guest that has ended is an error to notice, not the end of this script.
trap '' PIPE
answered '^GUEST up=' 1 120
result boot_s "$(seconds_since "$begin")"
step "guest fills $PERCENT % of its memory"
answered '^READY' 1 300
result filled "$(last_line '^FILLED')"
status before

for round in $(seq "$ROUNDS"); do
  step "scan: the guest is left alone"
  ctl scan --loops 2 --sleep 300ms --wait >scan.json 2>/dev/null || give_up "scan failed"
  result "scan.$round" "$(tr -d '\n' <scan.json)"
  step "cold memory leaves, the guest's disk at work"
  say "disk:/dev/vda:1"
  answered '^DISK started' "$round" 60
  ctl reclaim --min-idle-scans 1 >reclaim.json || give_up "reclaim failed"
  result "reclaim.$round" "$(tr -d '\n' <reclaim.json)"
  status "after.$round"
  step "every byte is verified"
  say verify
  answered '^VERIFIED' "$round" 600
  result "verified.$round" "$(last_line '^VERIFIED')"
  say disk-stop
  answered '^DISK passes' "$round" 300
  result "disk.$round" "$(last_line '^DISK passes')"
  status "back.$round"
  [ "$round" -eq "$ROUNDS" ] || { say "rewrite:3"; answered '^REWRITTEN' "$round" 300; }
done
step "guest ends"
say end
exec 3>&-
wait "$ebb"
result status $?
result work_status "$(last_line '^GUEST work_status=' | sed 's/.*=//')"
sed 's/^/ebb: /' ebb.log >&2
tail -n 30 console.log | sed 's/^/guest: /' >&2
