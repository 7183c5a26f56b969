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

# Seconds since this machine started, with two decimals; as the machine itself sees time.
uptime_s() { read -r up _ </proc/uptime && echo "$up"; }

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
