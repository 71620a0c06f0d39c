# shellcheck shell=bash
# What quickstart, test and check share: from a bare Debian or Ubuntu to a virtual environment
# and a guest image. To be sourced by bash, in the repository's root, with `set -eu`.
#
# Everything here is done once: a second call finds it done and is over in no time.

venv=.venv

# --- what the screen shows --------------------------------------------------------------------

say() { printf '==> %s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Run a command with its output kept back; it is shown, its end at least, if the command fails.
# On a terminal the seconds count up meanwhile.
quietly() { # LABEL COMMAND...
    local label=$1 began=$SECONDS status=0
    shift
    kept_output=$(mktemp)
    if [ -t 1 ]; then
        _count_seconds "$label" &
        ticker=$!
    else
        say "$label ..."
    fi
    "$@" >"$kept_output" 2>&1 </dev/null || status=$?
    stop_ticker
    [ ! -t 1 ] || printf '\r\033[K'
    if [ "$status" = 0 ]; then
        say "$label: done in $((SECONDS - began)) s"
        rm -f "$kept_output"
    else
        say "$label: failed after $((SECONDS - began)) s"
        tail -n "${failure_lines:-30}" "$kept_output" >&2
        rm -f "$kept_output"
    fi
    return "$status"
}

_count_seconds() {
    local began=$SECONDS
    while :; do
        printf '\r==> %s ... %s s ' "$1" "$((SECONDS - began))"
        sleep 1
    done
}

stop_ticker() {
    [ -n "${ticker:-}" ] || return 0
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    ticker=""
}

# --- the system's packages --------------------------------------------------------------------

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

# Have the password typed before anything runs with its output kept back.
_may_be_root() {
    [ "$(id -u)" = 0 ] && return
    command -v sudo >/dev/null && sudo -v
}

_update_package_lists() { as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q; }

_apt_install() {
    local options=(-q -y --no-install-recommends -o Dpkg::Use-Pty=0)
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$@"
}

_update_and_install() { _update_package_lists && _apt_install "$@"; }

install_packages() { # NAME...
    [ $# -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "this is not Debian or Ubuntu: install what corresponds to $*, then run this again"
    _may_be_root || die "these packages are missing, install them as root: apt-get install $*"
    local label="system packages: installing $*"
    # Without lists apt knows none of these; old ones name what the mirror no longer has.
    if apt-get install -qq --simulate "$@" >/dev/null 2>&1; then
        quietly "$label" _apt_install "$@" && return
    fi
    quietly "$label, with new package lists" _update_and_install "$@" ||
        die "apt could not install $*"
}

# The packages whose files are not here, one a line. What somebody installed otherwise serves.
missing_packages() { # run|dev
    local PATH=$PATH:/usr/sbin:/sbin:/usr/lib/systemd kind command package
    while read -r kind command package; do
        [ "$kind" = run ] || [ "$1" = dev ] || continue
        command -v "$command" >/dev/null || echo "$package"
    done <<-'END' | sort -u
		run qemu-system-x86_64 qemu-system-x86
		run qemu-img qemu-utils
		run curl curl
		run mcopy mtools
		run mkfs.vfat dosfstools
		run objcopy binutils
		run depmod kmod
		run tar tar
		run zstd zstd
		dev mmdebstrap mmdebstrap
		dev mount mount
		dev nft nftables
		dev cc gcc
		dev pasta passt
		dev ip iproute2
		dev openssl openssl
		dev systemd-socket-proxyd systemd
		dev pgrep procps
	END
    # What cc needs besides: for the clocks of hosts that chaos sets.
    [ "$1" = run ] || [ -e /usr/include/stdlib.h ] || echo libc6-dev
    # The default's file, or one that QEMU's descriptors name: see supervisor/qemu/firmware.py.
    # Ubuntu has no such package: there the tests of the page are skipped.
    if [ "$1" = dev ] && grep -q '^ID=debian' /etc/os-release; then
        command -v chromium >/dev/null || echo chromium
        # What drives it needs it, and says so to nobody.
        compgen -G '/usr/lib/*/libatomic.so.1' >/dev/null || echo libatomic1
    fi
    [ -r /usr/share/OVMF/OVMF_CODE.fd ] ||
        grep -qsi ovmf /usr/share/qemu/firmware/*.json || echo ovmf
}

set_up_packages() { # run|dev
    local missing
    mapfile -t missing < <(missing_packages "$1")
    install_packages "${missing[@]}"
}

# --- Python -----------------------------------------------------------------------------------

find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        # A name alone says little: it can be a shim that runs nothing.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            # Of a virtual environment, ours perhaps, the Python it was made with.
            "$candidate" -c 'import os, sys; print(os.path.realpath(sys._base_executable))'
            return
        fi
    done
    die "Python 3.11 or newer is needed; python3 is $(python3 --version 2>&1 || echo missing)." \
        "On Debian 12, Ubuntu 24.04 or newer: apt-get install python3 python3-venv"
}

# Debian's Python comes without what makes virtual environments.
_can_make_venvs() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# The virtual environment, with what it takes to run (`run`) or to work on the project (`dev`).
set_up_venv() { # run|dev
    local kind=$1 python stamp=$venv/.set-up-$1 wanted target=.
    [ "$kind" = run ] || target=".[$kind]"
    python=$(find_python)
    wanted=$(printf '%s\n' "$PWD" "$python" | cat - pyproject.toml constraints.txt | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        return
    fi
    _can_make_venvs "$python" ||
        install_packages "$("$python" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')"
    _can_make_venvs "$python" || die "$python cannot make virtual environments (venv, ensurepip)"
    # Made for another place or by another Python, it would not run.
    if [ "$(cat "$venv/.made-for" 2>/dev/null)" != "$PWD $python" ]; then
        rm -rf "$venv"
    fi
    [ -x "$venv/bin/python" ] || quietly "$venv: making it with $python" "$python" -m venv "$venv" ||
        die "$python could not make $venv"
    printf '%s\n' "$PWD $python" >"$venv/.made-for"
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check install -q --no-input)
    quietly "$venv: installing Python packages" "${pip[@]}" -c constraints.txt -e "$target" ||
        die "pip could not install this project into $venv"
    # Who can work on it can run it.
    printf '%s\n' "$wanted" | tee "$stamp" >"$venv/.set-up-run"
}

# --- the guest image --------------------------------------------------------------------------

_guest_sources() { find supervisor/image supervisor/agent/reference -type f -not -name '*.pyc' -print0 | sort -z; }

# img/ from supervisor/image and the reference agent. One that somebody built by hand, with an agent of their own
# perhaps, is left alone.
set_up_guest() {
    local stamp=img/.built-from wanted
    wanted=$(_guest_sources | xargs -0 sha256sum | sha256sum)
    if [ -e img/manifest.json ]; then
        if [ ! -e "$stamp" ]; then
            say "guest image: img/ was built by hand, it is used as it is"
            return
        fi
        [ "$(cat "$stamp")" != "$wanted" ] || return 0
    fi
    if ! apt-get install -qq --simulate systemd-boot-efi >/dev/null 2>&1; then
        _update_lists_for_guest
    fi
    say "guest image: building img/"
    local build=("$venv/bin/qmp-supervisor" image build --output img)
    "${build[@]}" || {
        # Most likely the lists are old and name packages that the mirror no longer has.
        _update_lists_for_guest
        "${build[@]}"
    } || die "the guest image could not be built"
    printf '%s\n' "$wanted" >"$stamp"
}

_update_lists_for_guest() {
    _may_be_root || die "apt's package lists are missing or old, run as root: apt-get update"
    quietly "package lists: fetching" _update_package_lists || die "apt-get update failed"
}

# --- checks -----------------------------------------------------------------------------------

# All of them, even if one finds something.
check_sources() {
    local found=0
    say "ruff check" && "$venv/bin/ruff" check . || found=1
    say "ruff format --check" && "$venv/bin/ruff" format --check . || found=1
    say "mypy" && "$venv/bin/mypy" || found=1
    say "lint-imports" && "$venv/bin/lint-imports" --no-cache || found=1
    return "$found"
}

# --- QEMUs of other versions ------------------------------------------------------------------

# Debian's newer QEMUs, by the suite and the one that its libraries are of.
other_qemus="bookworm-backports:bookworm trixie-backports:trixie"

# Where this machine gets Debian's packages from; empty if it gets none.
debian_mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' \
        2>/dev/null | grep -v security | head -n 1
}

# .qemu/SUITE/qemu-system-x86_64 for each of them: the packages are unpacked there, nothing is
# installed. A QEMU that cannot be had is no error here: the test that wants it says so. The same of
# libvirt's program that verifies SEV's measurements, and Prometheus' that reads metrics and rules.
set_up_qemus() {
    local mirror pair suite
    mirror=$(debian_mirror)
    _unpack_program virt-qemu-sev-validate libvirt-clients-qemu
    _unpack_program promtool promtool prometheus # its package has changed
    for pair in $other_qemus; do
        suite=${pair%:*}
        [ ! -x ".qemu/$suite/qemu-system-x86_64" ] || continue
        [ -n "$mirror" ] || { say "QEMU of $suite: this machine has no Debian mirror" && continue; }
        failure_lines=3 quietly "QEMU of $suite: unpacking it" \
            _unpack_qemu "$mirror" "$suite" "${pair#*:}" || true
    done
}

_unpack_program() { # PROGRAM PACKAGE...
    [ -e ".qemu/$1" ] || failure_lines=3 quietly "$1: unpacking it" _fetch_program "$@" || true
}

_fetch_program() { # PROGRAM PACKAGE...
    local program=$1 scratch package status=1
    shift
    scratch=$(mktemp -d)
    # Of this machine's own distribution, and one that needs nothing else of it.
    for package in "$@"; do
        (cd "$scratch" && apt-get download -q "$package" && dpkg-deb -x ./"$package"_*.deb .) || continue
        mkdir -p .qemu && cp "$scratch/usr/bin/$program" .qemu/ && status=0 && break
    done
    rm -rf "$scratch"
    return "$status"
}

_unpack_qemu() { # MIRROR SUITE BASE
    local mirror=$1 suite=$2 base=$3 root=.qemu/$2/root loader
    rm -rf ".qemu/$suite"
    mkdir -p ".qemu/$suite"
    # The packages with modules, because QEMU would load this machine's in their place, and abort.
    mmdebstrap --variant=extract --aptopt="APT::Default-Release \"$suite\"" \
        --include=qemu-system-x86,qemu-system-modules-opengl,qemu-system-modules-spice \
        "$base" "$root" "deb $mirror $base main" "deb $mirror $suite main" || return
    root=$PWD/$root
    loader=$(find "$root" -name ld-linux-x86-64.so.2 | head -n 1)
    # Only its own loader runs it with its own libraries.
    cat >".qemu/$suite/new" <<-END
		#!/bin/sh
		QEMU_MODULE_DIR=$root/usr/lib/x86_64-linux-gnu/qemu exec $loader \\
		    --library-path $root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu \\
		    $root/usr/bin/qemu-system-x86_64 -L $root/usr/share/qemu -L $root/usr/share/seabios "\$@"
	END
    chmod +x ".qemu/$suite/new"
    ".qemu/$suite/new" --version || return
    mv ".qemu/$suite/new" ".qemu/$suite/qemu-system-x86_64"
}
