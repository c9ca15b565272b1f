# Sourced by the scripts beside it. Finds the tree, the compilers, and says what is missing.

root_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
rust_min=1.95.0
export PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf '== %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# at_least VERSION MINIMUM
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

cargo_is_new() { have cargo && at_least "$(cargo --version 2>/dev/null | cut -d' ' -f2)" "$rust_min"; }

# Takes the cargo of PATH if it is new enough, else a toolchain that rustup has beside its default.
use_rust() {
    cargo_is_new && return 0
    have rustup || return 1
    local toolchain
    for toolchain in $(rustup toolchain list 2>/dev/null | cut -d' ' -f1); do
        if RUSTUP_TOOLCHAIN=$toolchain cargo_is_new; then
            export RUSTUP_TOOLCHAIN=$toolchain
            return 0
        fi
    done
    return 1
}

# Pinned maps and links need the BPF file system; systemd mounts it, a container or a minimal system may not have.
mount_bpffs() {
    [ "$(stat -f -c %T /sys/fs/bpf 2>/dev/null)" = bpf_fs ] && return 0
    mount -t bpf bpf /sys/fs/bpf || die "the BPF file system cannot be mounted on /sys/fs/bpf"
}

need_root() {
    [ "$(id -u)" = 0 ] || die "$1 needs root: it loads kernel programs and makes network namespaces"
}
