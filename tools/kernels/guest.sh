#!/usr/bin/env bash
# guest.sh PLAN GROUP...: runs groups of tests in a virtual machine; test-kernels.sh starts it
# there. PLAN has one line for each test program: name, its package's directory, executable,
# separated by tabs. A group is the name of a test program, or `lab-device` or `lab-program`: the
# lab with backends that decapsulate by tunnel devices, or by Sluice's program.
#
# Each group's output stands between a line `@begin GROUP` and a line `@end GROUP STATUS`. A group
# that hangs is ended (status 124).
set -uo pipefail

plan=$1
shift
tunnels=/etc/modprobe.d/sluice-no-tunnels.conf

# Of this machine alone: artefacts of other runs may lie in the /tmp that is seen here.
TMPDIR=$(mktemp -d)
export TMPDIR

# Emulation is slow, and what depends on the frame more than on the kernel is tried at length on the
# host.
export RANDOM_FRAMES=500 FUZZ_FRAMES=5000
# No test judges how long something took.
export SLUICE_EMULATED=1

# Makes this kernel one without tunnel devices: it asks modprobe for their modules, which then
# refuses.
forbid_tunnels() {
    mkdir -p "${tunnels%/*}"
    printf 'install %s /bin/false\n' ipip ip6_tunnel sit >"$tunnels"
    modprobe -r ipip ip6_tunnel sit 2>&1
}

for group in "$@"; do
    program=$group
    # Against hangs, so generous: most groups take minutes, also beside another machine on two CPUs.
    # Daemons start by the hundred.
    limit=1800
    case $group in
        daemon) limit=5400 ;;
        lab-*)
            program=lab
            export LAB_DECAPSULATION=${group#lab-} LAB_SCALE=small
            ;;
    esac
    echo "@begin $group"
    case $group in
        lab-program) forbid_tunnels ;;
        # Loading these modules adds a device to every namespace (tunl0, ip6tnl0, sit0), which would
        # be a change that tests find.
        *) modprobe -a ipip ip6_tunnel sit ;;
    esac
    if line=$(grep -P "^$program\t" "$plan"); then
        IFS=$'\t' read -r _ directory executable <<<"$line"
        # As cargo runs tests: in their package's directory.
        (cd "$directory" && timeout -k 10 "$limit" "$executable" --color never)
        status=$?
    else
        echo "there is no test program $program"
        status=1
    fi
    rm -f "$tunnels"
    echo "@end $group $status"
    if [ "$status" != 0 ]; then
        for directory in "$TMPDIR"/sluice-lab-failed-*; do
            [ -d "$directory" ] || continue
            echo "@artefacts"
            tail -n 40 "$directory"/*.log "$directory"/*.state
            rm -rf "$directory"
        done
    fi
done
