# Functions of the scripts that install Debian packages: they print each step, install only missing
# packages, and fail with one message. Sourced, not run.
# shellcheck shell=bash

report() { printf '  %-9s %s\n' "$1" "$2"; }
fail() { local script=${0##*/}; printf '%s: error: %s\n' "${script%.sh}" "$*" >&2; exit 1; }

missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' ||
            echo "$package"
    done
}

# install_packages LOG PACKAGE...: LOG is a file for apt's output, which is printed if apt fails.
install_packages() {
    local log=$1 missing
    shift
    mapfile -t missing < <(missing_packages "$@")
    if [ ${#missing[@]} = 0 ]; then
        report present "Debian packages: $*"
        return
    fi
    [ "$(id -u)" = 0 ] || fail "missing packages, which only root can install: ${missing[*]}"
    report install "Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    local install=(apt-get install -y -qq --no-install-recommends --no-remove "${missing[@]}")
    if ! "${install[@]}" >"$log" 2>&1; then
        apt-get update -qq >"$log" 2>&1 || { cat "$log" >&2; fail "apt-get update failed"; }
        "${install[@]}" >"$log" 2>&1 ||
            { cat "$log" >&2; fail "apt-get failed to install: ${missing[*]}"; }
    fi
}
