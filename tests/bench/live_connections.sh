#!/usr/bin/env bash
# Connections a second through topology/router.sh, in one run: routed without a balancer, xdplb with nat, xdplb
# with ipip, and nftables DNAT. By wrk with one request for each connection, by a generator that opens
# connections which the server closes (connections.rs), and by the same with resets. Prints a table. Needs root.
#
# Client, balancer, backend and servers share the CPUs: what a balancer costs is in the differences only.
#
#   ROUNDS: how often each is measured, 3 by default; the median counts
#   LENGTH: seconds for each measurement, 5 by default
set -euo pipefail
export XDPLB_PREFIX="${XDPLB_PREFIX:-xdplb-live}"
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/../e2e/lib.sh"

ROUNDS="${ROUNDS:-3}"
LENGTH="${LENGTH:-5}"
KINDS=(wrk close reset)
WAYS=(routed nat ipip nftables)
WEB=8080 PORT=9090
CONNECTIONS=1000000

need wrk wrk
need nft nftables
need cargo cargo
many_files

# Built before anything is up.
generator="$(cd "$ROOT" && cargo bench --no-run --bench connections --message-format=json-render-diagnostics |
	jq -r 'select(.reason == "compiler-artifact" and .target.name == "connections") | .executable')"
(cd "$ROOT" && cargo build --release)
# shellcheck disable=SC2119 # the servers are started below
begin
big_file

# As network cards have: see live.sh.
queues="$(nproc)"
for end in client/eth0 lb/eth0 lb/eth1 b1/eth0; do
	in_ns "${end%/*}" ethtool -L "${end#*/}" rx "$queues" tx "$queues"
	receives_redirects "${end%/*}" "${end#*/}"
done

# The backend itself, and a VIP for each way to it.
declare -A TO=([routed]="${V4[b1]}" [nat]=203.0.113.11 [ipip]=203.0.113.12 [nftables]=203.0.113.13)

# Ports enough: more of them, and of client addresses; none waits for its own TIME_WAIT.
sources="$CLIENT4"
for last in 10 11 12 13; do
	client_addresses "198.51.100.$last"
	ip_ns lb route add "198.51.100.$last/32" dev eth0
	sources+=",198.51.100.$last"
done
ns_sysctl client ipv4/ip_local_port_range "1024 65535"
ns_sysctl client ipv4/tcp_tw_reuse 1
for host in client b1; do
	ns_sysctl "$host" ipv4/tcp_max_tw_buckets 1000000
	ns_sysctl "$host" ipv4/tcp_syncookies 0
	ns_sysctl "$host" ipv4/tcp_max_syn_backlog 65536
	ns_sysctl "$host" core/somaxconn 65536
done
holds_vips b1 "${TO[ipip]}"
# Direct answers go back by lb's stack, from an address that its routes know nothing of.
for key in all eth0 eth1; do
	ns_sysctl lb "ipv4/conf/$key/rp_filter" 0
done

serve_http b1 "$WEB"
start_process b1 connections "$generator" --listen="0.0.0.0:$PORT"
started b1 connections "$PORT"
decapsulate b1 --from 10.0.1.1

FAMILIES=4
for mode in nat ipip; do
	cat <<-TOML
		[[service]]
		name = "$mode"
		vip = ["${TO[$mode]}"]
		protocol = "tcp"
		port = [$WEB, $PORT]
		forward = "$mode"
	TOML
	backend_tables - b1
done | write_config

# The table goes with lb.
nftables() {
	case "$1" in
	on) in_ns lb nft "table ip xdplb_live { chain prerouting { type nat hook prerouting priority dstnat; \
		ip daddr ${TO[nftables]} dnat to ${V4[b1]}; }; }" ;;
	off) in_ns lb nft delete table ip xdplb_live ;;
	esac
	# As long as xdplb remembers one that has ended.
	if [ "$1" = on ]; then
		ns_sysctl lb netfilter/nf_conntrack_tcp_timeout_time_wait 10
		ns_sysctl lb netfilter/nf_conntrack_tcp_timeout_close 10
	fi
}

# measure KIND ADDRESS: connections a second, and how many failed.
measure() {
	case "$1" in
	wrk)
		client wrk -t 2 -c 64 -d "${LENGTH}s" -H 'Connection: close' "http://$2:$WEB/" >"$WORK/wrk" 2>&1 || true
		awk '/Requests\/sec/ {rate = $2}
			/Socket errors/ {gsub(",", ""); failed += $4 + $6 + $8 + $10}
			/Non-2xx/ {failed += $NF}
			END {if (!rate) exit 1; print rate, failed + 0}' "$WORK/wrk" || {
			cat "$WORK/wrk" >&2
			return 1
		}
		;;
	*)
		client "$generator" --connect="$2:$PORT" --end="$1" --seconds="$LENGTH" --from="$sources" >"$WORK/made" 2>&1 ||
			true
		jq -r '"\(.connections / .seconds) \(.failed)"' "$WORK/made" || {
			cat "$WORK/made" >&2
			return 1
		}
		[ "$(jq .failed "$WORK/made")" = 0 ] || jq -c . "$WORK/made" >&2
		;;
	esac
}

# through WAY: all kinds of it, once.
through() {
	local kind
	for kind in "${KINDS[@]}"; do
		echo "$1 $kind $(measure "$kind" "${TO[$1]}")" >>"$WORK/results"
	done
}

for ((round = 1; round <= ROUNDS; round++)); do
	through routed
	start_or_end
	through nat
	through ipip
	stop_xdplb TERM
	nftables on
	through nftables
	nftables off
done

# result WAY KIND: the median rate, and the sum of the failed ones.
result() {
	awk -v way="$1" -v kind="$2" '$1 == way && $2 == kind {print $3, $4}' "$WORK/results" | sort -n |
		awk '{rate[NR] = $1; failed += $2} END {print rate[int((NR + 1) / 2)], failed}'
}

echo "Connections a second, $queues CPUs; median of $ROUNDS rounds of $LENGTH s; (n): failed, in all rounds."
printf '%-34s' "between client and backend"
for kind in "wrk, a request each" "opened and closed" "opened and reset"; do
	printf ' %22s' "$kind, x nft"
done
echo
for way in "${WAYS[@]}"; do
	case "$way" in
	routed) name="routed, no balancer" ;;
	nftables) name="nftables DNAT, conntrack" ;;
	*) name="xdplb, $way" ;;
	esac
	printf '%-34s' "$name"
	for kind in "${KINDS[@]}"; do
		read -r rate failed < <(result "$way" "$kind")
		read -r base _ < <(result nftables "$kind")
		printf ' %22s' "$(awk -v r="$rate" -v b="$base" -v f="$failed" \
			'BEGIN {printf "%.0f %.2f x%s", r, r / b, f ? " (" f ")" : ""}')"
	done
	echo
done
end
