#!/usr/bin/env bash
# Installs what `make demo` and `make test` need on Debian. Safe to run again: with nothing missing it only looks, and takes no time.
#
# Packages come through apt-get (with sudo unless root). Rust: a cargo that is new enough is left alone; else Debian's rustup package.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

packages=(
  build-essential flex bison bc libelf-dev libssl-dev linux-source-6.12
  qemu-system-x86 busybox-static cpio lz4 zstd xz-utils kmod e2fsprogs
  ca-certificates curl
)

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  die "this is not Debian: install the counterparts of these packages by hand: ${packages[*]}"
fi

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "not root, and sudo is missing; run as root: $*"
  fi
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
offered() { apt-cache show "$1" >/dev/null 2>&1; }

install_missing() {
  local missing=() package
  for package in "$@"; do installed "$package" || missing+=("$package"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  as_root apt-get update -qq || say "apt-get update failed; going on with the package lists at hand"
  for package in "${missing[@]}"; do
    offered "$package" && continue
    [ "$package" != linux-source-6.12 ] ||
      die "no package linux-source-6.12: on Debian 12 it comes with bookworm-security (or bookworm-backports), on Debian 13 with trixie; add that source and run again"
    die "no package $package in the sources of apt; add Debian's main section and run again"
  done
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 ||
    die "apt-get could not install ${missing[*]}"
}

# at_least 1.90 1.95.0: whether the second version is the first or newer.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }
rust_version() { cargo --version 2>/dev/null | cut -d' ' -f2; }

set_up_rust() {
  local need have
  need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/../Cargo.toml")
  PATH=$PATH:$HOME/.cargo/bin
  have=$(rust_version || true)
  if [ -n "$have" ] && at_least "$need" "$have"; then return 0; fi
  if ! command -v rustup >/dev/null; then
    offered rustup || die "Rust $need or newer is needed (found: ${have:-none}), and this Debian has no rustup package: install Rust with rustup, then run again"
    install_missing rustup
  fi
  say "installing the stable Rust toolchain (need $need, found ${have:-none})"
  rustup toolchain install stable --profile minimal --component clippy --component rustfmt >&2 || die "rustup could not install the stable toolchain"
  rustup default stable >&2
  have=$(rust_version || true)
  if [ -z "$have" ] || ! at_least "$need" "$have"; then
    die "cargo on the PATH is ${have:-none}, $need or newer is needed: put rustup's cargo first on the PATH"
  fi
}

install_missing "${packages[@]}"
set_up_rust
