#!/usr/bin/env bash
# kernel.sh SERIES: prints the directory that holds Debian's kernel of that series (5.10, 6.1, 6.12,
# ..., or `newest`): vmlinuz and lib/modules/VERSION. The directory's name is the kernel's full
# version. Exit status 3: the archive has no such kernel.
#
# Kernels are fetched by apt, which checks their signatures and checksums, and kept under
# ${XDG_CACHE_HOME:-~/.cache}/sluice/kernels; one that is there is used without asking the archive
# (remove it to get a later one). They are unpacked, never installed. A series that is not in this
# machine's suites is looked for in those of $SUITES, from the same mirrors, by an apt with lists
# and state of its own: what this machine's apt knows and installs does not change.
set -euo pipefail
. "$(dirname "$0")/../packages.sh"

series=$1
flavour=cloud-amd64
SUITES=${SUITES:-bullseye-security trixie-backports}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice/kernels
mkdir -p "$cache"

# Versions of the series among names on standard input, latest last.
of_series() {
    if [ "$series" = newest ]; then
        grep -E "^[0-9][^ ]*-$flavour\$"
    else
        grep -E "^${series//./\\.}[.+-]([^ ]*-)?$flavour\$"
    fi | sort -V
}

use() {
    printf '%s\n' "$cache/$1"
    exit 0
}

if [ "$series" != newest ]; then
    cached=$(find "$cache" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' | of_series | tail -1 || true)
    [ -z "$cached" ] || use "$cached"
fi

work=$(mktemp -d -p "$cache")
trap 'rm -rf "$work"' EXIT
log=$work/log

quiet() {
    "$@" >"$log" 2>&1 || { cat "$log" >&2; fail "this failed: $*"; }
}

# The kernel packages' versions that apt knows with these options; linux-image-unsigned and debug
# packages do not match.
known() {
    apt-cache "$@" pkgnames linux-image- | sed -n 's/^linux-image-//p' | of_series || true
}

# An apt of its own that knows $SUITES.
other_suites() {
    local suite mirror state=$cache/.apt
    mkdir -p "$state"/lists/partial "$state"/archives/partial
    touch "$state/status"
    for suite in $SUITES; do
        case $suite in
            *-security) mirror=$(mirror_of '-security') ;;
            *) mirror=$(mirror_of '^[a-z]+$') ;;
        esac
        [ -z "$mirror" ] || echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
    done >"$state/sources.list"
    options+=(
        -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::Cache="$state" -o Acquire::Languages=none
    )
    # A suite that the mirror does not have is no error here: the series is then not found.
    apt-get "${options[@]}" update >"$log" 2>&1 || true
}

# The mirror of this machine's first suite whose name matches.
mirror_of() {
    # shellcheck disable=SC2016  # apt fills these in
    apt-get indextargets --format '$(REPO_URI) $(SUITE) $(CODENAME)' | awk -v name="$1" '$2 ~ name || $3 ~ name {print $1; exit}'
}

options=(-qq -o APT::Sandbox::User=root -o Acquire::Retries=3)
version=
if [ "$series" != newest ]; then
    # Old lists name packages that the archive has replaced.
    quiet apt-get "${options[@]}" update
    version=$(known "${options[@]}" | tail -1)
fi
if [ -z "$version" ]; then
    other_suites
    version=$(known "${options[@]}" | tail -1)
fi
[ -n "$version" ] || exit 3
[ ! -d "$cache/$version" ] || use "$version"

echo "fetching Debian's kernel $version" >&2
# From 7.2 on the image package is empty and depends on others that hold the parts.
mapfile -t parts < <(apt-cache "${options[@]}" depends "linux-image-$version" |
    grep -oE "linux-(base|binary|modules)-${version//+/\\+}\$" | sort -u || true)
(cd "$work" && quiet apt-get "${options[@]}" download "linux-image-$version" "${parts[@]}")
for package in "$work"/*.deb; do
    quiet dpkg-deb -x "$package" "$work/x"
done
mkdir -p "$work/kernel/lib"
for modules in "$work/x/lib/modules" "$work/x/usr/lib/modules"; do
    [ ! -d "$modules" ] || mv "$modules" "$work/kernel/lib/modules"
done
image=$(find "$work/x" "$work/kernel" -name 'vmlinuz*' -type f | head -1)
# While a version leaves the archive, some of its packages may already be gone.
[ -n "$image" ] && [ -d "$work/kernel/lib/modules/$version/kernel" ] || exit 3
mv "$image" "$work/kernel/vmlinuz"
quiet depmod -b "$work/kernel" "$version"
mv -T "$work/kernel" "$cache/$version"
use "$version"
