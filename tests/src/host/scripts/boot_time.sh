# The same boot again and again, with tiering and without it in turn. Wants: EBB KERNEL INITRD LOGLEVEL TIMES.
# shellcheck shell=sh disable=SC2154  # the variables come from the job
cd "$EBB_WORK" || fail "no $EBB_WORK"
boot() {
  tracker=$1
  shift
  : >console.log
  begin=$(uptime_s)
  "$EBB" run --kernel "$KERNEL" --initrd "$INITRD" --cpus 1 --memory 256M --tracker "$tracker" "$@" --console console.log \
    --cmdline "console=ttyS0 loglevel=$LOGLEVEL panic=-1 ebb.do=poweroff" </dev/null 2>ebb.log || { cat ebb.log console.log >/dev/console; fail "$tracker: ebb failed"; }
  end=$(uptime_s)
  echo "GUEST $tracker $(echo "$end - $begin" | bc) $(sed -n 's/^GUEST up=\([0-9.]*\).*/\1/p' console.log)" >"$EBB_RESULTS"
}
# The first boot of each kind reads files and fills caches.
for time in $(seq 0 "$TIMES"); do
  step "boot $time"
  boot off
  boot unmap --swap swap,size=64M
done
