# Checks of removal, upgrade and purge of the deb. Sourced by start.
# shellcheck shell=bash disable=SC2154

# The same package with the version and the default configuration of 0.1.0.
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

check_reinstall() {
    apt_install "$deb"
    wait_for 60 is_up
    runs_installed
    grep -x 'retention = "30d"' "$config"
    same past "$(cat "$state/past")" "$(past)"
    wait_for 60 counted "$images/idle.raw"
}

# The state that the real 0.1.0 left on a host (tests/data/0.1.0): its program was killed in the middle of a
# run, while paused. The package is the new one with the version and the default configuration of 0.1.0.
check_previous() {
    mkdir -p "$images"
    echo "/dev/vdc $images xfs nofail 0 0" >>/etc/fstab
    systemctl daemon-reload
    mount "$images"
    apt_install "$previous"
    same version "$(dpkg-deb -f "$previous" Version)" "$(dpkg-query -W -f '${Version}' fragwatch)"
    systemctl stop fragwatch
    rm -rf /var/lib/fragwatch
    tar -C /var/lib -xf /mnt/state.tar
    cp -r /mnt/etc/fragwatch /etc
    compgen -G '/var/lib/fragwatch/running-*.json'
    compgen -G '/var/lib/fragwatch/defrag/*.hint'
    [ "$(cow_hint "$images/torn.raw")" -gt 0 ]
    known_images >"$state/known-images"
    earlier_runs >"$state/runs"
    grep -c . "$state/runs" | grep -x 2
    same schema 2 "$(schema)"
}

schema() { sqlite3 -readonly /var/lib/fragwatch/history.db 'PRAGMA user_version'; }

cow_hint() { xfs_io -r -c cowextsize "$1" | sed 's/[^0-9]*\([0-9]*\).*/\1/'; }

earlier_runs() {
    sqlite3 -readonly /var/lib/fragwatch/history.db \
        "SELECT image, at, engine, extents_before, extents_after, outcome FROM runs
            WHERE outcome <> 'interrupted' ORDER BY at"
}

check_upgrade() {
    apt_install "$deb"
    same version "$(dpkg-deb -f "$deb" Version)" "$(dpkg-query -W -f '${Version}' fragwatch)"
    # It was stopped above.
    systemctl start fragwatch
    wait_for 60 is_up
    runs_installed
    wait_for 60 counted "$images/idle.raw"
    grep -x 'retention = "30d"' "$config"
    cmp /mnt/etc/fragwatch/conf.d/site.toml /etc/fragwatch/conf.d/site.toml
    [[ $(effective retention) == *30d* ]]
    [[ $(effective growth_window) == *12h* ]]
    [[ $(effective stall_after) == *15s* ]]
    same version "fragwatch $(dpkg-deb -f "$deb" Version | sed 's/-.*//')" "$(fragwatch --version)"
    systemctl is-enabled fragwatch
}

check_upgrade_state() {
    wait_for 60 interrupted_run_is_recorded
    wait_for 60 hint_is_restored
    fails compgen -G '/var/lib/fragwatch/running-*.json'
    fails compgen -G '/var/lib/fragwatch/defrag/*.hint'
    same 'known images' "$(cat "$state/known-images")" "$(known_images)"
    same runs "$(cat "$state/runs")" "$(earlier_runs)"
    # Of them, it is not known what their guests waited for. Going back, 0.1.0 refuses this schema.
    same schema 3 "$(schema)"
    same 'runs with calls' 0 "$(sqlite3 -readonly /var/lib/fragwatch/history.db 'SELECT count(calls) FROM runs')"
    fragwatch incidents --json | jq -e '.incidents | length == 1'
    fragwatch status --json | jq -e .paused
    # The severity of torn.raw was reported by 0.1.0.
    same 'reported again' '' "$(journalctl -u fragwatch -o cat --no-pager | grep 'the threshold is' || true)"
    fragwatch resume
}

hint_is_restored() { [ "$(cow_hint "$images/torn.raw")" = 0 ]; }

interrupted_run_is_recorded() {
    fragwatch history "$images/torn.raw" --json | jq -e '.runs[0].outcome == "interrupted"'
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
