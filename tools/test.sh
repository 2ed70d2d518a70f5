#!/usr/bin/env bash
# Runs every test and ends with one line that sums up the results of all test programs. `make test`
# calls it.
#
# The test programs include tests that need root. Without root these are reported as ignored, each
# with the reason. A skipped test is never counted as passed.
set -uo pipefail

log=$(mktemp)
trap 'rm -f "$log"' EXIT
[ "$(id -u)" = 0 ] ||
    echo "test: not root: tests that load programs or create network namespaces are skipped"

${CARGO:-cargo} test --no-fail-fast 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

read -r passed failed skipped < <(
    awk '/^test result: [A-Za-z]+\. [0-9]+ passed; [0-9]+ failed; [0-9]+ ignored;/ {
        passed += $4; failed += $6; skipped += $8
    } END { print passed + 0, failed + 0, skipped + 0 }' "$log"
)
if [ "$failed" -gt 0 ]; then
    echo
    echo "failed tests and their output:"
    # A test program prints the output of its failed tests before the list of their names.
    awk '/^---- / { output = 1 } /^failures:$/ { output = 0 } output' "$log"
fi
if [ "$skipped" -gt 0 ]; then
    echo
    echo "skipped tests, each with the reason:"
    grep -E '^test .* \.\.\. ignored' "$log" | sed 's/^test /  /; s/ \.\.\. ignored//'
fi
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$status" = 0 ] && [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
