#!/usr/bin/env bash
# check-columns.sh [PATH...]: comments and Markdown prose must fit into 100 columns, as rustfmt.toml
# demands of code. Reads the tracked files under each PATH (default: all) and prints the place of
# every line that is too long; fails if there is one. `make lint` calls it.
#
# Exempt: lines with a URL, tables, fenced code, generated blocks of Markdown (`<!-- begin NAME -->`
# to `<!-- end NAME -->`), and lines that have no space to break at.
set -euo pipefail
cd "$(dirname "$0")/.."

# Perl, because mawk counts bytes: one `→` is three.
git ls-files -z -- "$@" | grep -zE '\.(rs|md|sh|toml)$|(^|/)Makefile$|^\.ci/run$' |
    xargs -0 perl -CSD -ne '
        chomp;
        ($fence, $generated) = (0, 0) if $. == 1;
        my $text = $_;
        if ($ARGV =~ /\.rs$/) {
            # A comment of its own line, or one at the end of a line of code.
            ($text) = m{^\s*//[/!]?(.*)} ? $1 : m{\s//\s([^"]*)$} ? $1 : undef;
        } elsif ($ARGV !~ /\.md$/) {
            ($text) = m{^\s*#(.*)} ? $1 : undef;
        }
        if (!defined $text) { $fence = 0; next }
        if ($text =~ /^\s*(?:```|~~~)/) { $fence = !$fence; next }
        if ($text =~ /^<!-- begin .* -->/) { $generated = 1 }
        if ($text =~ /^<!-- end .* -->/) { $generated = 0 }
        next if length($_) <= 100 || $fence || $generated || $text =~ m{^\s*\||https?://|^\s*\S+$};
        printf "%s:%d: %d columns, more than 100\n", $ARGV, $., length($_);
        $found = 1;
        END { exit($found ? 1 : 0) }
    } continue { close ARGV if eof;
    '
