# shellcheck shell=bash disable=SC2034
# The packages that the demo and the tests need on a Debian machine, in one place, and how it gets
# there. Sourced, never run. Rust itself is not installed from here: how somebody wants
# it is their business; where it is missing that is said.
#
# Each line: the file or program whose presence shows that the package is there, and
# the package.

BUILD_REQUIREMENTS="
	clang-19                    clang-19
	gcc                         gcc
	make                        make
	pkg-config                  pkg-config
	/usr/include/libelf.h       libelf-dev
	/usr/include/zlib.h         zlib1g-dev
	/usr/include/linux/bpf.h    linux-libc-dev
"

TOPOLOGY_REQUIREMENTS="
	ip                          iproute2
	ethtool                     ethtool
	nsenter                     util-linux
	mountpoint                  util-linux
	nginx                       nginx
	curl                        curl
	dig                         bind9-dnsutils
	dnsmasq                     dnsmasq-base
	iperf3                      iperf3
	jq                          jq
"

TEST_REQUIREMENTS="
	wrk                         wrk
	bpftool                     bpftool
	capsh                       libcap2-bin
	setpriv                     util-linux
	ping                        iputils-ping
	nft                         nftables
	traceroute                  traceroute
	tracepath                   iputils-tracepath
	tcpdump                     tcpdump
	bird                        bird2
	python3                     python3
	shellcheck                  shellcheck
	clang-format-19             clang-format-19
	git                         git
"

VM_REQUIREMENTS="
	qemu-system-x86_64          qemu-system-x86
	cpio                        cpio
	depmod                      kmod
	strip                       binutils
	sysctl                      procps
	xz                          xz-utils
"

# Debian keeps administrators' programs where a plain PATH may not look.
PATH="$PATH:/usr/sbin:/sbin"

present() {
	case "$1" in
	/*) [ -e "$1" ] ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

# missing_packages LIST...: one a line.
missing_packages() {
	local shown package
	while read -r shown package; do
		[ -n "$shown" ] || continue
		present "$shown" || echo "$package"
	done <<<"$*" | sort -u
}

# install_missing LIST...: nothing happens where nothing is missing, so that a second
# run neither waits for apt nor needs the network.
install_missing() {
	local packages
	packages="$(missing_packages "$@" | xargs)"
	[ -n "$packages" ] || return 0
	if ! command -v apt-get >/dev/null; then
		echo "$0: missing, and there is no apt-get to install it with. Debian calls it: $packages" >&2
		return 1
	fi
	echo "Installing $packages"
	# shellcheck disable=SC2086 # a list of packages
	if ! without_services apt_install $packages; then
		echo "$0: apt-get could not install everything. What is needed: apt-get install $packages" >&2
		return 1
	fi
	if command -v systemctl >/dev/null; then
		case " $packages " in
		*" nginx "*) systemctl disable nginx >/dev/null 2>&1 || true ;;
		esac
		case " $packages " in
		*" bird2 "*) systemctl disable bird >/dev/null 2>&1 || true ;;
		esac
	fi
}

# without_services COMMAND...: packages start the services they bring; these are wanted
# as programs in namespaces, not as services of this machine.
without_services() (
	if [ ! -e /usr/sbin/policy-rc.d ]; then
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT
		printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
		chmod +x /usr/sbin/policy-rc.d
	fi
	"$@"
)

apt_install() {
	local log status=0
	log="$(mktemp)"
	# The package lists may be absent, or older than the mirror: fetch them when it fails.
	apt_quietly install "$@" >"$log" 2>&1 ||
		{ apt_quietly update && apt_quietly install "$@"; } >"$log" 2>&1 ||
		status=$?
	[ "$status" -eq 0 ] || cat "$log" >&2
	rm -f "$log"
	return "$status"
}

apt_quietly() {
	DEBIAN_FRONTEND=noninteractive apt-get -y -qq -o DPkg::Lock::Timeout=300 \
		--no-install-recommends "$@" </dev/null
}

# ------------------------------------------------------------------------ rust
#
# sudo leaves PATH without the invoking user's ~/.cargo/bin, and what root builds in
# target/ that user could not build again. So cargo is found where the user has it, and
# runs as whoever owns the sources.

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Sets CARGO_USER, whom cargo runs as, and puts cargo on the PATH; fails where there is none.
find_cargo() {
	local home
	CARGO_USER=root
	if [ "$(id -u)" -eq 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
		CARGO_USER="$SUDO_USER"
	fi
	home="$(getent passwd "$CARGO_USER" | cut -d : -f 6)"
	if [ ! -x "$home/.cargo/bin/cargo" ] && [ -x /root/.cargo/bin/cargo ]; then
		CARGO_USER=root
		home=/root
	fi
	if [ -x "$home/.cargo/bin/cargo" ]; then
		PATH="$home/.cargo/bin:$PATH"
	fi
	if ! command -v cargo >/dev/null; then
		echo "$0: no cargo, neither on the PATH nor in $home/.cargo/bin: install Rust 1.87 or newer, https://rustup.rs" >&2
		return 1
	fi
}

# as_cargo_user COMMAND...: in the repository.
as_cargo_user() {
	if [ "$CARGO_USER" = root ]; then
		(cd "$REPOSITORY" && "$@")
	else
		(cd "$REPOSITORY" && runuser -u "$CARGO_USER" -- env PATH="$PATH" \
			HOME="$(getent passwd "$CARGO_USER" | cut -d : -f 6)" "$@")
	fi
}

target_directory() {
	as_cargo_user cargo metadata --format-version 1 --no-deps | jq -r .target_directory
}

# Builds the release and sets XDPLB to it, unless XDPLB names a binary already.
build_release() {
	if [ -n "${XDPLB:-}" ]; then
		[ -x "$XDPLB" ] || {
			echo "$0: XDPLB=$XDPLB is not a program" >&2
			return 1
		}
		return
	fi
	as_cargo_user cargo build --release --quiet || return
	XDPLB="$(target_directory)/release/xdplb"
}

# Builds the generator of tests/e2e/flood.sh and sets FLOOD to it, unless FLOOD names one already. As the
# tests are built, of whose parts it is made: its frames are sent by the kernel.
build_flood() {
	[ -z "${FLOOD:-}" ] || return 0
	find_cargo
	FLOOD="$(as_cargo_user cargo test --quiet --no-run --bench flood --message-format=json-render-diagnostics |
		jq -r 'select(.reason == "compiler-artifact" and .target.name == "flood") | .executable')"
	[ -n "$FLOOD" ]
}
