#!/bin/sh
# Removes what a test process leaves behind: processes, swap space, mounts, files.
#
#   janitor.sh watch DIR…   wait until the owner is dead, then sweep
#   janitor.sh sweep DIR…   sweep those whose owner is dead
#
# DIR is a run directory (see rundir.rs); its name ends in .PID.START, which is its owner. A shell
# script, because it must outlive the test process and no test binary can be sure to hold it.
#
# Loop devices are not mentioned: they are set up to detach themselves with their last user.
set -u
PATH=$PATH:/usr/sbin:/sbin
# Ctrl-C, the end of a terminal and a runner's time-out are meant for the tests.
trap '' INT HUP TERM QUIT

# alive PID START: is the process still there, and is it going to stay?
alive() {
    read -r stat <"/proc/$1/stat" || return 1
    # Behind the name the fields are numbered as in proc(5).
    # shellcheck disable=SC2086
    set -- "$1" "$2" ${stat##*) }
    [ "${22}" = "$2" ] || return 1
    # A killed process whose thread hangs in a stalled file system lives on and keeps its pipes
    # open. It shows as a zombie, or by the SIGKILL (bit 8) that waits for it.
    case $3 in Z | X) return 1 ;; esac
    while read -r key mask; do
        case $key$mask in
            SigPnd:*[13579bdf]?? | ShdPnd:*[13579bdf]??) return 1 ;;
        esac
    done <"/proc/$1/status"
}

# owner NAME.PID.START: sets pid and start.
owner() {
    start=${1##*.}
    pid=${1%.*}
    pid=${pid##*[./]}
}

# mounts_below DIR: sets mounts, the newest first.
mounts_below() {
    mounts=
    while read -r _ _ _ _ point _; do
        case $point in "$1"/*) mounts="$point $mounts" ;; esac
    done </proc/self/mountinfo
}

# swap_off_below DIR: who swaps to a file keeps its file system busy.
swap_off_below() {
    [ -r /proc/swaps ] || return 0
    while read -r file _; do
        case $file in "$1"/*) swapoff "$file" ;; esac
    done </proc/swaps
}

sweep() {
    # More than once: what a killed process was about to do may still be done, and who has just
    # been killed still holds what he held. Once the directory is gone nothing can come back.
    tries=50
    while [ -d "$1" ] && [ $tries -gt 0 ]; do
        # First the processes: one of them may be what everything else waits for. A killed FUSE
        # server turns a stall into I/O errors.
        for record in "$1"/children/*; do
            owner "$record"
            alive "$pid" "$start" && kill -KILL "$pid"
        done
        swap_off_below "$1"
        mounts_below "$1"
        for point in $mounts; do
            umount --lazy --no-canonicalize "$point"
        done
        rm -rf --one-file-system -- "$1" || sleep 0.1
        tries=$((tries - 1))
    done
}

command=$1
shift
if [ "$command" = watch ]; then
    owner "$1"
    # The end of the input is the quick way to learn of the owner's death, but see alive.
    until timeout --signal=KILL 2 cat >/dev/null || ! alive "$pid" "$start"; do :; done
fi
for dir in "$@"; do
    [ -d "$dir" ] || continue
    owner "$dir"
    # At the end of a watch the owner may still be busy with dying.
    [ "$command" = sweep ] && alive "$pid" "$start" && continue
    sweep "$dir"
done
