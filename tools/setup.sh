#!/usr/bin/env bash
# Installs the missing build dependencies of Sluice; can be run repeatedly. `make setup` calls it.
#
# Tested on Debian 12, as root: all tools are Debian's packages, except bpf-linker from crates.io.
# On other systems it uses rustup and lists what is missing (untested).
set -euo pipefail

linker_version=0.13.0
tools=${XDG_CACHE_HOME:-$HOME/.cache}/sluice
start=$SECONDS

. "$(dirname "$0")/packages.sh"

# Prints the compiler for the BPF target: one with a compiled `core` in its sysroot.
bpf_rustc() {
    local rustc sysroot
    for rustc in "${SLUICE_BPF_RUSTC:-}" /usr/bin/rustc rustc; do
        [ -n "$rustc" ] || continue
        command -v "$rustc" >/dev/null 2>&1 || continue
        sysroot=$("$rustc" --print sysroot 2>/dev/null) || continue
        compgen -G "$sysroot/lib/rustlib/bpfel-unknown-none/lib/libcore-*" >/dev/null || continue
        echo "$rustc"
        return
    done
    return 1
}

has_nightly() {
    local sysroot
    sysroot=$(rustup run nightly rustc --print sysroot 2>/dev/null) &&
        [ -d "$sysroot/lib/rustlib/src/rust/library/core" ]
}

llvm_of() { "$@" -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p'; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT

echo "setup: build dependencies of Sluice"
. /etc/os-release
if [ "${ID:-}" = debian ] && [ "${VERSION_ID:-0}" -ge 12 ]; then
    packages=(gcc libc6-dev make iproute2 ca-certificates)
    bpf_rustc >/dev/null || has_nightly || packages+=(rustc-web libstd-rust-web-dev-bpf)
    command -v cargo >/dev/null || packages+=(cargo-web rust-web-clippy rustfmt-web)
    install_packages "$log" "${packages[@]}"
else
    report note "${PRETTY_NAME:-not Debian}: using rustup (untested)"
    command -v cargo >/dev/null || fail "cargo is missing: install rustup (https://rustup.rs)"
    bpf_rustc >/dev/null || has_nightly ||
        fail "no compiler for the BPF target: rustup toolchain install nightly --component rust-src"
fi

if rustc=$(bpf_rustc); then
    report use "$("$rustc" --version) at $(command -v "$rustc"), with core for the BPF target"
    llvm=$(llvm_of "$rustc")
else
    report use "rustup's nightly, building core from source: $(rustup run nightly rustc --version)"
    llvm=$(llvm_of rustup run nightly rustc)
fi
report use "$(cargo --version) at $(command -v cargo), for all other targets"

prefix=$tools/bpf-linker-$linker_version-llvm$llvm
if [ -x "$prefix/bin/bpf-linker" ]; then
    report present "bpf-linker $linker_version for LLVM $llvm in $prefix"
elif [ "${ID:-}" = debian ]; then
    install_packages "$log" "llvm-$llvm-dev" "libpolly-$llvm-dev" g++ zlib1g-dev libzstd-dev \
        libxml2-dev
    report build "bpf-linker $linker_version for LLVM $llvm (one to three minutes)"
    LLVM_PREFIX=/usr/lib/llvm-$llvm cargo install bpf-linker --quiet --locked \
        --version "$linker_version" --no-default-features --features "llvm-$llvm" --root "$prefix" \
        >"$log" 2>&1 || { cat "$log" >&2; fail "building bpf-linker failed; see above"; }
elif command -v bpf-linker >/dev/null; then
    report present "$(bpf-linker --version) at $(command -v bpf-linker)"
else
    fail "bpf-linker is missing: cargo install bpf-linker"
fi
echo "setup: ready after $((SECONDS - start)) s"
