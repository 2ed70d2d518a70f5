#!/usr/bin/env bash
# qemu.sh: sees to it that QEMU and virtiofsd are here, and prints the root under which their
# packages are: empty, or that of a copy.
#
# They are Debian's, and installed where that removes nothing. On a machine that has parts of
# another QEMU (qemu-utils of a later release, say) they cannot be installed beside these. There,
# they and what else they need are fetched by apt, which checks signatures and checksums, and
# unpacked under ${XDG_CACHE_HOME:-~/.cache}/sluice/qemu; what is installed stays as it is.
set -euo pipefail
. "$(dirname "$0")/../packages.sh"

package=qemu-system-x86
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice/qemu

if [ -n "$(missing_packages $package)" ] && [ -x "$cache/usr/bin/qemu-system-x86_64" ]; then
    say present "QEMU's Debian packages in $cache" >&2
    echo "$cache"
    exit 0
fi

mkdir -p "${cache%/*}"
work=$(mktemp -d -p "${cache%/*}")
trap 'rm -rf "$work"' EXIT
if (install_packages "$work/apt.log" $package) >"$work/said" 2>&1; then
    cat "$work/said" >&2
    exit 0
fi

options=(-qq -o APT::Sandbox::User=root -o Acquire::Retries=3)
# Those that would be new here; what is installed serves as it is.
mapfile -t packages < <(apt-get "${options[@]}" install --simulate --no-install-recommends $package |
    sed -nE 's/^Inst ([^ ]+) \(.*/\1/p')
say unpack "QEMU's Debian packages into $cache: they cannot be installed beside what is here" >&2
(cd "$work" && apt-get "${options[@]}" download "${packages[@]}") >"$work/download" 2>&1 ||
    { cat "$work/said" "$work/download" >&2; fail "apt-get could not fetch: ${packages[*]}"; }
for file in "$work"/*.deb; do
    dpkg-deb -x "$file" "$work/copy"
done
# Some packages' libraries lie in /lib still, which is a link to /usr/lib where they are installed.
if [ -d "$work/copy/lib" ]; then
    cp -a "$work/copy/lib/." "$work/copy/usr/lib/"
    rm -r "$work/copy/lib"
fi
if ! LD_LIBRARY_PATH=$work/copy/usr/lib/x86_64-linux-gnu "$work/copy/usr/bin/qemu-system-x86_64" --version >"$work/version" 2>&1; then
    cat "$work/said" "$work/version" >&2
    fail "QEMU can neither be installed nor run from a copy"
fi
mv -T "$work/copy" "$cache"
echo "$cache"
