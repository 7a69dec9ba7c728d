# shellcheck shell=bash
# The building blocks of every topology: namespaces, links, addresses and the servers
# that stand in for clients and backends. Sourced, never run. Which hosts there are
# and how they are wired belongs to router.sh and onearm.sh.
#
# A script that sources this sets TOPOLOGY before (router, onearm). All that is
# created carries the prefix, XDPLB_PREFIX or "xdplb": the namespaces, and one
# directory under /run with pid files, logs and the servers' configuration. So
# several may be up side by side, and taking one down needs no memory of putting it up.

PREFIX="${XDPLB_PREFIX:-xdplb}"
case "${TOPOLOGY:?set TOPOLOGY before sourcing topology/lib.sh}" in
router) STEM="$PREFIX" ;;
*) STEM="$PREFIX-$TOPOLOGY" ;;
esac
STATE="/run/$STEM-topology"
TOPOLOGY_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

die() {
	printf '%s: %s\n' "$(basename "$0")" "$*" >&2
	exit 1
}

need_root() {
	[ "$(id -u)" -eq 0 ] && return
	if command -v sudo >/dev/null; then
		die "network namespaces and BPF need root: run \"sudo $0 $*\""
	fi
	die "network namespaces and BPF need root, and sudo is not installed: become root with \"su -\" and run it again"
}

# need PROGRAM PACKAGE: a missing program is an error that says where it comes from.
need() {
	command -v "$1" >/dev/null || die "$1 is not installed: apt-get install $2"
}

# wait_for SECONDS COMMAND...: until the command succeeds; false when time is up.
wait_for() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$deadline" ] || return 1
		sleep 0.05
	done
}

# ------------------------------------------------------------------ namespaces

ns() {
	printf '%s-%s' "$STEM" "$1"
}

ns_exists() {
	[ -e "/run/netns/$(ns "$1")" ]
}

# in_ns NAME COMMAND...: with this machine's mounts. `ip netns exec` would mount a
# /sys of its own without bpffs, and the pins could not be seen.
in_ns() {
	local name="$1"
	shift
	nsenter --net="/run/netns/$(ns "$name")" -- "$@"
}

# ip_ns NAME ARGUMENTS...: ip(8) acting on a namespace.
ip_ns() {
	local name="$1"
	shift
	ip -n "$(ns "$name")" "$@"
}

# ns_sysctl NAME KEY VALUE
ns_sysctl() {
	# shellcheck disable=SC2016 # expanded by the inner shell, in the namespace
	in_ns "$1" sh -c 'echo "$2" >"/proc/sys/net/$1"' sh "$2" "$3"
}

add_ns() {
	local name
	for name in "$@"; do
		ip netns add "$(ns "$name")"
		echo "$name" >>"$STATE/hosts"
		# Addresses are ours to give: no seconds lost to duplicate detection.
		ns_sysctl "$name" ipv6/conf/default/accept_dad 0
		ns_sysctl "$name" ipv6/conf/all/accept_dad 0
		ns_sysctl "$name" ipv6/conf/default/accept_ra 0
		ip_ns "$name" link set lo up
	done
}

make_router() {
	local name
	for name in "$@"; do
		ns_sysctl "$name" ipv4/ip_forward 1
		ns_sysctl "$name" ipv6/conf/all/forwarding 1
	done
}

# ----------------------------------------------------------------------- links

# add_link A DEVICE_A B DEVICE_B: a veth pair between two namespaces.
add_link() {
	ip_ns "$1" link add "$2" type veth peer name "$4" netns "$(ns "$3")"
	plain_frames "$1" "$2"
	plain_frames "$3" "$4"
	ip_ns "$1" link set "$2" up
	ip_ns "$3" link set "$4" up
}

# What XDP rewrites must be what a wire would carry: checksums complete, since a
# partial one cannot be updated, and no segment above the MTU, since it cannot be redirected.
plain_frames() {
	in_ns "$1" ethtool -K "$2" tx off tso off gso off gro off >/dev/null
}

# receives_redirects NAME DEVICE: the far end of a link into which native XDP redirects.
# veth takes such frames only where NAPI runs at the receiver, which GRO turns on.
receives_redirects() {
	in_ns "$1" ethtool -K "$2" gro on >/dev/null
}

# receives_xdp_tx NAME DEVICE: the far end of a link that native XDP_TX answers into.
# There GRO is not enough: veth wants an XDP program at the receiver, one that passes.
receives_xdp_tx() {
	local object="$STATE/pass.o"
	if [ ! -e "$object" ]; then
		"$(find_clang)" -O2 -g -target bpf -Wall -Wextra -Werror -c "$TOPOLOGY_DIR/pass.bpf.c" -o "$object"
	fi
	ip_ns "$1" link set dev "$2" xdpdrv object "$object" section xdp
}

# The build's rule: $CLANG, else the newest clang there is.
find_clang() {
	local found
	if [ -n "${CLANG:-}" ]; then
		echo "$CLANG"
		return
	fi
	found="$(compgen -c clang- | grep -E '^clang-[0-9]+$' | sort -t- -k2 -n -r | head -n 1 || true)"
	[ -n "$found" ] || found="$(command -v clang || true)"
	[ -n "$found" ] || die "no clang to compile topology/pass.bpf.c with: apt-get install clang-19"
	echo "$found"
}

# add_addresses NAME DEVICE ADDRESS/LENGTH...
add_addresses() {
	local name="$1" device="$2" address
	shift 2
	for address in "$@"; do
		case "$address" in
		*:*) ip_ns "$name" -6 address add "$address" dev "$device" nodad ;;
		*) ip_ns "$name" address add "$address" dev "$device" ;;
		esac
	done
}

# add_switch NAME: a namespace that holds one bridge, br0.
add_switch() {
	add_ns "$1"
	# Without a querier, snooping would lose neighbour solicitations.
	ip_ns "$1" link add br0 type bridge mcast_snooping 0
	ip_ns "$1" link set br0 up
}

# plug SWITCH PORT NAME DEVICE: a link from a host's device to a port of a switch.
plug() {
	add_link "$1" "$2" "$3" "$4"
	ip_ns "$1" link set "$2" master br0
}

ensure_bpffs() {
	mountpoint -q /sys/fs/bpf && return
	mount -t bpf bpf /sys/fs/bpf ||
		die "/sys/fs/bpf is not mounted and could not be: mount -t bpf bpf /sys/fs/bpf"
}

# ------------------------------------------------------------------- processes

process_start_time() {
	# Field 22; the command's name, field 2, may hold spaces, so count from behind it.
	sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20
}

# start_process NAME LABEL COMMAND...: in a namespace, in the background, in a session of
# its own so that Ctrl-C reaches whoever started it and not the servers.
start_process() {
	local name="$1" label="$2" pid
	shift 2
	mkdir -p "$STATE/pids" "$STATE/logs"
	setsid nsenter --net="/run/netns/$(ns "$name")" -- "$@" \
		</dev/null >"$STATE/logs/$label" 2>&1 &
	pid=$!
	echo "$pid $(process_start_time "$pid")" >"$STATE/pids/$label"
}

# The pid of a recorded process that still lives. With its start time recorded too, a
# pid that has gone to somebody else since is never taken for ours.
process_alive() {
	local pid started
	[ -e "$STATE/pids/$1" ] || return 1
	read -r pid started <"$STATE/pids/$1" || return 1
	[ -n "$started" ] && [ "$(process_start_time "$pid")" = "$started" ] || return 1
	[ "$(sed 's/.*) //' "/proc/$pid/stat" | cut -c 1)" != Z ] || return 1
	echo "$pid"
}

process_gone() {
	! process_alive "$1" >/dev/null
}

# stop_process LABEL [SIGNAL]
stop_process() {
	local pid
	if pid="$(process_alive "$1")"; then
		kill -s "${2:-TERM}" "$pid" 2>/dev/null || true
		if ! wait_for 5 process_gone "$1"; then
			kill -s KILL "$pid" 2>/dev/null || true
			wait_for 5 process_gone "$1" || true
		fi
	fi
	rm -f "$STATE/pids/$1"
}

stop_processes() {
	local file
	[ -d "$STATE/pids" ] || return 0
	for file in "$STATE/pids"/*; do
		[ -e "$file" ] || continue
		stop_process "$(basename "$file")"
	done
}

# --------------------------------------------------------------------- servers

listens() {
	[ -n "$(in_ns "$1" ss -Hltn "sport = :$2")" ]
}

# started NAME LABEL PORT: waits until the server listens, or says what it said.
started() {
	if ! wait_for 10 listens "$1" "$3"; then
		printf '%s in %s does not listen on port %s. It said:\n' "$2" "$(ns "$1")" "$3" >&2
		cat "$STATE/logs/$2" >&2 || true
		exit 1
	fi
}

# The file that transfers are made with: 10 MiB that do not repeat, so that bytes lost,
# doubled or from elsewhere change its checksum.
big_file() {
	mkdir -p "$STATE/www"
	[ -e "$STATE/www/big" ] || head -c 10485760 /dev/urandom >"$STATE/www/big"
}

# serve_http NAME [PORT]: nginx. "/" answers with the host's name, "/client" with the
# address that the connection seems to come from, "/big" is the big file, "/big?rate=1m"
# the same at that many bytes a second; "/upload/NAME" takes a file.
serve_http() {
	local name="$1" port="${2:-8080}" dir
	need nginx nginx
	big_file
	dir="$STATE/nginx-$name-$port"
	mkdir -p "$dir" "$STATE/upload"
	cat >"$dir/nginx.conf" <<-CONF
		daemon off;
		user root;
		pid $dir/pid;
		worker_processes 1;
		worker_rlimit_nofile 65536;
		events { worker_connections 8192; }
		http {
			access_log off;
			default_type text/plain;
			# Keep-alive connections end now and then, so that new ones are chosen under load.
			keepalive_requests 100;
			client_body_temp_path $dir/body;
			proxy_temp_path $dir/proxy;
			fastcgi_temp_path $dir/fastcgi;
			uwsgi_temp_path $dir/uwsgi;
			scgi_temp_path $dir/scgi;
			server {
				listen 0.0.0.0:$port backlog=4096;
				listen [::]:$port ipv6only=on backlog=4096;
				root $STATE/www;
				location / { return 200 "$name\n"; }
				location = /client { return 200 "\$remote_addr\n"; }
				location = /big { limit_rate \$arg_rate; keepalive_requests 1000000; }
				location /upload/ {
					root $STATE;
					dav_methods PUT;
					client_max_body_size 20m;
				}
			}
		}
	CONF
	start_process "$name" "nginx-$name-$port" nginx -p "$dir" -e "$dir/error.log" -c "$dir/nginx.conf"
	started "$name" "nginx-$name-$port" "$port"
}

# serve_dns NAME: dnsmasq. The TXT record of whoami.test is the host's name.
serve_dns() {
	need dnsmasq dnsmasq-base
	start_process "$1" "dnsmasq-$1" dnsmasq --keep-in-foreground --conf-file=/dev/null --user=root \
		--pid-file= --no-resolv --no-hosts --no-poll --local=/test/ --txt-record="whoami.test,$1" \
		--log-facility=-
	started "$1" "dnsmasq-$1" 53
}

# serve_iperf NAME
serve_iperf() {
	need iperf3 iperf3
	start_process "$1" "iperf3-$1" iperf3 --server
	started "$1" "iperf3-$1" 5201
}

# -------------------------------------------------------------------- commands
#
# What router.sh and onearm.sh do on the command line. They give HOSTS (all namespaces),
# BACKENDS, VIP (for the examples) and wire(), which makes hosts and links.

usage() {
	cat <<-TEXT
		usage: $0 up [--serve] | serve | down | status | exec HOST COMMAND...

		  up       namespaces, links, addresses, routes; with --serve the servers as well
		  serve    nginx on port 8080, DNS on 53 and iperf3 on 5201, in each backend
		  down     stops and removes all of it
		  status   shows what is there
		  exec     runs a command in a host: ${HOSTS[*]}

		XDPLB_PREFIX (now "$PREFIX") names the set, so that several can be up.
		The configuration for it is topology/$TOPOLOGY.toml:
		  $0 exec lb target/release/xdplb --config topology/$TOPOLOGY.toml
		  $0 exec client curl http://$VIP/
	TEXT
}

up() {
	local host
	need ip iproute2
	need ethtool ethtool
	for host in "${HOSTS[@]}"; do
		if ns_exists "$host"; then
			die "namespace $(ns "$host") exists already: run \"$0 down\" first, or set XDPLB_PREFIX to put up another"
		fi
	done
	# Half a topology is of no use to anyone.
	trap down EXIT
	mkdir -p "$STATE"
	ensure_bpffs
	wire
	trap - EXIT
}

serve() {
	local backend
	ns_exists lb || die "the topology is not up: run \"$0 up\" first"
	for backend in "${BACKENDS[@]}"; do
		serve_http "$backend"
		serve_dns "$backend"
		serve_iperf "$backend"
	done
}

# Removes everything that carries the prefix; safe when nothing or half of it is there.
down() {
	local host device
	stop_processes
	# What a test has added since is in the file only; the file may be gone.
	for host in "${HOSTS[@]}" $(sort -u "$STATE/hosts" 2>/dev/null); do
		ns_exists "$host" || continue
		# A namespace outlives its name while a process is in it; its links must not.
		for device in $(ip_ns "$host" -o link show type veth 2>/dev/null | sed -E 's/^[0-9]+: ([^@:]+).*/\1/'); do
			ip_ns "$host" link del "$device" 2>/dev/null || true
		done
		ip netns del "$(ns "$host")"
	done
	rm -rf "$STATE"
}

# What there is of it; false when nothing is up.
status() {
	local host file label pid any=1
	for host in "${HOSTS[@]}"; do
		ns_exists "$host" || continue
		any=0
		printf '%s\n' "$(ns "$host")"
		ip_ns "$host" -br address show scope global | sed 's/^/    /'
		ip_ns "$host" -o link show | sed -nE 's/^[0-9]+: ([^@:]+).*prog\/(xdp[a-z]*) id ([0-9]+).*/    \1 has an XDP program (\2, id \3)/p'
	done
	if [ "$any" -ne 0 ]; then
		echo "$TOPOLOGY: not up (prefix \"$PREFIX\")"
		return 1
	fi
	for file in "$STATE/pids"/*; do
		[ -e "$file" ] || continue
		label="$(basename "$file")"
		if pid="$(process_alive "$label")"; then
			echo "$label runs, pid $pid"
		else
			echo "$label has ended: see $STATE/logs/$label"
		fi
	done
}

topology_main() {
	case "${1:-}" in
	up | serve | down | status | exec) need_root "$@" ;;
	-h | --help | help)
		usage
		exit
		;;
	*)
		usage >&2
		exit 2
		;;
	esac
	case "$1" in
	up)
		case "${2:-}" in
		'' | --serve) ;;
		*) die "up takes --serve or nothing, not \"$2\"" ;;
		esac
		up
		if [ "${2:-}" = --serve ]; then
			trap down EXIT
			serve
			trap - EXIT
		fi
		;;
	serve) serve ;;
	down) down ;;
	status) status ;;
	exec)
		[ $# -ge 3 ] || die "exec takes a host and a command: $0 exec client curl http://$VIP/"
		ns_exists "$2" || die "no namespace $(ns "$2"): the hosts are ${HOSTS[*]}, and \"$0 up\" makes them"
		shift
		in_ns "$@"
		;;
	esac
}
