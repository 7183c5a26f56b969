# Functions for the scripts that drive `ebb` on a host, emulated or native. Plain POSIX shell, for busybox too.
# shellcheck shell=sh
#
# A script's reader gets whole lines:
#   EBB-STEP text            what happens now, for people
#   EBB-RESULT name=value    one measurement or observation; the value runs to the end of the line
#   EBB-FAIL text            why the script gives up
: "${EBB_RESULTS:?where results go}"

step() { echo "EBB-STEP $*" >"$EBB_RESULTS"; }
result() { echo "EBB-RESULT $1=$2" >"$EBB_RESULTS"; }
fail() {
  echo "EBB-FAIL $*" >"$EBB_RESULTS"
  exit 1
}

# Microseconds, to subtract from each other. What has busybox's or bash's variable is spared a process.
now_us() {
  # shellcheck disable=SC3028  # where it is not there, date is
  if [ -n "$EPOCHREALTIME" ]; then echo "$EPOCHREALTIME" | tr -d .; else date +%s%6N; fi
}
# seconds_since MICROSECONDS
seconds_since() { echo "scale=3; ($(now_us) - $1) / 1000000" | bc | sed 's/^\./0./'; }

# until_true SECONDS COMMAND...: asks again until the command succeeds; false when the time is up. Asking costs the emulated machine, whose one
# processor has other work, so it does not ask often, and starts no process of its own but the pause.
until_true() {
  read -r up _ </proc/uptime
  end=$((${up%.*} + $1))
  shift
  until "$@"; do
    read -r up _ </proc/uptime
    [ "${up%.*}" -lt "$end" ] || return 1
    sleep 0.3
  done
}

# until_line SECONDS FILE PATTERN: waits until a line of the file matches.
until_line() { until_true "$1" grep -q -e "$3" "$2"; }
