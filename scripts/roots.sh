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
        # MNT_DETACH. A bare root has Python, and not always umount(8).
        python3 -c "import ctypes; exit(ctypes.CDLL(None).umount2(b\".\", 2))"
        exec "$@"
    ' "$1" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        HOME=${home:-/root} LANG=C.UTF-8 PIP_CERT=/etc/ssl/certs/ca-certificates.crt "${passed[@]}" \
        bash -c "$2"
}
