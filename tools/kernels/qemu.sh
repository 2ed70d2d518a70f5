#!/usr/bin/env bash
# qemu.sh: provides QEMU and virtiofsd, and prints the root of their files: empty if installed, or
# the directory of a copy.
#
# Debian's packages are installed if no package has to be removed. That is not possible on a machine
# with packages of another QEMU release, for example a later qemu-utils. There, apt fetches the
# packages and their missing dependencies, verifies signatures and checksums, and they are unpacked
# under ${XDG_CACHE_HOME:-~/.cache}/sluice/qemu. Installed packages do not change.
set -euo pipefail
. "$(dirname "$0")/../packages.sh"

package=qemu-system-x86
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice/qemu

if [ -n "$(missing_packages $package)" ] && [ -x "$cache/usr/bin/qemu-system-x86_64" ]; then
    report present "QEMU's Debian packages in $cache" >&2
    echo "$cache"
    exit 0
fi

mkdir -p "${cache%/*}"
work=$(mktemp -d -p "${cache%/*}")
trap 'rm -rf "$work"' EXIT
if (install_packages "$work/apt.log" $package) >"$work/install" 2>&1; then
    cat "$work/install" >&2
    exit 0
fi

options=(-qq -o APT::Sandbox::User=root -o Acquire::Retries=3)
# Only packages that are not installed; the copy uses those that are.
mapfile -t packages < <(
    apt-get "${options[@]}" install --simulate --no-install-recommends $package |
        sed -nE 's/^Inst ([^ ]+) \(.*/\1/p'
)
report unpack "QEMU's Debian packages into $cache, because installing them would remove others" >&2
(cd "$work" && apt-get "${options[@]}" download "${packages[@]}") >"$work/download" 2>&1 ||
    { cat "$work/install" "$work/download" >&2; fail "apt-get failed to fetch: ${packages[*]}"; }
for file in "$work"/*.deb; do
    dpkg-deb -x "$file" "$work/copy"
done
# Some packages have libraries in /lib, which is a link to /usr/lib on an installed system.
if [ -d "$work/copy/lib" ]; then
    cp -a "$work/copy/lib/." "$work/copy/usr/lib/"
    rm -r "$work/copy/lib"
fi
if ! LD_LIBRARY_PATH=$work/copy/usr/lib/x86_64-linux-gnu \
    "$work/copy/usr/bin/qemu-system-x86_64" --version >"$work/version" 2>&1; then
    cat "$work/install" "$work/version" >&2
    fail "QEMU can neither be installed nor run from a copy; see above"
fi
mv -T "$work/copy" "$cache"
echo "$cache"
