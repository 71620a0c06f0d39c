# shellcheck shell=bash
# Bare systems in directories of their own. To be sourced after lib.sh, by root.

roots=${XDG_CACHE_HOME:-$HOME/.cache}/qmp-supervisor/roots

# What this machine needs to reach its mirrors, the root needs as well.
let_out() { # ROOT
    local file
    cp /etc/resolv.conf /etc/hosts "$1/etc/"
    cp /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
    for file in /etc/pip.conf /etc/apt/apt.conf.d/*; do
        [ ! -f "$file" ] || [ -e "$1$file" ] || cp "$file" "$1$file"
    done
}

# A command in the root, with a fresh HOME and none of our environment but what leads out.
in_root() { # ROOT COMMAND
    local passed
    mapfile -t passed < <(env | grep -E '^(PIP_|[a-z]+_proxy=)')
    unshare --mount --propagation private bash -c '
        set -e
        root=$0
        mount --bind "$root" "$root"
        for place in proc sys dev; do mount --rbind "/$place" "$root/$place"; done
        mount -t tmpfs -o mode=1777 tmp "$root/tmp"
        # Not a mere chroot, in which no user namespace could be made.
        cd "$root"
        pivot_root . .
        # A bare root has one or the other. 2 is MNT_DETACH.
        umount --lazy . 2>/dev/null ||
            python3 -c "import ctypes; exit(ctypes.CDLL(None).umount2(b\".\", 2))"
        exec "$@"
    ' "$1" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        HOME=${home:-/root} LANG=C.UTF-8 PIP_CERT=/etc/ssl/certs/ca-certificates.crt "${passed[@]}" \
        bash -c "$2"
}

# Start systemd in the root, in namespaces of its own: it has the loopback interface alone, and
# control groups without controllers where the host's are of version 1. `booted` is its pid here.
boot() { # ROOT
    local group
    group=$(_unified_groups)/qmp-supervisor-$$
    mkdir -p "$group"
    setsid bash -c '
        echo $$ >"$1/cgroup.procs"
        exec unshare --mount --pid --fork --kill-child --ipc --uts --net --cgroup \
            --propagation private bash -c "$2" "$0"
    ' "$1" "$group" '
        set -e
        root=$0
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount -t sysfs -o ro sys "$root/sys"
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
        mount -t tmpfs -o mode=755 dev "$root/dev"
        for node in null zero full random urandom tty; do
            touch "$root/dev/$node"
            mount --bind "/dev/$node" "$root/dev/$node"
        done
        mkdir "$root/dev/pts" "$root/dev/shm"
        mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
        mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
        mount -t tmpfs -o mode=755 run "$root/run"
        ln -s pts/ptmx "$root/dev/ptmx"
        ln -s /proc/self/fd "$root/dev/fd"
        ip link set lo up
        hostname booted
        cd "$root"
        pivot_root . .
        umount --lazy .
        exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            /lib/systemd/systemd
    ' </dev/null >"$1.console" 2>&1 &
    container=$!
    # Its own first process is the only child of unshare, which has taken the place of setsid.
    until booted=$(pgrep -P "$container") && [ "$(cat "/proc/$booted/comm")" = systemd ]; do
        kill -0 "$container" 2>/dev/null || die "systemd did not start, see $1.console"
        sleep 0.1
    done
    # Degraded is fine: a bare root cannot load modules. At first there is no bus to ask.
    until in_booted 'systemctl is-system-running' 2>/dev/null | grep -q -e running -e degraded; do
        kill -0 "$container" 2>/dev/null || die "systemd did not come up, see $1.console"
        sleep 0.2
    done
}

_unified_groups() { findmnt -n -o TARGET -t cgroup2 | head -n 1; }

# A command in the booted root, as root.
in_booted() { # COMMAND
    nsenter --target "$booted" --mount --uts --ipc --net --pid --cgroup --root --wd \
        /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive bash -c "$1" </dev/null
}

# Wait until it has powered off, which somebody has asked it to do.
powered_off() {
    wait "$container" || true
    booted="" container=""
    rmdir "$(_unified_groups)/qmp-supervisor-$$" 2>/dev/null || true
}

# End a root that is still booted.
unplug() {
    [ -n "${booted:-}" ] || return 0
    kill -KILL "$booted" 2>/dev/null || true
    powered_off
}
