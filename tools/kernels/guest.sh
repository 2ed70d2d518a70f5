#!/usr/bin/env bash
# guest.sh PLAN GROUP...: runs groups of tests in a virtual machine, started by test-kernels.sh.
# PLAN has one line per test program with its name, package directory and executable, separated by
# tabs. A group is the name of a test program; `lab-device` or `lab-program`: the lab with backends
# that decapsulate with tunnel devices or with Sluice's program; or `daemon-tunnel`: the tests of
# `daemon` for backends with tunnel devices.
#
# The output of each group is enclosed in the lines `@begin GROUP` and `@end GROUP STATUS`. A group
# that exceeds its time limit is killed (status 124).
set -uo pipefail

plan=$1
shift
tunnels=/etc/modprobe.d/sluice-no-tunnels.conf

# The host's /tmp is visible here and may contain artefacts of other runs.
TMPDIR=$(mktemp -d)
export TMPDIR

# Fewer random frames than on the host, because emulation is slow and most results depend on the
# frame and not on the kernel.
export RANDOM_FRAMES=500 FUZZ_FRAMES=5000
# Disables the tests' time limits.
export SLUICE_EMULATED=1

# Prevents tunnel devices: the kernel loads their modules by modprobe, which then fails.
forbid_tunnels() {
    mkdir -p "${tunnels%/*}"
    printf 'install %s /bin/false\n' ipip ip6_tunnel sit >"$tunnels"
    modprobe -r ipip ip6_tunnel sit 2>&1
}

for group in "$@"; do
    program=$group
    filter=()
    # In seconds. Most groups take minutes, also with a second virtual machine on two CPUs; `daemon`
    # starts hundreds of daemons.
    limit=1800
    case $group in
        daemon) limit=5400 ;;
        daemon-*)
            program=daemon
            filter=("${group#daemon-}")
            ;;
        lab-*)
            program=lab
            export LAB_DECAPSULATION=${group#lab-} LAB_SCALE=small
            ;;
    esac
    echo "@begin $group"
    case $group in
        lab-program) forbid_tunnels ;;
        # Loaded before the tests, because loading adds a device (tunl0, ip6tnl0, sit0) to every
        # namespace, which tests would detect as a change.
        *) modprobe -a ipip ip6_tunnel sit ;;
    esac
    if line=$(grep -P "^$program\t" "$plan"); then
        IFS=$'\t' read -r _ directory executable <<<"$line"
        # In the package's directory, as cargo runs tests.
        (cd "$directory" && timeout -k 10 "$limit" "$executable" --color never "${filter[@]}")
        status=$?
    else
        echo "guest: error: no test program $program"
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
