#!/usr/bin/env bash
# Builds the test kernel from Debian's linux-source-6.12 package and prints the folder that holds it (bzImage, vmlinux, config).
#
# The folder's name is a hash of everything that decides its contents (source version, ebb.config, this script, compiler), so that a rerun
# with nothing changed prints it at once, and a change of any of them builds beside the old one. A build that fails leaves nothing behind.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${EBB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ebb}
source_tar=/usr/src/linux-source-6.12.tar.xz
say() { printf 'kernel: %s\n' "$*" >&2; }

[ -r "$source_tar" ] || { say "$source_tar is missing: run resources/setup.sh, which installs linux-source-6.12"; exit 1; }
version=$(dpkg-query -W -f '${Version}' linux-source-6.12)
hash=$({ echo "$version"; gcc -dumpfullversion; cat "$here/ebb.config" "$here/build.sh"; } | sha256sum | cut -c1-16)
out=$cache/kernel-$hash
if [ -s "$out/bzImage" ] && [ -s "$out/vmlinux" ]; then echo "$out"; exit 0; fi

mkdir -p "$cache"
exec 9>"$cache/kernel.lock"
flock 9
if [ -s "$out/bzImage" ] && [ -s "$out/vmlinux" ]; then echo "$out"; exit 0; fi
work=$(mktemp -d "$cache/kernel-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
log=$cache/kernel-$hash.log
say "building Linux $version once (about 8 minutes on two cores); log: $log"
tar -C "$work" --strip-components=1 -xf "$source_tar"
{
  make -C "$work" tinyconfig
  "$work/scripts/kconfig/merge_config.sh" -m -O "$work" "$work/.config" "$here/ebb.config"
  make -C "$work" olddefconfig
} >"$log" 2>&1 || { say "configuration failed; see $log"; exit 1; }
refused=()
while IFS= read -r want; do
  case $want in
    CONFIG_*=n) ! grep -q "^${want%=n}=" "$work/.config" || refused+=("$want") ;;
    CONFIG_*) grep -qxF "$want" "$work/.config" || refused+=("$want") ;;
  esac
done <"$here/ebb.config"
[ ${#refused[@]} -eq 0 ] || { say "refused by the kernel's configuration, a dependency is missing in ebb.config: ${refused[*]}"; exit 1; }
(cd "$work" && KBUILD_BUILD_TIMESTAMP=@0 KBUILD_BUILD_USER=ebb KBUILD_BUILD_HOST=ebb make -j"$(nproc)" bzImage vmlinux) >>"$log" 2>&1 &
make_pid=$!
while kill -0 "$make_pid" 2>/dev/null; do
  sleep 10
  say "$(grep -cE '^  (CC|AS|AR|LD)' "$log" || true) objects built"
done
wait "$make_pid" || { say "build failed: $(grep -m1 -E 'error|Error' "$log" || true); see $log"; exit 1; }
mkdir -p "$work/out"
cp "$work/arch/x86/boot/bzImage" "$work/out/bzImage"
strip -g -o "$work/out/vmlinux" "$work/vmlinux"
cp "$work/.config" "$work/out/config"
rm -rf "$out"
mv "$work/out" "$out"
echo "$out"
