#!/usr/bin/env bash
# vm.sh KERNEL COMMAND...: boots the kernel in directory KERNEL (see kernel.sh) in a virtual machine
# and runs COMMAND there, as root and in this directory. The command's output is this script's, and
# so is its exit status; 124: TIMEOUT ran out; 125: the machine died, and the end of its console is
# shown. Needs root.
#
# The machine sees this machine's root file system read-only; what it writes goes to its memory and
# is gone with it. It has no network but loopback. QEMU always emulates (TCG): a /dev/kvm may be
# there and not work for stock kernels, and emulation is the same everywhere. It is some ten times
# slower.
#
# Environment: TIMEOUT seconds (600), CPUS (2), MEMORY in MiB (1536), CONSOLE a file for the
# kernel's messages, ACCEL (tcg,thread=multi), QEMU_ROOT the root of QEMU's packages (see qemu.sh;
# this machine's), QEMU_OPTIONS more options for QEMU, SHARE more paths that are file systems of
# their own and must be seen.
set -euo pipefail

kernel=$(realpath "$1")
shift
version=${kernel##*/}
memory=${MEMORY:-1536}

work=$(mktemp -d)
server=
# shellcheck disable=SC2317  # called by the trap
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
console=${CONSOLE:-$work/console}

# 1. The first root: busybox, the modules that reach the shared root, and an init that switches to
#    it.
mkdir -p "$work"/first/{bin,dev,lower,new,proc,rw,sys} "$work/root"
cp "$(command -v busybox)" "$work/first/bin/busybox"
number=100
for module in virtio_pci virtiofs overlay; do
    modprobe -d "$kernel" -S "$version" --show-depends "$module" 2>/dev/null
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
    number=$((number + 1))
    case $file in
        *.xz) xz -dc "$file" ;;
        *.zst) zstd -qdc "$file" ;;
        *) cat "$file" ;;
    esac >"$work/first/$number.ko"
done
cat >"$work/first/init" <<'END'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t devtmpfs dev /dev
for module in /*.ko; do $b insmod $module; done
$b mount -t virtiofs -o ro root /lower && $b mount -t tmpfs rw /rw && $b mkdir /rw/upper /rw/work &&
$b mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work root /new &&
$b cp /second /new/.second && $b umount /proc /dev && exec $b switch_root /new /bin/bash /.second
END
chmod +x "$work/first/init"

# 2. What runs on the shared root: the rest of a boot, the command, its exit status on the console.
#    Modules that Sluice's users' hosts have or load on demand are left to be loaded on demand.
cat >"$work/first/second" <<END
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm /lib/modules; mount -t devpts pts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t bpf bpf /sys/fs/bpf; mount -t cgroup2 cgroup /sys/fs/cgroup
ln -sfn $(printf %q "$kernel/lib/modules/$version") /lib/modules/$version
ip link set lo up; hostname vm
stty -F /dev/ttyS1 -opost 2>/dev/null
export HOME=$(printf %q "$HOME") PATH=$(printf %q "$PATH") LANG=C.UTF-8
cd $(printf %q "$PWD")
$(printf '%q ' "$@") >/dev/ttyS1 2>&1 </dev/null
status=\$?
sleep 0.2; echo "exit status \$status" >/dev/ttyS0; /bin/busybox poweroff -f
END
(cd "$work/first" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd"

# 3. The server of the shared root: this root, read-only, without what is mounted below it. A
#    directory of ours that lies on a file system of its own is mounted once more.
qemu=${QEMU_ROOT:-}
for program in "$qemu"/usr/lib/qemu/virtiofsd "$qemu"/usr/libexec/virtiofsd; do
    [ ! -x "$program" ] || virtiofsd=$program
done
[ -n "${virtiofsd:-}" ] || { echo "vm: error: there is no virtiofsd; install qemu-system-common or virtiofsd" >&2; exit 1; }
# A copy brings libraries along.
own=()
[ -z "$qemu" ] || own=(env "LD_LIBRARY_PATH=$qemu/usr/lib/x86_64-linux-gnu")
# shellcheck disable=SC2016,SC2086  # the inner shell expands these; several paths
"${own[@]}" unshare -m bash -c '
    root=$1 socket=$2 virtiofsd=$3
    shift 3
    mount --make-rprivate / && mount --bind / "$root" || exit
    for path in "$@"; do
        [ "$(stat -c %d "$path")" = "$(stat -c %d /)" ] || mount --bind "$path" "$root$path" || exit
    done
    mount -o remount,bind,ro "$root" &&
        exec "$virtiofsd" -f --socket-path="$socket" -o source="$root",cache=always,log_level=err
' server "$work/root" "$work/socket" "$virtiofsd" "$PWD" "$kernel" ${SHARE:-} 2>"$work/server.log" &
server=$!
for _ in $(seq 200); do
    [ ! -S "$work/socket" ] || break
    sleep 0.05
done
[ -S "$work/socket" ] || { cat "$work/server.log" >&2; echo "vm: error: the root file system cannot be shared" >&2; exit 1; }

# 4. The machine: console to a file, the command's output to ours.
status=0
# shellcheck disable=SC2086  # several options
"${own[@]}" timeout --foreground -k 5 "${TIMEOUT:-600}" "$qemu/usr/bin/qemu-system-x86_64" -accel "${ACCEL:-tcg,thread=multi}" -cpu max,la57=off -smp "${CPUS:-2}" \
    -m "$memory" -object memory-backend-memfd,id=memory,size="${memory}M",share=on -numa node,memdev=memory \
    -nodefaults -no-user-config -display none -no-reboot -kernel "$kernel/vmlinuz" -initrd "$work/initrd" \
    -append "console=ttyS0 panic=-1 quiet mitigations=off" \
    -chardev socket,id=root,path="$work/socket" -device vhost-user-fs-pci,chardev=root,tag=root \
    -serial "file:$console" -serial stdio ${QEMU_OPTIONS:-} </dev/null || status=$?
if [ $status = 124 ]; then
    tail -20 "$console" >&2
    echo "vm: error: $version did not finish within ${TIMEOUT:-600} s" >&2
    exit 124
fi
status=$(tr -d '\r' <"$console" | sed -n 's/^exit status //p' | tail -1)
if [ -z "$status" ]; then
    tail -40 "$console" >&2
    echo "vm: error: $version died" >&2
    exit 125
fi
exit "$status"
