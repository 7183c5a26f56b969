# The same boot again and again, with tiering and without it in turn; each is a step. Wants: EBB KERNEL INITRD LOGLEVEL TIMES.
# shellcheck shell=sh disable=SC2154  # the variables come from the job
cd "$EBB_WORK" || fail "no $EBB_WORK"
boot() {
  tracker=$1
  shift
  step "$tracker $time"
  timeout 120 "$EBB" run --kernel "$KERNEL" --initrd "$INITRD" --cpus 1 --memory 256M --tracker "$tracker" "$@" --console console.log \
    --cmdline "console=ttyS0 loglevel=$LOGLEVEL panic=-1 ebb.do=poweroff" </dev/null 2>ebb.log || { cat ebb.log console.log >/dev/console; fail "$tracker: ebb failed"; }
}
for time in $(seq 0 "$TIMES"); do
  boot off
  boot unmap --swap swap,size=64M
done
step "done"
