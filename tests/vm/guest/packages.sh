# Checks of removal, upgrade and purge of the deb. Sourced by start.
# shellcheck shell=bash disable=SC2154

# The same package with a lower version and other defaults.
previous=$(echo /mnt/previous/fragwatch_*.deb)

# apt as unattended upgrades call it: an edited file is kept.
apt_install() {
    apt-get install -y -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@"
}

check_remove() {
    apt-get remove -y fragwatch
    fails systemctl is-active fragwatch
    fails test -e /usr/bin/fragwatch
    fails test -e /run/fragwatch
    fails pgrep -x fragwatch
    grep -x 'retention = "30d"' "$config"
    test -e "$fragment"
    test -s /var/lib/fragwatch/history.db
    # One that was up when it was removed is up when it comes back.
}

check_previous() {
    apt_install "$previous"
    wait_for 60 is_up
    same version "$(dpkg-deb -f "$previous" Version)" "$(dpkg-query -W -f '${Version}' fragwatch)"
    grep -x 'retention = "30d"' "$config"
    wait_for 60 counted "$images/idle.raw"
}

# keeps_everything: the edited configuration is in force, and the past is there.
keeps_everything() {
    grep -x 'retention = "30d"' "$config"
    [[ $(effective retention) == *30d* ]]
    same past "$(cat "$state/past")" "$(past)"
}

check_upgrade() {
    local pid
    pid=$(main_pid)
    apt_install "$deb"
    same version "$(dpkg-deb -f "$deb" Version)" "$(dpkg-query -W -f '${Version}' fragwatch)"
    fails same process "$pid" "$(main_pid)"
    wait_for 60 is_up
    runs_installed
    wait_for 60 counted "$images/idle.raw"
    keeps_everything
    same version "fragwatch $(dpkg-deb -f "$deb" Version | sed 's/-.*//')" "$(fragwatch --version)"
    systemctl is-enabled fragwatch
}

check_upgrade_wrong() {
    local pid said
    pid=$(main_pid)
    echo 'nonsense = 1' >/etc/fragwatch/conf.d/wrong.toml
    said=$(apt_install --reinstall "$deb" 2>&1)
    echo "$said"
    grep nonsense <<<"$said"
    grep 'systemctl restart fragwatch' <<<"$said"
    same process "$pid" "$(main_pid)"
    is_up
    # It is the old program, and still does its work.
    fails runs_installed
    wait_for 30 counted "$images/idle.raw"
    rm /etc/fragwatch/conf.d/wrong.toml
    systemctl restart fragwatch
    wait_for 60 is_up
    runs_installed
}

check_upgrade_disabled() {
    systemctl disable --now fragwatch
    apt_install --reinstall "$deb"
    fails systemctl is-active fragwatch
    fails systemctl is-enabled fragwatch
    systemctl enable --now fragwatch
    wait_for 60 is_up
}

check_purge() {
    apt-get purge -y fragwatch
    fails systemctl is-active fragwatch
    rm -f /usr/local/bin/acceptance-hook /usr/local/share/left-the-sandbox
    everything_there >"$state/after"
    # What else has changed is not of this package: xfsprogs was installed with it.
    same 'left behind' '' "$(comm -13 "$state/before" "$state/after" | grep -i fragwatch || true)"
    same 'in the books of dpkg' '' "$(find /var/lib/dpkg/info /var/lib/systemd -name '*fragwatch*')"
    same 'in /run' '' "$(find /run -name '*fragwatch*')"
    same units '' "$(systemctl list-units --all --no-legend --plain 'fragwatch*')"
    fails systemctl cat fragwatch
}
