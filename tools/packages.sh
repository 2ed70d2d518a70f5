# Sourced by the scripts that install Debian packages: says what it does, installs only what is
# missing, fails in one sentence.
# shellcheck shell=bash

say() { printf '  %-9s %s\n' "$1" "$2"; }
fail() { local script=${0##*/}; printf '%s: error: %s\n' "${script%.sh}" "$*" >&2; exit 1; }

missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || echo "$package"
    done
}

# install_packages LOG PACKAGE...: LOG is a file for what apt says, shown when it fails.
install_packages() {
    local log=$1 missing
    shift
    mapfile -t missing < <(missing_packages "$@")
    if [ ${#missing[@]} = 0 ]; then
        say present "Debian packages: $*"
        return
    fi
    [ "$(id -u)" = 0 ] || fail "these packages are missing and only root can install them: ${missing[*]}"
    say install "Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    if ! apt-get install -y -qq --no-install-recommends --no-remove "${missing[@]}" >"$log" 2>&1; then
        apt-get update -qq >"$log" 2>&1 || { cat "$log" >&2; fail "apt-get update failed"; }
        apt-get install -y -qq --no-install-recommends --no-remove "${missing[@]}" >"$log" 2>&1 ||
            { cat "$log" >&2; fail "apt-get could not install: ${missing[*]}"; }
    fi
}
