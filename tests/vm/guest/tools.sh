# What the checks are made of. Sourced by start.
# shellcheck shell=bash

export DEBIAN_FRONTEND=noninteractive LC_ALL=C
state=/var/lib/acceptance
images=/srv/vm
config=/etc/fragwatch/fragwatch.toml
fragment=/etc/fragwatch/conf.d/acceptance.toml

# wait_for SECONDS COMMAND …: until it succeeds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        if [ $SECONDS -ge $end ]; then
            echo "not in time: $*"
            return 1
        fi
        sleep 0.5
    done
}

# same WHAT WANTED GOT
same() {
    if [ "$2" != "$3" ]; then
        echo "$1: wanted $2, got $3"
        return 1
    fi
}

# fails COMMAND …: it must not succeed.
fails() {
    if "$@"; then
        echo "should have failed: $*"
        return 1
    fi
}

scrape() {
    exec 3<>/dev/tcp/127.0.0.1/9843 || return 1
    printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
    sed '1,/^\r$/d' <&3
    exec 3>&-
} 2>/dev/null

# metric NAME [LABEL …]: the value of the first series that has them, each as name="value".
metric() {
    local page pattern
    page=$(scrape) || return 1
    page=$(grep -E "^$1[{ ]" <<<"$page") || return 1
    for pattern in "${@:2}"; do page=$(grep -F -- "$pattern" <<<"$page") || return 1; done
    head -n 1 <<<"$page" | sed 's/.* //'
}

# metric_is VALUE NAME [LABEL …]
metric_is() { [ "$(metric "${@:2}")" = "$1" ]; }

# metric_above VALUE NAME [LABEL …]
metric_above() {
    local value
    value=$(metric "${@:2}") && awk -v value="$value" -v than="$1" 'BEGIN { exit !(value > than) }'
}

main_pid() { systemctl show -P MainPID fragwatch; }

# The program that runs is the one that is installed, and not one that it has replaced.
runs_installed() {
    local pid
    pid=$(main_pid)
    [ "$pid" != 0 ] && [ "/proc/$pid/exe" -ef /usr/bin/fragwatch ]
}

# Up, and answering.
is_up() { systemctl is-active --quiet fragwatch && metric_is 1 fragwatch_build_info; }

# What it said that is worse than information, in this boot.
complaints() {
    journalctl -b _SYSTEMD_UNIT=fragwatch.service -p warning -o cat --no-pager | grep -v '^-- ' || true
}

# fragment_file FILE BLOCKS: an image of so many blocks of 4 KiB, written in no order and past the
# page cache, as guests do: nearly every block becomes an extent.
fragment_file() {
    truncate -s $(($2 * 4096)) "$1"
    seq 0 $(($2 - 1)) | shuf --random-source=/bin/bash |
        awk '{ printf "pwrite -q -S %d %d 4096\n", $1 % 251 + 1, $1 * 4096 }' |
        xfs_io -d "$1" >/dev/null
    sync "$1"
}

extents() { xfs_io -r -c stat "$1" | awk '/^fsxattr.nextents/ { print $3 }'; }

contents() { sha256sum <"$1"; }

drops() { awk '$1 == "drop_slab" { print $2 }' /proc/vmstat; }

# A value of the running daemon's configuration.
effective() { fragwatch check-config --show | grep -E "^$1 *="; }

# What the history knows of idle.raw that no reboot may change.
past() { fragwatch history "$images/idle.raw" --json | jq -c '[.first_seen, .readings[0], .runs, .severities]'; }

# Which images the history knows, and by what.
known_images() {
    sqlite3 -readonly /var/lib/fragwatch/history.db \
        'SELECT id, path, filesystem, inode, generation, first_seen FROM images ORDER BY id'
}
