#!/usr/bin/env bash
# A file with one IPv4 service becomes one that needs larger tables of every kind, and back, while
# wrk and transfers run: not one failed request, and not a byte that is missing. Where the tables cannot
# be made larger, the reload is refused and everything goes on.
#
# E2E_SECONDS: how long wrk runs, 30 by default.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need wrk wrk
need prlimit util-linux
begin --serve
many_files

# Claims of full-nat have room for 65,536 connections in any case.
CONNECTIONS=100000

small_file() {
	cat <<-TOML
		[[service]]
		name = "web"
		vip = "$VIP4"
		protocol = "tcp"
		port = 80
		forward = "nat"
	TOML
	FAMILIES=4 backend_tables 8080 b1
	FAMILIES=4 backend_tables 8080 b2
}

# Both families, full-nat, more backends than most files have, a firewall and a policy.
large_file() {
	local n port
	web_service b1 b2
	FORWARD=full-nat service full '"tcp"' 81 5-tuple 8080 b3
	for n in 1 2 3 4; do
		printf '[[service]]\nname = "crowd%s"\nvip = "%s"\nprotocol = "tcp"\nport = %s\nforward = "nat"\n' \
			"$n" "$VIP4" $((9000 + n))
		for port in $(seq 1 55); do
			printf '[[service.backend]]\nname = "c%s-%s"\naddress = "%s"\nport = %s\n' \
				"$n" "$port" "${V4[b1]}" $((10000 + port))
		done
	done
	printf '[firewall]\n'
	for n in $(seq 0 199); do
		printf '[[firewall.rule]]\naction = "deny"\nsource = "192.0.2.%s"\nprotocol = "tcp"\nport = "80-90"\n' "$n"
	done
	printf '[[dos]]\nname = "many"\nprotocol = "udp"\nlimit = 1000000\n'
}

times_larger() {
	grep -c 'made larger' "$LOG" || true
}

pins() {
	find "$PIN_DIR" -type f | sort | xargs
}

small_file | write_config
start_or_end
pinned="$(pins)"
small="$(in_ns lb "$XDPLB" check --config "$CONFIG" --json | jq .memory.bytes)"

# ---- it cannot
cannot_grow() {
	# Enough for the file, and none for maps.
	prlimit --pid "$XDPLB_PID" --nofile=$(($(find "/proc/$XDPLB_PID/fd" | wc -l) + 8)):
}
start_transfer refused "$VIP4" 3m
large_file | write_config
large="$(in_ns lb "$XDPLB" check --config "$CONFIG" --json | jq .memory.bytes)"
check "the larger file takes more memory ($small and $large bytes)" test "$large" -gt "$small"
check "descriptors run short" cannot_grow
check_fails "a reload that needs larger tables is refused without them" reload_xdplb
said="$(grep 'reload refused' "$LOG")"
check_contains "the log says which" "$said" 'needs larger tables \(.*conntrack6.*\)'
check_contains "and what to do" "$said" 'raise the limit of open files.*or stop xdplb'
check_equal "the service goes on" "$(who_answers "$VIP4" 20)" "b1 b2"
check_fails "and there is no other" get "$VIP6"
check_equal "nothing is pinned beside" "$(pins)" "$pinned"
check "descriptors again" prlimit --pid "$XDPLB_PID" --nofile=1024:
check_transfer "the transfer ends whole" refused

# ---- it can
seconds="${E2E_SECONDS:-30}"
client wrk -t 2 -c 100 -d "${seconds}s" --timeout 10s "$(url "$VIP4")" >"$WORK/wrk" 2>&1 &
wrk=$!
start_transfer v4 "$VIP4" 1m
sleep 1
check "a reload that needs larger tables" reload_xdplb
check_equal "they were made larger at once" "$(times_larger)" 1
check_equal "the pins are the same files" "$(pins)" "$pinned"
check "wrk still runs" kill -0 "$wrk"
check_equal "IPv6 is balanced" "$(who_answers "$VIP6" 20)" "b1 b2"
check_equal "full-nat is balanced over IPv4" "$(get "$VIP4:81")" b3
check_equal "full-nat is balanced over IPv6" "$(get "[$VIP6]:81")" b3
check_equal "the firewall is in force" "$(look firewall --json | jq length)" 201
for round in 1 2; do
	small_file | write_config
	check "back to the small file, $round" reload_xdplb
	check_fails "IPv6 has gone, $round" get "$VIP6"
	large_file | write_config
	check "to the large file again, $round" reload_xdplb
	check_equal "IPv6 is back, $round" "$(who_answers "$VIP6" 20)" "b1 b2"
done
check_equal "no table has to be made larger twice" "$(times_larger)" 1
check_transfer "the IPv4 transfer ends whole" v4
wait "$wrk" || true
check_wrk "wrk over all that" "$WORK/wrk"
check "connections are counted" test "$(look stats --json | jq '[.. | .opened? // empty] | add')" -gt 100
end
