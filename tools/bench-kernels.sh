#!/usr/bin/env bash
# Counts the instructions that a kernel takes to forward a packet, with Sluice and with what else forwards packets, and those of the
# balancer's programs; `make bench-kernels` calls it, as root.
#
#   KERNELS  series of Debian's kernels (default "6.1 6.12"); Linux 5.18 or later, since packets are made by live runs
#   PACKETS  packets of each figure (default 50000)
#   DOCUMENT the page that figures are written into (default docs/benchmarks.md), where it has a place for a kernel's; empty: none
#
# The virtual machines have one CPU and a clock that QEMU drives by the instructions executed, so figures repeat within some tenths of a
# percent whatever else the host does. Logs are kept in target/bench-kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/packages.sh

KERNELS=${KERNELS:-6.1 6.12}
document=${DOCUMENT-docs/benchmarks.md}
target=$(realpath "${CARGO_TARGET_DIR:-target}")
results=$target/bench-kernels
mkdir -p "$results"
start=$SECONDS

[ "$(id -u)" = 0 ] || fail "the virtual machines see this machine's root file system, which takes root to share: run it as root"
echo "bench-kernels: what the virtual machines need"
install_packages "$results/apt.log" busybox-static kmod iproute2 xz-utils zstd ethtool ipvsadm
QEMU_ROOT=$(tools/kernels/qemu.sh)
export QEMU_ROOT

# Copies: a build meanwhile must not change what runs.
for binary in sluice sluice-bench; do
    [ -x "$target/release/$binary" ] || fail "$target/release/$binary is not built; run \`make build\`"
    cp -f "$target/release/$binary" "$results/$binary"
done

# run KERNEL VERB ARGUMENT...: sluice-bench in a virtual machine; what it says is shown and kept.
run() {
    local kernel=$1
    shift
    SHARE="$results $HOME" TIMEOUT=${TIMEOUT:-3600} CONSOLE=$results/console CPUS=1 ACCEL=tcg,thread=single \
        QEMU_OPTIONS="-icount shift=0,sleep=off" nice -n 10 tools/kernels/vm.sh "$kernel" "$results/sluice-bench" "$@" |
        sed -u 's/\r$//' | tee "$results/output"
}

kernel=
for series in $KERNELS; do
    status=0
    found=$(tools/kernels/kernel.sh "$series") || status=$?
    if [ $status = 3 ]; then
        echo "bench-kernels: $series: skipped, the archive has no such kernel"
        continue
    fi
    [ $status = 0 ] || fail "the kernel $series cannot be fetched"
    kernel=$found
    version=${kernel##*/}
    version=${version%-cloud-amd64}
    echo "bench-kernels: Linux $version, instructions to forward a packet"
    run "$kernel" forwarding --sluice "$results/sluice" --packets "${PACKETS:-50000}"
    "$results/sluice-bench" figures --kernel "$version" ${document:+--document "$document"} "$results/output"
done
[ -n "$kernel" ] || fail "the archive has none of these kernels: $KERNELS"
# The programs by themselves on the last one: their own code is the same everywhere.
echo "bench-kernels: Linux $version, instructions of the programs"
run "$kernel" program --counted
"$results/sluice-bench" figures --kernel "$version" ${document:+--document "$document"} "$results/output"
echo "bench-kernels: done after $((SECONDS - start)) s"
