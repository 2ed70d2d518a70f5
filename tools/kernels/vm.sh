#!/usr/bin/env bash
# vm.sh KERNEL COMMAND...: boots the kernel in directory KERNEL (see kernel.sh) in a virtual machine
# and runs COMMAND there, as root and in this directory. The output and exit status are those of
# COMMAND, except 124 on a timeout, and 125 if the virtual machine crashed, which also prints the
# end of its console. Needs root.
#
# The guest mounts the host's root file system read-only, with a writable overlay in its memory. Its
# only network device is loopback. QEMU always emulates (TCG), which is about ten times slower than
# the host, because /dev/kvm may exist without working for stock kernels and emulation behaves the
# same on every machine.
#
# Environment, with defaults:
#   TIMEOUT      seconds (600)
#   CPUS         number of CPUs (2)
#   MEMORY       MiB (1536)
#   CONSOLE      file for the kernel's messages
#   ACCEL        QEMU's accelerator (tcg,thread=multi)
#   QEMU_ROOT    root of QEMU's files, as printed by qemu.sh (the host's)
#   QEMU_OPTIONS additional options of QEMU
#   SHARE        additional directories to share that are on file systems other than the root's
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

# 1. The initial RAM disk: busybox, the modules for the shared root, and an init that switches to
#    that root.
mkdir -p "$work"/initial/{bin,dev,lower,new,proc,rw,sys} "$work/root"
cp "$(command -v busybox)" "$work/initial/bin/busybox"
number=100
for module in virtio_pci virtiofs overlay; do
    modprobe -d "$kernel" -S "$version" --show-depends "$module" 2>/dev/null
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
    number=$((number + 1))
    case $file in
        *.xz) xz -dc "$file" ;;
        *.zst) zstd -qdc "$file" ;;
        *) cat "$file" ;;
    esac >"$work/initial/$number.ko"
done
cat >"$work/initial/init" <<'END'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t devtmpfs dev /dev
for module in /*.ko; do $b insmod $module; done
$b mount -t virtiofs -o ro root /lower && $b mount -t tmpfs rw /rw && $b mkdir /rw/upper /rw/work &&
$b mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work root /new &&
$b cp /second /new/.second && $b umount /proc /dev && exec $b switch_root /new /bin/bash /.second
END
chmod +x "$work/initial/init"

# 2. The script on the shared root: mounts the remaining file systems, runs the command and prints
#    its exit status on the console. The kernel loads other modules on demand, as on a user's host.
cat >"$work/initial/second" <<END
mount -t proc proc /proc; mount -t sysfs sys /sys
mount -t devtmpfs dev /dev; mount -t tmpfs run /run
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
(cd "$work/initial" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd"

# 3. The server of the shared root: the host's root, read-only, without the file systems mounted
#    below it. Directories in SHARE that are on other file systems are bind-mounted into it.
qemu=${QEMU_ROOT:-}
for program in "$qemu"/usr/lib/qemu/virtiofsd "$qemu"/usr/libexec/virtiofsd; do
    [ ! -x "$program" ] || virtiofsd=$program
done
[ -n "${virtiofsd:-}" ] || {
    echo "vm: error: virtiofsd is missing; install qemu-system-common or virtiofsd" >&2
    exit 1
}
# A copy of QEMU uses its own libraries.
libraries=()
[ -z "$qemu" ] || libraries=(env "LD_LIBRARY_PATH=$qemu/usr/lib/x86_64-linux-gnu")
# shellcheck disable=SC2016,SC2086  # the inner shell expands these; several paths
"${libraries[@]}" unshare -m bash -c '
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
[ -S "$work/socket" ] || {
    cat "$work/server.log" >&2
    echo "vm: error: virtiofsd did not start; see above" >&2
    exit 1
}

# 4. The virtual machine, with its console in a file and the command's output on standard output.
status=0
# shellcheck disable=SC2086  # several options
"${libraries[@]}" timeout --foreground -k 5 "${TIMEOUT:-600}" "$qemu/usr/bin/qemu-system-x86_64" \
    -accel "${ACCEL:-tcg,thread=multi}" -cpu max,la57=off -smp "${CPUS:-2}" \
    -m "$memory" -object memory-backend-memfd,id=memory,size="${memory}M",share=on \
    -numa node,memdev=memory \
    -nodefaults -no-user-config -display none -no-reboot \
    -kernel "$kernel/vmlinuz" -initrd "$work/initrd" \
    -append "console=ttyS0 panic=-1 quiet mitigations=off" \
    -chardev socket,id=root,path="$work/socket" -device vhost-user-fs-pci,chardev=root,tag=root \
    -serial "file:$console" -serial stdio ${QEMU_OPTIONS:-} </dev/null || status=$?
if [ $status = 124 ]; then
    tail -20 "$console" >&2
    echo "vm: error: Linux $version: timeout after ${TIMEOUT:-600} s" >&2
    exit 124
fi
status=$(tr -d '\r' <"$console" | sed -n 's/^exit status //p' | tail -1)
if [ -z "$status" ]; then
    tail -40 "$console" >&2
    echo "vm: error: Linux $version: the virtual machine crashed; see above" >&2
    exit 125
fi
exit "$status"
