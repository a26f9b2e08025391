# Sourced by packaging/quickstart, packaging/build and tests/run: packages of the distribution, and root only
# for the steps that need it.
# shellcheck shell=bash

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "This step needs root, and sudo is not installed: $*" >&2
        return 1
    fi
}

# missing_packages COMMAND=PACKAGE …: prints the packages of the commands that are missing. Administrative
# commands are searched for as well; the PATH of an ordinary user may leave them out.
missing_packages() {
    local pair
    for pair in "$@"; do
        PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" command -v "${pair%%=*}" >/dev/null ||
            echo "${pair#*=}"
    done | sort -u
}

# Prints what cargo needs to link and is missing: a C compiler and, where it is separate, the C library.
missing_compiler() {
    if command -v apt-get >/dev/null; then
        dpkg -s gcc libc6-dev >/dev/null 2>&1 || printf '%s\n' gcc libc6-dev
    else
        command -v cc >/dev/null || echo gcc
    fi
}

# apt_get COMMAND ARGUMENT …: apt-get as root. Scripts that run at the same time wait for each other.
apt_get() { as_root env DEBIAN_FRONTEND=noninteractive flock /var/lib/apt/lists apt-get "$@"; }

# install_packages PACKAGE …
install_packages() {
    [ $# -gt 0 ] || return 0
    echo "Installing from the distribution: $*" >&2
    if command -v apt-get >/dev/null; then
        apt_get update -qq
        apt_get install -y -qq --no-install-recommends "$@" >/dev/null
    elif command -v dnf >/dev/null; then
        as_root dnf install -y -q "$@"
    else
        echo "Neither apt-get nor dnf is installed; install these manually: $*" >&2
        return 1
    fi
}

# cargo may be installed for the user only, in a directory that is not in PATH.
find_cargo() {
    command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    if ! command -v cargo >/dev/null; then
        echo "cargo is not installed. Install Rust first: https://rustup.rs" >&2
        return 1
    fi
}
