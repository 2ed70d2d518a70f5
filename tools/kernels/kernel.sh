#!/usr/bin/env bash
# kernel.sh SERIES: prints the directory of Debian's kernel of that series (5.10, 6.1, 6.12,
# ..., or `newest`): vmlinuz and lib/modules/VERSION. The directory's name is the kernel's full
# version. Exit status 3: the archive has no such kernel.
#
# apt fetches the kernels and verifies their signatures and checksums. They are unpacked under
# ${XDG_CACHE_HOME:-~/.cache}/sluice/kernels and never installed. A cached kernel is used without
# access to the archive; remove it to get a newer one. If a series is not in this machine's suites,
# a second apt state with the suites in $SUITES and the same mirrors is searched. This machine's apt
# lists and packages do not change.
set -euo pipefail
. "$(dirname "$0")/../packages.sh"

series=$1
flavour=cloud-amd64
SUITES=${SUITES:-bullseye-security trixie-backports}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice/kernels
mkdir -p "$cache"

# Filters the versions of the series on standard input, latest last.
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
    cached=$(find "$cache" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' | of_series |
        tail -1 || true)
    [ -z "$cached" ] || use "$cached"
fi

work=$(mktemp -d -p "$cache")
trap 'rm -rf "$work"' EXIT
log=$work/log

quiet() {
    "$@" >"$log" 2>&1 || { cat "$log" >&2; fail "command failed: $*"; }
}

# Prints the versions of the kernel packages in apt's lists, given apt's options. Excludes
# linux-image-unsigned and debug packages.
listed_versions() {
    apt-cache "$@" pkgnames linux-image- | sed -n 's/^linux-image-//p' | of_series || true
}

# Sets up the second apt state, with the suites in $SUITES, and adds it to the options.
other_suites() {
    local suite mirror state=$cache/.apt
    mkdir -p "$state"/lists/partial "$state"/archives/partial
    touch "$state/status"
    for suite in $SUITES; do
        case $suite in
            *-security) mirror=$(mirror_of '-security') ;;
            *) mirror=$(mirror_of '^[a-z]+$') ;;
        esac
        [ -n "$mirror" ] || continue
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
    done >"$state/sources.list"
    options+=(
        -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::Cache="$state"
        -o Acquire::Languages=none
    )
    # A suite that is missing from the mirror is no error here; the series is then not found.
    apt-get "${options[@]}" update >"$log" 2>&1 || true
}

# Prints the mirror of this machine's first suite with a matching name.
mirror_of() {
    # shellcheck disable=SC2016  # apt fills these in
    apt-get indextargets --format '$(REPO_URI) $(SUITE) $(CODENAME)' |
        awk -v name="$1" '$2 ~ name || $3 ~ name {print $1; exit}'
}

options=(-qq -o APT::Sandbox::User=root -o Acquire::Retries=3)
version=
if [ "$series" != newest ]; then
    # Outdated lists contain packages that are no longer in the archive.
    quiet apt-get "${options[@]}" update
    version=$(listed_versions "${options[@]}" | tail -1)
fi
if [ -z "$version" ]; then
    other_suites
    version=$(listed_versions "${options[@]}" | tail -1)
fi
[ -n "$version" ] || exit 3
[ ! -d "$cache/$version" ] || use "$version"

echo "fetching Debian's kernel $version" >&2
# Since 7.2 the image package is empty and depends on packages with its parts.
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
# Some packages of a version may have left the archive before others.
[ -n "$image" ] && [ -d "$work/kernel/lib/modules/$version/kernel" ] || exit 3
mv "$image" "$work/kernel/vmlinuz"
quiet depmod -b "$work/kernel" "$version"
mv -T "$work/kernel" "$cache/$version"
use "$version"
