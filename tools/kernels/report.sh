#!/usr/bin/env bash
# report.sh RESULTS DOCUMENT: writes what a run of test-kernels.sh found (tests.tsv, programs.tsv
# and skipped.tsv in directory RESULTS) into DOCUMENT. Results of kernels and tests that were not in
# the run are kept from the document as it is.
set -euo pipefail

results=$1
document=$2
old=$(mktemp)
trap 'rm -f "$old"' EXIT
[ ! -f "$document" ] || cp "$document" "$old"

# section HEADING: the lines of a section of the old document.
section() {
    awk -v heading="## $1" '$0 == heading { inside = 1; next } /^## / { inside = 0 } inside && NF' "$old"
}

# table CORNER CELLS HEADING: merges the file CELLS (row, kernel and text, separated by tabs) into
# the table under HEADING. Each series of kernels (6.1, 6.12, ...) has one column: results of
# another version of it go with the first of a new one. Rows stay in the order that they have, new
# ones come last.
table() {
    awk -F '\t' -v corner="$1" '
        function series(kernel,   parts) { split(kernel, parts, "."); return parts[1] "." (parts[2] + 0) }
        function trim(text) { gsub(/^ +| +$/, "", text); return text }
        function add(row) { if (!(row in order)) { order[row] = ++rows; names[rows] = row } }
        function put(row, kernel, text) {
            add(row)
            if (!(series(kernel) in column)) column[series(kernel)] = kernel
            if (column[series(kernel)] == kernel && !((row, series(kernel)) in cell)) cell[row, series(kernel)] = text
        }
        # The cells of this run come before those that are there.
        FILENAME == ARGV[2] { put($1, $2, $3); next }
        /^\|/ {
            count = split($0, cells, "|")
            if (!heading) { for (i = 3; i < count; i++) heads[i] = trim(cells[i]); heading = 1; next }
            if (cells[2] ~ /^ *-+ *$/ || trim(cells[2]) == corner) next
            if (FILENAME == ARGV[1]) { add(trim(cells[2])); next }
            for (i = 3; i < count; i++) if (trim(cells[i]) != "-") put(trim(cells[2]), heads[i], trim(cells[i]))
        }
        END {
            for (key in column) { split(key, v, "."); sorted[v[1] * 1000 + v[2]] = key }
            n = 0
            for (number = 0; number < 100000; number++) if (number in sorted) keys[++n] = sorted[number]
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

# The reasons for skipping: those of this run, and those of tests on kernels of the table that were
# not in it.
skips() {
    awk -F '\t' '
        function series(kernel,   parts) { split(kernel, parts, "."); return parts[1] "." (parts[2] + 0) }
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
    ' "$results/tests.tsv" "$results/skipped.tsv" <(section "Skipped, and why") | sort -V
}

awk -F '\t' '$2 != "-" {
    text = $4 > 0 ? "**" $4 " failed**, " $3 " passed" : $3 " passed"
    if ($5 > 0) text = text ", " $5 " skipped"
    print $2 "\t" $1 "\t" text
}' "$results/tests.tsv" >"$results/cells.tsv"

{
    cat <<'END'
# Kernels

`make test-kernels` runs the privileged tests and the lab in virtual machines with Debian's stock kernels, and writes this page.
[operations.md](operations.md) says which kernels are supported; this page is what that rests on.

```
make test-kernels                        # 5.10, 6.1, 6.12 and the newest in Debian's archive; as root; takes hours
make test-kernels KERNELS="6.1 6.12"     # these only; results of the others stay
make test-kernels TESTS="load daemon"    # these tests only; results of the others stay
make test-kernels KERNELS="6.1=load,programs 6.12=lab-program" JOBS=2   # tests of each kernel's own, two machines at a time
make test-kernels-ci                     # what every change must pass: programs, packets and lab on 6.1 and 6.12; writes nothing
```

Kernels come from Debian's archive, checked by apt, and are kept under `~/.cache/sluice/kernels`; a kernel that the archive does not
have is skipped, and the command says so. QEMU is Debian's, too; where it cannot be installed beside what a machine has
of another release, it runs from a copy under `~/.cache/sluice/qemu`. It emulates, some ten times slower than the machine it runs on, so what a
test allows in seconds is generous.

## Tests

Each row is a test program. `lab-device` is the lab with backends that decapsulate by the kernel's `ipip` and `ip6tnl` devices,
`lab-program` the lab on the same kernel kept from making such devices, so that Sluice's own program decapsulates. `-`: not run.

END
    table test "$results/cells.tsv" Tests
    cat <<'END'

## Programs

Instructions as the kernel runs them / instructions that its verifier went through. The verifier counts an instruction once for each
path that leads through it, and refuses a program at a million. `-`: that kernel does not tell.

END
    table program "$results/programs.tsv" Programs
    cat <<'END'

## Skipped, and why

<!-- begin skipped -->

END
    skips
    echo
    echo '<!-- end skipped -->'
} >"$results/document.md"
cp "$results/document.md" "$document"
