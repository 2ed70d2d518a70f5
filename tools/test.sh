#!/usr/bin/env bash
# Runs every test and ends with one line that adds up the runners' own. `make test` calls it.
#
# What needs root is in the same test programs: without root they show those tests as ignored, each
# with the reason. A skipped test is never counted as passed.
set -uo pipefail

log=$(mktemp)
trap 'rm -f "$log"' EXIT
[ "$(id -u)" = 0 ] || echo "test: not root: tests that load programs or make network namespaces are skipped"

${CARGO:-cargo} test --no-fail-fast 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

read -r passed failed skipped < <(
    sed -nE 's/^test result: [A-Za-z]+\. ([0-9]+) passed; ([0-9]+) failed; ([0-9]+) ignored;.*/\1 \2 \3/p' "$log" |
        awk '{ passed += $1; failed += $2; skipped += $3 } END { print passed + 0, failed + 0, skipped + 0 }'
)
if [ "$failed" -gt 0 ]; then
    echo
    echo "failed, and what each test said:"
    # From what the failed tests of a test program said to its verdict.
    awk '/^---- / { said = 1 } /^failures:$/ { said = 0 } said' "$log"
fi
if [ "$skipped" -gt 0 ]; then
    echo
    echo "skipped, with the reason in brackets:"
    grep -E '^test .* \.\.\. ignored' "$log" | sed 's/^test /  /; s/ \.\.\. ignored//'
fi
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$status" = 0 ] && [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
