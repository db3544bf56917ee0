#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Installs what is missing of the named system software by apt-get or dnf:
#
#   ci/packages.sh qemu nbdkit
#
# As root or with passwordless sudo it installs; otherwise it says what to install.
# It ends with 0 when everything is there, with 1 when something is missing still.
# NO_INSTALL=1 only looks and says.

set -eu

here=$(cd "$(dirname "$0")" && pwd)

say() { echo "packages: $*" >&2; }

has() { command -v "$1" >/dev/null; }

# Python.h of the interpreter that environments are made with.
has_headers() {
    local python
    python=$("$here/find-python.sh") &&
        "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null
}

present() {
    case $1 in
        python) "$here/find-python.sh" >/dev/null ;;
        qemu) has qemu-nbd && has qemu-img && has qemu-io ;;
        # Debian keeps administrators' commands off the path of others.
        e2fsprogs) has mkfs.ext4 || has /usr/sbin/mkfs.ext4 ;;
        xfsprogs) has mkfs.xfs || has /usr/sbin/mkfs.xfs ;;
        rpm) has rpmbuild && { has dnf || /usr/bin/python3 -c "import packaging" 2>/dev/null; } ;;
        createrepo) has createrepo_c ;;
        systemd) has systemd-analyze ;;
        headers) has_headers ;;
        libxml2) has xml2-config ;;
        libcurl) has curl-config ;;
        *) has "$1" ;;
    esac
}

# The packages that hold software $2, as package manager $1 names them.
packages() {
    case $1:$2 in
        apt-get:createrepo) echo "createrepo-c" ;;
        dnf:createrepo) echo "createrepo_c" ;;
        apt-get:python) echo "python3 python3-venv" ;;
        dnf:python) echo "python3" ;;
        apt-get:qemu) echo "qemu-utils" ;;
        dnf:qemu) echo "qemu-img" ;;
        # python3-packaging: without it rpmbuild finds no requirements of Python packages.
        apt-get:rpm) echo "rpm python3-packaging" ;;
        dnf:rpm) echo "rpm-build" ;;
        apt-get:nbdcopy) echo "libnbd-bin" ;;
        dnf:nbdcopy) echo "libnbd" ;;
        apt-get:headers) echo "python3-dev" ;;
        dnf:headers) echo "python3-devel" ;;
        apt-get:libxml2) echo "libxml2-dev" ;;
        dnf:libxml2) echo "libxml2-devel" ;;
        apt-get:libcurl) echo "libcurl4-openssl-dev libssl-dev" ;;
        dnf:libcurl) echo "libcurl-devel openssl-devel" ;;
        apt-get:gcc) echo "gcc libc6-dev" ;;
        dnf:shellcheck) echo "ShellCheck" ;;
        apt-get:prometheus) echo "prometheus" ;;
        dnf:prometheus) echo "golang-github-prometheus" ;;
        # Called the same by both.
        *:chromium) echo "$2" ;;
        *:curl) echo "$2" ;;
        *:dnf) echo "$2" ;;
        *:e2fsprogs) echo "$2" ;;
        *:gcc) echo "$2" ;;
        *:nbdkit) echo "$2" ;;
        *:openssl) echo "$2" ;;
        *:rpmlint) echo "$2" ;;
        *:shellcheck) echo "$2" ;;
        *:systemd) echo "$2" ;;
        *:xfsprogs) echo "$2" ;;
        *)
            say "unknown software: $2"
            exit 2
            ;;
    esac
}

missing() {
    local name
    for name in "$@"; do
        present "$name" || echo "$name"
    done
}

manager() {
    local name
    for name in apt-get dnf; do
        if has "$name"; then
            echo "$name"
            return
        fi
    done
}

# Run a command as root; fails without running it where that is not allowed.
as_root() {
    if [ -n "${NO_INSTALL:-}" ]; then
        return 1
    elif [ "$(id -u)" = 0 ]; then
        "$@"
    else
        has sudo && sudo -n "$@"
    fi
}

# Installs packages, as many as can be had: one that this system does not know would stop
# the others.
install() {
    local manager=$1 name
    shift
    if [ "$manager" = apt-get ]; then
        as_root apt-get update -q || say "going on with old package lists"
    fi
    install_now "$manager" "$@" && return
    [ $# -gt 1 ] || return
    say "trying one by one"
    for name in "$@"; do
        install_now "$manager" "$name" || say "$manager has no $name"
    done
}

install_now() {
    local manager=$1
    shift
    if [ "$manager" = apt-get ]; then
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -q -y --no-install-recommends "$@"
    else
        as_root dnf install -q -y "$@"
    fi
}

main() {
    local manager name wanted names
    mapfile -t wanted < <(missing "$@")
    [ "${#wanted[@]}" -gt 0 ] || return 0

    manager=$(manager)
    if [ -z "$manager" ]; then
        say "missing: ${wanted[*]}; neither apt-get nor dnf is here to install it"
        return 1
    fi
    names=()
    for name in "${wanted[@]}"; do
        name=$(packages "$manager" "$name") || return 2
        # shellcheck disable=SC2206 # one software may be several packages
        names+=($name)
    done
    if ! as_root true 2>/dev/null; then
        say "missing: ${wanted[*]}; to install it: sudo $manager install ${names[*]}"
        return 1
    fi

    say "installing ${names[*]} by $manager"
    install "$manager" "${names[@]}" >&2 || say "$manager failed"
    mapfile -t wanted < <(missing "${wanted[@]}")
    [ "${#wanted[@]}" -eq 0 ] || say "missing still: ${wanted[*]}"
    [ "${#wanted[@]}" -eq 0 ]
}

main "$@"
