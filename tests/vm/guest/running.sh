# Checks of the installed service at work. Sourced by start.
# shellcheck shell=bash disable=SC2154

# The package as the host has it, of the version that is tested.
deb=$(echo /mnt/packages/fragwatch_*.deb)
hooks=$state/hooks

before_boot() {
    [ "$1" = 1 ] || return 0
    # What is recommended is not in apt's cache, and there is no network.
    echo 'APT::Install-Recommends "false";' >/etc/apt/apt.conf.d/90acceptance
    # The kernel is booted from outside, and this takes a minute.
    echo 'update_initramfs=no' >/etc/initramfs-tools/update-initramfs.conf
    everything_there >"$state/before"
}

# All that is on the disk, but for logs, caches and the books of apt and dpkg.
everything_there() {
    find / -xdev \( -path "$state" -o -path "$images" -o -path /var/log -o -path /var/cache -o -path /tmp \
        -o -path /var/tmp -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /boot \) -prune -o -print |
        sort
}

check_install() {
    fails command -v mkfs.xfs
    apt-get install -y "$deb"
    command -v mkfs.xfs
    same status 'install ok installed' "$(dpkg-query -W -f '${Status}' fragwatch)"
    dpkg --verify fragwatch
    same version "fragwatch $(dpkg-query -W -f '${Version}' fragwatch | sed 's/-.*//')" "$(fragwatch --version)"
    for file in /usr/share/man/man1/fragwatch.1.gz /usr/share/man/man1/fragwatch-scan.1.gz \
        /usr/share/man/man5/fragwatch.toml.5.gz /usr/share/man/man7/fragwatch-metrics.7.gz; do
        zcat "$file" | grep '^\.TH' >/dev/null
    done
}

check_service() {
    wait_for 60 is_up
    systemctl is-enabled fragwatch
    same unit /lib/systemd/system/fragwatch.service "$(systemctl show -P FragmentPath fragwatch)"
    same drop-ins '' "$(systemctl show -P DropInPaths fragwatch)"
    same restarts 0 "$(systemctl show -P NRestarts fragwatch)"
    same group /fragwatch.slice/fragwatch.service "$(systemctl show -P ControlGroup fragwatch)"
    # On a host that keeps its images elsewhere, or has none yet.
    same complaints '' "$(complaints | grep -v /var/lib/libvirt/images || true)"
}

check_unit() {
    local said
    # The line with which systemd 252 passes over what it does not know yet.
    said=$(systemd-analyze verify --man=no fragwatch.service fragwatch.slice fragwatch-defrag.slice 2>&1 |
        grep fragwatch | grep -v 'ignoring: notify-reload' || true)
    same complaints '' "$said"
    systemd-analyze security --no-pager --threshold=42 fragwatch.service | tail -n 1
}

check_drill() {
    local pid said
    said=$(fragwatch drill --act)
    echo "$said"
    fails grep -v -e '^ok ' -e '^ ' <<<"$said"
    grep 'counter confirms the drop' <<<"$said"
    # The daemon's own.
    wait_for 20 metric_is 1 fragwatch_klog_roundtrip_success
    journalctl -u fragwatch -o cat | grep -x '.*rescue armed'
    pid=$(main_pid)
    awk '/^VmLck/ { print; exit !($2 > 0) }' "/proc/$pid/status"
    # The 41st field is the policy; 1 is SCHED_FIFO. Names of threads may hold blanks.
    cat "/proc/$pid"/task/*/stat | sed 's/.*) //' | awk '$39 == 1 { found = 1 } END { exit !found }'
}

configure() {
    cat >"$fragment" <<TOML
[images]
paths = ["$images"]
min_size = "0B"
[sampling]
interval = "5s"
probe_timeout = "5s"
map_interval = "10s"
[thresholds]
warning = { extents = 200, growth_per_day = "never", time_to_critical = "never" }
hook = ["/usr/local/bin/acceptance-hook", "severity"]
[rescue]
quiet_after = "5s"
hook = ["/usr/local/bin/acceptance-hook", "incident"]
[defrag]
max_io_pressure = 100
hook_before = ["/usr/local/bin/acceptance-hook", "defrag"]
hook_after = ["/usr/local/bin/acceptance-hook", "defrag"]
TOML
    # And as operators do it.
    sed -i 's/^retention = "90d"/retention = "30d"/' "$config"
}

# A hook that writes down what it was told, and what it may do.
install_hook() {
    mkdir -p "$hooks"
    install -m 755 /mnt/guest/hook /usr/local/bin/acceptance-hook
}

counted() { metric_is "$(extents "$1")" fragwatch_image_extents "image=\"$1\""; }

check_sampling() {
    # After the daemon was started: its mount namespace must hear of it.
    mkfs.xfs -q /dev/vdc
    mkdir -p "$images"
    echo "/dev/vdc $images xfs nofail 0 0" >>/etc/fstab
    systemctl daemon-reload
    mount "$images"
    fragment_file "$images/idle.raw" 2048
    fragment_file "$images/used.raw" 2048
    truncate -s 1G "$images/empty.raw"
    [ "$(extents "$images/idle.raw")" -gt 1000 ]
    sleep infinity 9<>"$images/used.raw" &
    echo $! >"$state/holder"
    install_hook
    configure
    systemctl reload fragwatch
    for image in idle used empty; do wait_for 90 counted "$images/$image.raw"; done
    wait_for 90 metric_is 1 fragwatch_image_in_use "image=\"$images/used.raw\""
    wait_for 60 metric_is 0 fragwatch_image_in_use "image=\"$images/idle.raw\""
    wait_for 60 metric_above 1000 fragwatch_image_fragments "image=\"$images/idle.raw\""
    metric_above 0 fragwatch_filesystem_free_bytes "filesystem=\"$images\""
    metric_is 0 fragwatch_probe_stalled "filesystem=\"$images\""
    wait_for 20 metric_above 0 fragwatch_history_records_total
    metric_is 1 fragwatch_history_up
    # Growing while it looks.
    local before
    before=$(extents "$images/empty.raw")
    fragment_file "$images/empty.raw" 64
    [ "$(extents "$images/empty.raw")" -gt "$before" ]
    wait_for 60 counted "$images/empty.raw"
}

check_asking() {
    fragwatch status
    fragwatch status --json | jq -e '.images.total == 3 and .rescue.armed and (.worst | length) == 3'
    local code=0
    fragwatch check || code=$?
    same 'exit code of check' 1 "$code"
    fragwatch scan --json | jq -e '.images | length == 3'
    fragwatch scan --census "$images"
    fragwatch plan
    same socket 'root root 660' "$(stat -c '%U %G %a' /run/fragwatch/control.sock)"
    fails setpriv --reuid=nobody --regid=nogroup --clear-groups fragwatch status
}

# hook_told KIND LINE …: a run of the hook was told all of them.
hook_told() {
    local file line
    for file in "$hooks/$1".*.env; do
        for line in "${@:2}"; do grep -qxF -- "$line" "$file" 2>/dev/null || continue 2; done
        told=$file
        return 0
    done
    return 1
}

check_severity_hook() {
    wait_for 30 hook_told severity "FRAGWATCH_IMAGE=$images/idle.raw" FRAGWATCH_SEVERITY=warning \
        FRAGWATCH_SEVERITY_BEFORE=ok
    jq -e '.event == "severity" and .severity == "warning"' "${told%.env}.json"
    # Where it runs: /usr is read-only, and no other capability can be had.
    grep -x 'usr=read-only' "$told"
    grep -x 'no_new_privs=1' "$told"
}

check_reload_bad() {
    local pid interval
    pid=$(main_pid)
    interval=$(effective interval)
    echo 'intervall = "9s"' >/etc/fragwatch/conf.d/wrong.toml
    fails systemctl reload fragwatch
    systemctl is-active fragwatch
    journalctl -u fragwatch -o cat | grep intervall >/dev/null
    # And whoever does not ask systemd.
    kill -HUP "$pid"
    wait_for 20 metric_is 0 fragwatch_config_reload_success
    same process "$pid" "$(main_pid)"
    wait_for 30 counted "$images/idle.raw"
    rm /etc/fragwatch/conf.d/wrong.toml
    systemctl reload fragwatch
    wait_for 20 metric_is 1 fragwatch_config_reload_success
    same process "$pid" "$(main_pid)"
    same interval "$interval" "$(effective interval)"
}

check_forged_record() {
    local before
    before=$(drops)
    echo '<3>XFS: CPU 0/KVM(4711) possible memory allocation deadlock size 65768 in kmem_alloc (mode:0x2d40)' \
        >/dev/kmsg
    sleep 5
    same drops "$before" "$(drops)"
    metric_is 0 fragwatch_rescue_incidents_total 'trigger="kernel_log"'
}

has_dropped() { [ "$(drops)" -gt "$1" ]; }

check_rescue() {
    local before tasks
    # Something to drop.
    find / -xdev -printf '%s\n' >/dev/null
    before=$(drops)
    tasks=$(ls "/proc/$(main_pid)/task")
    insmod /mnt/says.ko
    rmmod says
    wait_for 20 has_dropped "$before"
    dmesg | grep 'possible memory allocation deadlock' | tail -n 1
    # The kernel names who did it.
    local by
    by=$(dmesg | sed -n 's/.*(\([0-9]*\)): drop_caches: 2$/\1/p' | tail -n 1)
    grep -x "$by" <<<"$tasks"
    wait_for 20 metric_is 1 fragwatch_rescue_incidents_total 'trigger="kernel_log"'
    wait_for 20 metric_above 0 fragwatch_rescue_actions_total 'step="drop_slab"' 'outcome="done"'
    metric_above 0 fragwatch_klog_matches_total 'rule="xfs_deadlock"'
    wait_for 60 metric_is 0 fragwatch_rescue_active
    fragwatch incidents 1
    fragwatch incidents --json | jq -e '.incidents[0] | .trigger == "kernel_log" and .failed == 0 and .actions > 0'
    fragwatch incidents 1 --json | jq -e '.evidence[0].buddyinfo | length > 0'
}

check_incident_hook() {
    wait_for 30 hook_told incident FRAGWATCH_EVENT=begin FRAGWATCH_TRIGGER=kernel_log
    wait_for 60 hook_told incident FRAGWATCH_EVENT=end FRAGWATCH_TRIGGER=kernel_log FRAGWATCH_FAILED=0
}

check_window() {
    local opens announced
    same 'before it' 0 "$(metric fragwatch_maintenance_window_open)"
    contents "$images/idle.raw" >"$state/idle.sum"
    contents "$images/used.raw" >"$state/used.sum"
    extents "$images/idle.raw" >"$state/idle.extents"
    extents "$images/used.raw" >"$state/used.extents"
    # The next full minute that is not all too near.
    opens=$((($(date +%s) + 80) / 60 * 60))
    cat >>"$fragment" <<TOML
[[maintenance.window]]
days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
start = "$(date -d "@$opens" +%H:%M)"
duration = "2h"
TOML
    systemctl reload fragwatch
    wait_for 10 metric_is "$opens" fragwatch_maintenance_next_window_timestamp_seconds
    same 'still' 0 "$(metric fragwatch_maintenance_window_open)"
    announced=$(fragwatch plan)
    echo "$announced"
    grep -q "$(date -d "@$opens" +%H:%M)" <<<"$announced"
    wait_for 100 metric_is 1 fragwatch_maintenance_window_open
    [ "$(date +%s)" -ge "$opens" ]
}

# defragmented IMAGE ENGINE
defragmented() {
    wait_for 180 metric_is 1 fragwatch_defrag_runs_total "engine=\"$2\"" 'outcome="improved"'
    same contents "$(cat "$state/$1.sum")" "$(contents "$images/$1.raw")"
    local before after
    before=$(cat "$state/$1.extents")
    after=$(extents "$images/$1.raw")
    echo "$1: $before extents before, $after after"
    [ "$after" -lt $((before / 4)) ]
    wait_for 30 counted "$images/$1.raw"
    wait_for 20 remembered "$1" "$2"
}

# remembered IMAGE ENGINE: the run is in the history.
remembered() {
    fragwatch history "$images/$1.raw" --json |
        jq -e --arg engine "$2" '.runs[0] | .engine == $engine and .outcome == "improved"'
}

check_xfs_fsr() { defragmented idle xfs_fsr; }

check_online() {
    kill -0 "$(cat "$state/holder")"
    defragmented used online
    fragwatch history "$images/used.raw" --json |
        jq -e '.runs[0] | .engine == "online" and .calls > 0 and .worst_call_seconds > 0'
    metric_above 0 fragwatch_defrag_extents_removed_total
}

check_defrag_hooks() {
    local image
    for image in idle used; do
        hook_told defrag FRAGWATCH_EVENT=defrag-before "FRAGWATCH_IMAGE=$images/$image.raw"
        grep -x 'usr=read-only' "$told"
        hook_told defrag FRAGWATCH_EVENT=defrag-after "FRAGWATCH_IMAGE=$images/$image.raw" \
            FRAGWATCH_OUTCOME=improved
    done
    test -e /usr/local/share/left-the-sandbox
}

is_another() { local pid; pid=$(main_pid); [ "$pid" != 0 ] && [ "$pid" != "$1" ]; }

check_watchdog() {
    local pid
    kill "$(cat "$state/holder")"
    pid=$(main_pid)
    kill -STOP "$pid"
    wait_for 100 is_another "$pid"
    journalctl -u fragwatch -o cat | grep -i 'watchdog timeout'
    wait_for 60 is_up
    wait_for 60 counted "$images/idle.raw"
    same restarts 1 "$(systemctl show -P NRestarts fragwatch)"
    # For the check after the reboot.
    past >"$state/past"
    known_images >"$state/known-images"
}

check_boot() {
    wait_for 60 is_up
    wait_for 60 counted "$images/idle.raw"
    same failed '' "$(systemctl list-units --failed --no-legend --plain)"
    same complaints '' "$(complaints)"
    same 'complaints when it ended' '' "$(journalctl -b -1 _SYSTEMD_UNIT=fragwatch.service -o cat --no-pager |
        sed -n '/ending$/,$p' | grep -e WARN -e ERROR || true)"
}

check_history() {
    # Told in any case: an image that was recorded twice can be without effect on what is asked here.
    known_images | quote
    same 'known images' "$(cat "$state/known-images")" "$(known_images)"
    same past "$(cat "$state/past")" "$(past)"
    fragwatch history "$images/idle.raw" | tail -n 4
    fragwatch incidents --json | jq -e '.incidents | length == 1'
    wait_for 60 metric_is 0 fragwatch_image_severity "image=\"$images/idle.raw\""
}
