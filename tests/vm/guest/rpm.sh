# Checks of the rpm, installed by rpm on this machine: there is no RPM distribution to be had, but
# systemd, scripts and files are the same. Its dependencies are held against what RHEL 8 has. Sourced
# by start.
# shellcheck shell=bash disable=SC2154

new_rpm=$(echo /mnt/packages/fragwatch-*.rpm)
previous_rpm=$(echo /mnt/previous/fragwatch-*.rpm)

# Of a database of its own: Debian's would be in the home of root.
rpm_tool() { rpm --dbpath /var/lib/rpm-acceptance --force-debian "$@"; }

# The dependencies are those of another distribution's packages; check_rpm_package knows them.
rpm_install() { rpm_tool --nodeps --nosignature "$@"; }

check_rpm_package() {
    rpm --dbpath /var/lib/rpm-acceptance -K --nosignature "$new_rpm"
    # RHEL 8 has rpm 4.14, which knows these features.
    same requirements '/bin/sh
config(fragwatch)
libc.so.6(GLIBC_2.28)(64bit)
systemd
xfsprogs' "$(rpm_tool -qp --nosignature --requires "$new_rpm" | sed 's/ .*//' | grep -v '^rpmlib(' | sort -u)"
    same 'configuration files' '/etc/fragwatch/conf.d/README
/etc/fragwatch/fragwatch.toml' "$(rpm_tool -qpc --nosignature "$new_rpm" | sort)"
    # Each that the deb has as well is the same file. What is compressed in one of them is not looked at.
    local file
    mkdir -p /tmp/deb /tmp/rpm
    dpkg-deb -x "$deb" /tmp/deb
    # It compares the length with a tag that cargo-generate-rpm does not write, and reports a failure
    # when all is well. That nothing is missing is seen below.
    rpm2cpio "$new_rpm" >/tmp/payload || true
    (cd /tmp/rpm && cpio -idm --quiet </tmp/payload)
    for file in usr/bin/fragwatch etc/fragwatch/fragwatch.toml usr/share/man/man1/fragwatch.1.gz \
        usr/share/man/man5/fragwatch.toml.5.gz usr/share/man/man7/fragwatch-metrics.7.gz \
        usr/share/fragwatch/grafana/fragwatch.json; do
        cmp "/tmp/deb/$file" "/tmp/rpm/$file"
    done
    cmp /tmp/deb/lib/systemd/system/fragwatch.service /tmp/rpm/usr/lib/systemd/system/fragwatch.service
}

check_rpm_install() {
    # As RPM distributions have it.
    mkdir -p /etc/systemd/system-preset
    echo 'disable *' >/etc/systemd/system-preset/99-default-disable.preset
    rpm_install -i "$previous_rpm"
    fails systemctl is-enabled fragwatch
    fails systemctl is-active fragwatch
    systemctl enable --now fragwatch
    wait_for 60 is_up
    rpm_tool -V --nodeps fragwatch
    install_hook
    configure
    systemctl reload fragwatch
    wait_for 60 counted "$images/idle.raw"
    wait_for 30 past
    past | jq -c '.[0]' >"$state/rpm-past"
}

check_rpm_upgrade() {
    local pid
    pid=$(main_pid)
    rpm_install -U "$new_rpm"
    same packages 1 "$(rpm_tool -q fragwatch | wc -l)"
    fails same process "$pid" "$(main_pid)"
    wait_for 60 is_up
    runs_installed
    systemctl is-enabled fragwatch
    grep -x 'retention = "30d"' "$config"
    [[ $(effective retention) == *30d* ]]
    wait_for 60 counted "$images/idle.raw"
    same past "$(cat "$state/rpm-past")" "$(past | jq -c '.[0]')"
}

check_rpm_upgrade_wrong() {
    local pid said
    pid=$(main_pid)
    echo 'nonsense = 1' >/etc/fragwatch/conf.d/wrong.toml
    said=$(rpm_install -U --force "$new_rpm" 2>&1)
    echo "$said"
    grep 'systemctl restart fragwatch' <<<"$said"
    same process "$pid" "$(main_pid)"
    is_up
    rm /etc/fragwatch/conf.d/wrong.toml
    systemctl restart fragwatch
    wait_for 60 is_up
}

check_rpm_erase() {
    rpm_tool -e --nodeps fragwatch
    fails systemctl is-active fragwatch
    fails systemctl cat fragwatch
    fails test -e /usr/bin/fragwatch
    grep -x 'retention = "30d"' "$config.rpmsave"
    test -s /var/lib/fragwatch/history.db
    local left
    left=$(find /usr /etc /lib -name '*fragwatch*' ! -name "${config##*/}.rpmsave" ! -path /etc/fragwatch \
        ! -path '/usr/local/*')
    same 'left behind' '' "$left"
}
