# A guest that does nothing is ended from outside. Wants: EBB HTTP KERNEL INITRD LOGLEVEL WAY, where WAY is ctrl-alt-del, kill or term.
# shellcheck shell=sh disable=SC2154  # the variables come from the job
cd "$EBB_WORK" || fail "no $EBB_WORK"
start() {
  : >console.log
  "$EBB" run --kernel "$KERNEL" --initrd "$INITRD" --cpus 2 --memory 256M --swap swap,size=64M --api-sock api.sock --console console.log \
    --cmdline "console=ttyS0 loglevel=$LOGLEVEL panic=-1 ebb.do=idle" </dev/null 2>ebb.log &
  ebb=$!
  until_line 120 console.log '^GUEST idle' || { cat ebb.log console.log >/dev/console; fail "the guest did not come up"; }
}
http() { "$HTTP" api.sock "$@"; }
gone() { ! kill -0 "$ebb" 2>/dev/null; }

step "guest boots"
start
result answer "$(http GET /)"
step "$WAY"
case $WAY in
  ctrl-alt-del) http PUT /actions '{"action_type":"SendCtrlAltDel"}' || fail "refused" ;;
  kill) kill -9 "$ebb" ;;
  term) kill -TERM "$ebb" ;;
esac
until_true 60 gone || { cat ebb.log console.log >/dev/console; fail "ebb still runs"; }
wait "$ebb"
result status $?
result stderr "$(tr '\n' '|' <ebb.log)"
[ -e api.sock ] && result socket_left yes
result processes_left "$(pidof EBB | wc -w)"

if [ "$WAY" = kill ]; then
  step "the next one starts over what was left"
  start
  http GET / >/dev/null || fail "the second one does not answer"
  http PUT /actions '{"action_type":"SendCtrlAltDel"}' || fail "the second one refuses"
  wait "$ebb"
  result second_status $?
fi
true
