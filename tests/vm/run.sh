#!/usr/bin/env bash
# Runs scenarios on another kernel than this machine's: one of Debian's, in a virtual
# machine, with KVM where there is one. Where there is none everything is emulated. Inside are the
# host's programs, the release binary and the topologies.
#
#   tests/vm/run.sh KERNEL [SCENARIO...]     e.g. tests/vm/run.sh 6.1 packets nat_http
#
# KERNEL is a version in Debian's archive; a SCENARIO is from here or from tests/e2e. Without,
# those below. XDPLB names the binary, the release build by default; TEST_PROGRAMS a file with the tests'
# programs, a name and a path in each line, built by default; ACCELERATION is kvm or tcg, which emulates.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ROOT="$(cd "$HERE/../.." && pwd)"
# shellcheck source=topology/requirements.sh
. "$ROOT/topology/requirements.sh"
# shellcheck source=tests/vm/packages.sh
. "$HERE/packages.sh"

# What each kernel is asked. Emulated, everything takes ten times as long and more: of the
# end-to-end tests one, beside what only these kernels have modules for.
SCENARIOS=(
	packets
	nat_http
	protection
	dsr_kernel_tunnels
	vlan_trunk
)
# Seconds after which a machine hangs rather than works; with a core to itself it takes a third of that.
LIMIT=2700

# The device alone proves nothing: in some virtual machines it is there, and nothing boots by it.
if [ -z "${ACCELERATION:-}" ]; then
	ACCELERATION=tcg
	if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then
		ACCELERATION=kvm:tcg
	fi
fi

work="$(mktemp -d /tmp/xdplb-vm.XXXXXX)"
MACHINE=

finish() {
	local status=$?
	trap - EXIT
	if [ -n "$MACHINE" ]; then
		kill -s TERM "$MACHINE" 2>/dev/null || true
		wait "$MACHINE" 2>/dev/null || true
	fi
	rm -rf "$work"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

die() {
	echo "FAIL Linux ${version:-}: $*"
	echo "0 passed, 1 failed"
	exit 1
}

# The host's programs run inside, so the machine has to be of the host's kind.
[ "$(uname -m)" = x86_64 ] || die "tests/vm knows how to boot x86-64 kernels only, and this machine is $(uname -m)"
[ $# -gt 0 ] || {
	echo "usage: $0 KERNEL [SCENARIO...]     e.g. $0 6.1 packets nat_http" >&2
	exit 2
}
version="$1"
shift
[ "$(id -u)" -eq 0 ] || die "the host's files are read as root: run \"sudo $0 $version $*\""
[ $# -eq 0 ] || SCENARIOS=("$@")
files=()
for name in "${SCENARIOS[@]}"; do
	file="tests/vm/$name.sh"
	[ -e "$ROOT/$file" ] || file="tests/e2e/$name.sh"
	[ -e "$ROOT/$file" ] || die "no scenario \"$name\", neither in tests/vm nor in tests/e2e"
	files+=("$file")
done

# --------------------------------------------------------------------- the machine

# programs DIRECTORY: the release binary and the tests of the XDP programs, without what only a
# debugger reads.
programs() {
	local directory="$1" name executable
	build_release
	mkdir "$directory"
	strip -o "$directory/xdplb" "$XDPLB"
	if [ -z "${TEST_PROGRAMS:-}" ]; then
		TEST_PROGRAMS="$work/programs"
		as_cargo_user cargo test --quiet --no-run --test packets --test decap --message-format=json-render-diagnostics |
			jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable != null) |
				"\(.target.name) \(.executable)"' >"$TEST_PROGRAMS"
	fi
	for name in packets decap; do
		executable="$(sed -n "s/^$name //p" "$TEST_PROGRAMS")"
		strip -o "$directory/$name" "$executable"
	done
}

# initramfs DIRECTORY: what the machine starts with, as an archive on standard output.
initramfs() {
	local directory="$1" name file
	mkdir -p "$directory"/{bin,boot,xdplb/tests}
	cp "$HERE/init" "$directory/init"
	cp "$vm/busybox/bin/busybox" "$directory/bin/busybox"
	modprobe --dirname "$vm/$version" --set-version "$release" --show-depends --all virtio_pci 9pnet_virtio 9p overlay |
		awk '$1 == "insmod" && !seen[$2]++ { printf "%s %s/boot/%03d.ko\n", $2, directory, NR }' directory="$directory" |
		while read -r name file; do
			case "$name" in
			*.xz) xz -dc "$name" >"$file" ;;
			*) cp "$name" "$file" ;;
			esac
		done
	cp -r "$ROOT/topology" "$directory/xdplb/topology"
	cp -r "$ROOT/tests/e2e" "$ROOT/tests/vm" "$directory/xdplb/tests"
	programs "$directory/xdplb/bin" >&2
	printf '%s\n' "${files[@]}" >"$directory/xdplb/scenarios"
	(cd "$directory" && find . | cpio --quiet -o -H newc)
}

# boot: returns when the machine is off; its output, without the kernel's, goes to
# $work/output and is shown meanwhile, the kernel's to $work/console.
boot() {
	local viewer
	touch "$work/output"
	# panic=-1 and -no-reboot: a panic ends the machine. The rest saves seconds.
	timeout --kill-after=10 "$LIMIT" qemu-system-x86_64 \
		-name "xdplb-vm-$version" -machine "pc,accel=$ACCELERATION" -cpu max -smp 2 -m 1536 \
		-nodefaults -no-user-config -display none -no-reboot \
		-kernel "$vm/$version/vmlinuz" -initrd "$work/initramfs" \
		-append "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on" \
		-serial "file:$work/console" -serial "file:$work/output" \
		-virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
		-virtfs "local,path=$vm/$version/lib/modules,mount_tag=modules,security_model=none,readonly=on" \
		</dev/null 2>"$work/qemu" &
	MACHINE=$!
	tail -f -n +1 --pid="$MACHINE" "$work/output" &
	viewer=$!
	wait "$MACHINE" && status=0 || status=$?
	MACHINE=
	wait "$viewer"
}

# ------------------------------------------------------------------------- the run

install_missing "$BUILD_REQUIREMENTS" "$TOPOLOGY_REQUIREMENTS" "$TEST_REQUIREMENTS" "$VM_REQUIREMENTS" || die "packages are missing"
find_cargo || die "cargo is missing"
vm="$(target_directory)/vm"
fetch_kernel "$version" "$vm/$version" || die "no kernel to boot"
fetch_busybox "$vm/busybox" || die "no busybox"
release="$(cat "$vm/$version/release")"
initramfs "$work/root" >"$work/initramfs"
boot

result="$(tail -n 1 "$work/output")"
if ! grep -qE '^[0-9]+ passed, [0-9]+ failed$' <<<"$result"; then
	case "$status" in
	0) reason="the machine went off without a result" ;;
	124 | 137) reason="the machine was not done after $LIMIT s" ;;
	*) reason="qemu ended with status $status" ;;
	esac
	echo "FAIL Linux $version: $reason"
	echo "  the last of its console:"
	cat "$work/qemu" "$work/console" | tail -n 40 | sed 's/^/    /'
	result="$(grep -c '^PASS ' "$work/output" || true) passed, $(($(grep -c '^FAIL ' "$work/output" || true) + 1)) failed"
	echo "$result"
fi
read -r passed _ failed _ <<<"$result"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
