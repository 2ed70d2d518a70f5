#!/usr/bin/env bash
# report.sh RESULTS DOCUMENT: writes the results of a run of test-kernels.sh (tests.tsv,
# programs.tsv and skipped.tsv in directory RESULTS) into DOCUMENT. Results in DOCUMENT of kernels
# and tests that were not in the run are kept.
set -euo pipefail

results=$1
document=$2
old=$(mktemp)
trap 'rm -f "$old"' EXIT
[ ! -f "$document" ] || cp "$document" "$old"

# section HEADING: the lines of a section of the old document.
section() {
    awk -v heading="## $1" '
        $0 == heading { inside = 1; next }
        /^## / { inside = 0 }
        inside && NF' "$old"
}

# table CORNER CELLS HEADING: merges the file CELLS (row, kernel and text, separated by tabs) into
# the table under HEADING. Each series of kernels (6.1, 6.12, ...) has one column. The first result
# of a new version replaces the whole column. Rows keep their order; new rows are appended.
table() {
    awk -F '\t' -v corner="$1" '
        function series(kernel,   parts) {
            split(kernel, parts, ".")
            return parts[1] "." (parts[2] + 0)
        }
        function trim(text) { gsub(/^ +| +$/, "", text); return text }
        function add(row) { if (!(row in order)) { order[row] = ++rows; names[rows] = row } }
        function put(row, kernel, text) {
            add(row)
            if (!(series(kernel) in column)) column[series(kernel)] = kernel
            if (column[series(kernel)] == kernel && !((row, series(kernel)) in cell))
                cell[row, series(kernel)] = text
        }
        # The cells of this run are read before those of the document.
        FILENAME == ARGV[2] { put($1, $2, $3); next }
        /^\|/ {
            count = split($0, cells, "|")
            if (!heading) {
                for (i = 3; i < count; i++) heads[i] = trim(cells[i])
                heading = 1
                next
            }
            if (cells[2] ~ /^ *-+ *$/ || trim(cells[2]) == corner) next
            if (FILENAME == ARGV[1]) { add(trim(cells[2])); next }
            for (i = 3; i < count; i++)
                if (trim(cells[i]) != "-") put(trim(cells[2]), heads[i], trim(cells[i]))
        }
        END {
            for (key in column) { split(key, v, "."); sorted[v[1] * 1000 + v[2]] = key }
            n = 0
            for (number = 0; number < 100000; number++)
                if (number in sorted) keys[++n] = sorted[number]
            line = "| " corner " |"; rule = "| --- |"
            for (i = 1; i <= n; i++) { line = line " " column[keys[i]] " |"; rule = rule " --- |" }
            print line; print rule
            for (r = 1; r <= rows; r++) {
                line = "| " names[r] " |"
                for (i = 1; i <= n; i++) {
                    text = cell[names[r], keys[i]]
                    line = line " " (text == "" ? "-" : text) " |"
                }
                print line
            }
        }' <(section "$3") "$2" <(section "$3")
}

# Prints the skipped tests with their reasons: those of this run, and those in the document of
# kernels and tests that were not in the run.
skips() {
    awk -F '\t' '
        function series(kernel,   parts) {
            split(kernel, parts, ".")
            return parts[1] "." (parts[2] + 0)
        }
        FILENAME == ARGV[1] { version[series($1)] = $1; ran[$1, $2] = 1; next }
        FILENAME == ARGV[2] { count[$1 ", " $2, $4]++; name[$1 ", " $2, $4] = $3; next }
        /^- / {
            split(substr($1, 3), parts, ", ")
            kernel = parts[1]
            outdated = series(kernel) in version && version[series(kernel)] != kernel
            if (!outdated && !((kernel, parts[2]) in ran)) print
        }
        END {
            for (key in count) {
                split(key, parts, SUBSEP)
                which = count[key] == 1 ? "`" name[key] "`" : count[key] " tests"
                print "- " parts[1] ", " which ": " parts[2]
            }
        }
    ' "$results/tests.tsv" "$results/skipped.tsv" <(section "Skipped tests") | sort -V
}

awk -F '\t' '$2 != "-" {
    text = $4 > 0 ? "**" $4 " failed**, " $3 " passed" : $3 " passed"
    if ($5 > 0) text = text ", " $5 " skipped"
    print $2 "\t" $1 "\t" text
}' "$results/tests.tsv" >"$results/cells.tsv"

{
    cat <<'END'
# Kernels

`make test-kernels` runs the privileged tests and the lab in virtual machines with Debian's stock
kernels and generates this page. [operations.md](operations.md) lists the supported kernels.

```
make test-kernels                        # 5.10, 6.1, 6.12 and Debian's newest (as root; hours)
make test-kernels KERNELS="6.1 6.12"     # these kernels; results of others are kept
make test-kernels TESTS="load daemon"    # these groups of tests; results of others are kept
make test-kernels KERNELS="6.1=load,programs 6.12=lab-program" JOBS=2   # groups per kernel, two VMs
make test-kernels-ci                     # programs, packets and lab on 6.1 and 6.12; no report
```

Kernels come from Debian's archive. apt verifies them, and they are cached under
`~/.cache/sluice/kernels`. A kernel that is not in the archive is skipped with a message. QEMU is
Debian's package; if installing it would remove packages, a copy under `~/.cache/sluice/qemu` is
used. QEMU emulates and is about ten times slower than the host, so the tests' time limits are
generous.

## Tests

Each row is a test program. `lab-device` is the lab with backends that decapsulate with the kernel's
`ipip` and `ip6tnl` devices. `lab-program` is the lab on the same kernel without these devices, so
that Sluice's backend program decapsulates. `daemon` includes backends with tunnel devices that are
deleted, changed or shared; these tests alone are the group `daemon-tunnel`. `-`: not run.

END
    table test "$results/cells.tsv" Tests
    cat <<'END'

## Programs

Length of the loaded program / instructions processed by the verifier, both in instructions. The
verifier counts an instruction once per explored path and rejects a program beyond one million. `-`:
not reported by this kernel.

END
    table program "$results/programs.tsv" Programs
    cat <<'END'

## Skipped tests

<!-- begin skipped -->

END
    skips
    echo
    echo '<!-- end skipped -->'
} >"$results/document.md"
cp "$results/document.md" "$document"
