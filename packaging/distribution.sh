# Sourced by packaging/quickstart and tests/run: packages of the distribution, and root only for
# what needs it.
# shellcheck shell=bash

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "This step needs root, and there is no sudo here: $*" >&2
        return 1
    fi
}

# missing_packages COMMAND=PACKAGE …: the packages of those commands that are not there. Commands
# of the system administrator are looked for as well; an ordinary user's PATH may leave them out.
missing_packages() {
    local pair
    for pair in "$@"; do
        PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" command -v "${pair%%=*}" >/dev/null ||
            echo "${pair#*=}"
    done | sort -u
}

# What cargo needs to link: a C compiler and, where it does not come with it, the C library to link
# against.
missing_compiler() {
    if command -v apt-get >/dev/null; then
        dpkg -s gcc libc6-dev >/dev/null 2>&1 || printf '%s\n' gcc libc6-dev
    else
        command -v cc >/dev/null || echo gcc
    fi
}

# install_packages PACKAGE …
install_packages() {
    [ $# -gt 0 ] || return 0
    echo "Installing from the distribution: $*" >&2
    if command -v apt-get >/dev/null; then
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    elif command -v dnf >/dev/null; then
        as_root dnf install -y -q "$@"
    else
        echo "Neither apt-get nor dnf is here; install these by hand: $*" >&2
        return 1
    fi
}

# cargo may be the user's own, in a place that is not on everybody's PATH.
find_cargo() {
    command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    if ! command -v cargo >/dev/null; then
        echo "cargo is not here. Install Rust first: https://rustup.rs" >&2
        return 1
    fi
}
