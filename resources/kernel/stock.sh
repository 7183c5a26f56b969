#!/usr/bin/env bash
# Fetches Debian's stock 6.12 cloud kernel and prints the folder that holds it:
#   bzImage      as the package ships it
#   modules/     what a virtio-mmio guest needs, uncompressed (busybox insmod takes nothing else)
#   modules/load names in the order in which they must be loaded
#   version      the kernel's release
#
# A version is fetched once and then kept; with any version at hand a rerun asks nobody. EBB_STOCK_REFRESH=1 looks for a newer one.
set -euo pipefail
cache=${EBB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ebb}
wanted=(virtio_mmio virtio_blk virtio-rng virtio_net virtio_balloon)
PATH=$PATH:/usr/sbin:/sbin
say() { printf 'stock kernel: %s\n' "$*" >&2; }

newest_cached() { find "$cache" -maxdepth 1 -type d -name 'stock-6.12.*' | sort -V | tail -n 1; }
# Signed and unsigned packages hold the same kernel; the signed one is what a user of Debian runs.
newest_offered() {
  apt-cache pkgnames linux-image-6.12. | grep -E '^linux-image-6\.12\.[0-9]+.*-cloud-amd64(-unsigned)?$' | sort -V |
    awk '{ bare = $0; sub(/-unsigned$/, "", bare); if (bare != last || $0 == bare) pick = $0; last = bare } END { print pick }'
}

mkdir -p "$cache"
out=$(newest_cached)
if [ -n "$out" ] && [ -z "${EBB_STOCK_REFRESH:-}" ]; then echo "$out"; exit 0; fi
exec 9>"$cache/stock.lock"
flock 9
out=$(newest_cached)
if [ -n "$out" ] && [ -z "${EBB_STOCK_REFRESH:-}" ]; then echo "$out"; exit 0; fi

package=$(newest_offered || true)
[ -n "$package" ] || {
  say "no linux-image-6.12.*-cloud-amd64 package is known here: run 'apt-get update'; on Debian 12 it comes with bookworm-security, on Debian 13 with trixie"
  exit 1
}
version=$(apt-cache show --no-all-versions "$package" | sed -n 's/^Version: //p')
out=$cache/stock-${version//[^A-Za-z0-9.+~-]/_}
if [ -s "$out/version" ]; then echo "$out"; exit 0; fi

work=$(mktemp -d "$cache/stock-fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "fetching $package $version"
(cd "$work" && apt-get download -q "$package=$version" >fetch.log 2>&1) || {
  cat "$work/fetch.log" >&2
  say "could not fetch $package=$version: run 'apt-get update' and try again"
  exit 1
}
dpkg-deb -x "$work"/"${package}"_*.deb "$work/tree"

# The package brings no modules.dep (its installation makes it), and since Debian 13 modules live under usr/lib.
modules=$(find "$work/tree" -path '*lib/modules/*' -prune -type d | head -n 1)
release=$(basename "$modules")
root=${modules%/lib/modules/*}
depmod -b "$root" "$release"
mkdir -p "$work/out/modules"

declare -A done_modules=()
: >"$work/out/modules/load"
# Dependencies come first; modules.dep lists them nearest first, so it is walked from its end.
take() {
  local file=$1 name
  name=$(basename "$file")
  name=${name%%.ko*}
  [ -z "${done_modules[$name]:-}" ] || return 0
  done_modules[$name]=1
  case $file in
    *.xz) xz -dc "$modules/$file" >"$work/out/modules/$name.ko" ;;
    *.zst) zstd -qdc "$modules/$file" >"$work/out/modules/$name.ko" ;;
    *.gz) gzip -dc "$modules/$file" >"$work/out/modules/$name.ko" ;;
    *) cp "$modules/$file" "$work/out/modules/$name.ko" ;;
  esac
  echo "$name.ko" >>"$work/out/modules/load"
}
for want in "${wanted[@]}"; do
  line=$(grep -E "/${want}\.ko[^/:]*:" "$modules/modules.dep" || true)
  if [ -z "$line" ]; then
    grep -qE "/${want}\.ko$" "$modules/modules.builtin" || { say "$package has no module $want"; exit 1; }
    continue
  fi
  read -ra needs <<<"${line#*:}"
  for ((i = ${#needs[@]} - 1; i >= 0; i--)); do take "${needs[i]}"; done
  take "${line%%:*}"
done

cp "$(find "$work/tree/boot" -name 'vmlinuz-*')" "$work/out/bzImage"
echo "$release" >"$work/out/version"
rm -rf "$out"
mv "$work/out" "$out"
echo "$out"
