#!/usr/bin/env bash
# Runs the privileged tests and the lab on several kernels, each in a virtual machine.
# `make test-kernels` calls it, as root.
#
#   KERNELS  series of Debian's kernels (default "5.10 6.1 6.12 newest"); one that is not in the
#            archive is skipped with a message. A series may name its own groups of tests:
#            "6.1=load,programs 6.12=lab-program"
#   TESTS    groups of tests (default: all): the names of the test programs that need a kernel,
#            lab-device and lab-program; also daemon-tunnel, the part of daemon that needs tunnel
#            devices
#   JOBS     virtual machines that run at the same time (default 1); each has two CPUs and keeps one
#            or two busy
#   DOCUMENT page that receives the results (default docs/kernels.md); results of other kernels and
#            tests are kept; empty: none
#
# Installs the missing packages, builds the test programs once on the host, and runs them in the
# virtual machines. Logs are kept in target/kernels. Ends with one line that sums up all tests; a
# skipped test is never counted as passed. Exit status 1 if a test failed.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/packages.sh

KERNELS=${KERNELS:-5.10 6.1 6.12 newest}
jobs=${JOBS:-1}
# Test programs that do not depend on the kernel, or test the benchmarks: they run on the host only.
without_kernel=" bench cli datapath known modules properties "
document=${DOCUMENT-docs/kernels.md}

results=${CARGO_TARGET_DIR:-target}/kernels
mkdir -p "$results/bin"
results=$(realpath "$results")
start=$SECONDS

[ "$(id -u)" = 0 ] ||
    fail "must run as root, because the virtual machines share this machine's root file system"
echo "test-kernels: dependencies of the virtual machines"
install_packages "$results/apt.log" busybox-static kmod iproute2 xz-utils zstd
QEMU_ROOT=$(tools/kernels/qemu.sh)
export QEMU_ROOT

# 1. Build the test programs and list the name, package directory and executable of each.
echo "test-kernels: building the test programs"
# The whole workspace, as in `make test`. A selection of packages would compile the dependencies
# again, with other features.
${CARGO:-cargo} test --quiet --no-run --message-format=json >"$results/build.json" ||
    fail "building the test programs failed; see above"
field() { sed -nE "s/.*\"$1\":\"([^\"]*)\".*/\1/p" <<<"$2"; }
grep '"kind":\["test"\]' "$results/build.json" | while read -r artefact; do
    manifest=$(field manifest_path "$artefact")
    name=$(field name "$artefact")
    # Hard links, because a build during the run replaces the files.
    ln -f "$(field executable "$artefact")" "$results/bin/$name"
    printf '%s\t%s\t%s\n' "$name" "${manifest%/*}" "$results/bin/$name"
done | sort >"$results/plan"

all=()
while IFS=$'\t' read -r name _; do
    case $name in
        lab) all+=(lab-device lab-program) ;;
        *) [[ $without_kernel == *" $name "* ]] || all+=("$name") ;;
    esac
done <"$results/plan"
read -r -a groups <<<"${TESTS:-${all[*]}}"

# The lab and daemon tests use the release binary. The test profile's is several times slower.
release=${CARGO_TARGET_DIR:-target}/release/sluice
[ -x "$release" ] || fail "$release is not built; run \`make build\`"
ln -f "$release" "$results/bin/sluice"
release=$results/bin/sluice

# 2. Run the groups on each kernel. A kernel's directory has tests.tsv (kernel, group, passed,
#    failed, skipped), programs.tsv (program, kernel, instructions and verified instructions),
#    skipped.tsv (kernel, group, test, reason) and `group`, the output of the current group.
rm -rf "$results/kernels"

# judge GROUP STATUS: sums up the results of one group and records its skipped tests.
judge() {
    local group=$1 status=$2 passed=0 failed=0 skipped=0
    read -r passed failed skipped < <(
        awk '/^test result: [A-Za-z]+\. [0-9]+ passed; [0-9]+ failed; [0-9]+ ignored;/ {
            passed += $4; failed += $6; skipped += $8
        } END { print passed + 0, failed + 0, skipped + 0 }' "$own/group"
    )
    # A program that ended without a result, or without a test, has failed.
    if [ "$failed" = 0 ] && { [ "$status" != 0 ] || [ $((passed + skipped)) = 0 ]; }; then
        failed=1
    fi
    printf '%s\t%s\t%s\t%s\t%s\n' "$version" "$group" "$passed" "$failed" "$skipped" \
        >>"$own/tests.tsv"
    printf '  %-12s %s passed, %s failed, %s skipped\n' "$group" "$passed" "$failed" "$skipped"
    # The reason follows the result, or precedes the name in brackets.
    sed -nE 's/^test +(\[([^]]*)\] )?(.*[^ ]) +\.\.\. ignored(, (.*)| \((.*)\))?$/\3\t\2\5\6/p' \
        "$own/group" |
        while IFS=$'\t' read -r test reason; do
            printf '%s\t%s\t%s\t%s\n' "$version" "$group" "$test" "$reason" >>"$own/skipped.tsv"
            printf '  %-12s skipped %s: %s\n' "" "$test" "$reason"
        done
    sed -nE 's/^program ([^ :]+): instructions ([^,]+), verified ([^,]+),.*/\1\t\2\t\3/p' \
        "$own/group" |
        while IFS=$'\t' read -r program instructions verified; do
            printf '%s\t%s\t%s\n' "$program" "$version" "$instructions / $verified" \
                >>"$own/programs.tsv"
        done
    [ "$failed" = 0 ] || sed 's/^/    /' "$own/group"
}

# boot KERNEL CONSOLE: runs the groups in a virtual machine; its last line is `@exit STATUS`.
boot() {
    local status=0
    SHARE="$results $HOME" TIMEOUT=${TIMEOUT:-7200} CONSOLE=$2 nice -n 10 \
        tools/kernels/vm.sh "$1" env SLUICE="$release" \
        tools/kernels/guest.sh "$results/plan" "${groups[@]}" 2>&1 || status=$?
    echo "@exit $status"
}

# test_kernel SERIES KERNEL: runs the groups on that kernel and judges each.
test_kernel() {
    local series=$1 kernel=$2 status=0 version log began=$SECONDS line group open
    own=$results/kernels/$series
    version=${kernel##*/}
    version=${version%-cloud-amd64}
    log=$results/$version.log
    echo "test-kernels: Linux $version: ${groups[*]}"
    : >"$log"
    open=" ${groups[*]} "
    while IFS= read -r line; do
        line=${line%$'\r'}
        printf '%s\n' "$line" >>"$log"
        case $line in
            "@begin "*) : >"$own/group" ;;
            "@end "*)
                read -r _ group status <<<"$line"
                judge "$group" "$status"
                open=${open/ $group / }
                ;;
            "@exit "*) status=${line#@exit } ;;
            *) printf '%s\n' "$line" >>"$own/group" ;;
        esac
    done < <(boot "$kernel" "$results/$version.console")
    if [ "$status" != 0 ]; then
        tail -25 "$log"
        echo "test-kernels: the virtual machine ended with status $status"
    fi
    # A group without an end has failed.
    for group in $open; do
        echo "no end" >"$own/group"
        judge "$group" "no end"
    done
    echo "  $((SECONDS - began)) s; log in $log"
}

# Each kernel's job has its own process group, so that an interrupt also ends its virtual machine.
set -m
declare -A running=()
stop() {
    local pid
    for pid in "${!running[@]}"; do
        kill -TERM -- "-$pid" 2>/dev/null || true
    done
}
trap stop EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# finish: waits for one job; if it failed to run the tests at all, the script ends.
finish() {
    local pid
    wait -n -p pid "${!running[@]}" || fail "${running[$pid]}: the run was aborted; see above"
    unset "running[$pid]"
}

# All kernels are fetched before the first run, because apt does not run concurrently.
declare -A kernels=()
for entry in $KERNELS; do
    series=${entry%%=*}
    own=$results/kernels/$series
    mkdir -p "$own"
    touch "$own"/{tests,programs,skipped}.tsv
    status=0
    kernels[$series]=$(tools/kernels/kernel.sh "$series") || status=$?
    if [ $status = 3 ]; then
        echo "test-kernels: $series: skipped, not in the archive"
        printf '%s\t-\tall tests\tnot in the archive\n' "$series" >"$own/skipped.tsv"
        printf '%s\t-\t0\t0\t1\n' "$series" >"$own/tests.tsv"
        continue
    fi
    [ $status = 0 ] || fail "fetching kernel $series failed; see above"
done

all_groups=("${groups[@]}")
for entry in $KERNELS; do
    series=${entry%%=*}
    kernel=${kernels[$series]}
    [ -n "$kernel" ] || continue
    groups=("${all_groups[@]}")
    [ "$series" = "$entry" ] || IFS=, read -r -a groups <<<"${entry#*=}"
    [ ${#running[@]} -lt "$jobs" ] || finish
    if [ "$jobs" = 1 ]; then
        test_kernel "$series" "$kernel" &
    else
        test_kernel "$series" "$kernel" > >(sed -u "s/^/$series: /") 2>&1 &
    fi
    running[$!]=$series
done
while [ ${#running[@]} -gt 0 ]; do
    finish
done
cat "$results"/kernels/*/tests.tsv >"$results/tests.tsv"
cat "$results"/kernels/*/programs.tsv >"$results/programs.tsv"
cat "$results"/kernels/*/skipped.tsv >"$results/skipped.tsv"

# 3. Report.
if [ -n "$document" ]; then
    tools/kernels/report.sh "$results" "$document"
    echo "test-kernels: results written to $document"
fi
echo "test-kernels: done after $((SECONDS - start)) s"
awk -F '\t' '{ passed += $3; failed += $4; skipped += $5 }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
          exit failed > 0 || passed == 0 }' "$results/tests.tsv"
