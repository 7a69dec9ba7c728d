#!/usr/bin/env bash
# Floods from random sources, as fast as one CPU can, while 1,000 connections transfer data and 50
# new ones a second are made: SYNs with nat and full-nat, datagrams, fragments, ten million frames
# each, and fewer of them with IPv6, l2, ipip and gue. No established connection breaks, and of the new ones 99 %
# are served. Prints the figures, and a table of them at the end.
#
# Nothing of it gets out: what answers the sources ends at the client, which is no router, or in lb,
# which has no route to them.
#
#   FLOOD_FRAMES: how many frames, 10000000 by default
#   FLOOD: the generator, built with cargo by default
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=topology/requirements.sh
. "$ROOT/topology/requirements.sh"

FRAMES="${FLOOD_FRAMES:-10000000}"
ESTABLISHED=1000
RATE=50

need python3 python3
need taskset util-linux
need nft nftables
build_flood
many_files

# The generator has a CPU, which it shares with the clients, so that their SYNs are counted with the
# flood's. Servers and all else run on the others.
mapfile -t cpus < <(python3 -c 'import os; print(*sorted(os.sched_getaffinity(0)), sep="\n")')
FLOOD_CPU="${cpus[1]:-${cpus[0]}}"
others="$(printf '%s\n' "${cpus[@]}" | grep -vx "$FLOOD_CPU" | paste -sd, || true)"
taskset -cp "${others:-$FLOOD_CPU}" $$ >/dev/null

begin --serve

# A queue for each CPU, at both ends of each link, as network cards have: frames that many CPUs put
# into one queue are worked off by one of them, which loses most.
queues="$(nproc --all)"
[ "$queues" -le 32 ] || queues=32
for end in client/eth0 lb/eth0 lb/eth1 b1/eth0; do
	host="${end%/*}" device="${end#*/}"
	in_ns "$host" ethtool -L "$device" rx "$queues" tx "$queues"
	# /sys shows the devices of the namespace that it was mounted in.
	ip netns exec "$(ns "$host")" python3 - "$device" "$queues" <<-'PYTHON'
		import sys
		for queue in range(int(sys.argv[2])):
		    with open(f"/sys/class/net/{sys.argv[1]}/queues/tx-{queue}/xps_cpus", "w") as file:
		        file.write(f"{1 << queue:x}")
	PYTHON
done

# A second backend in the same host: who is sent to the wrong one of the two gets a reset.
V4[twin]=10.0.1.3 V6[twin]=2001:db8:b1::3
add_addresses b1 eth0 "${V4[twin]}/24" "${V6[twin]}/64"

declare -A LAST=([nat]=21 [l2]=22 [full-nat]=23 [ipip]=24 [gue]=25)
declare -A PORT=([nat]=80 [l2]=8080 [full-nat]=80 [ipip]=8080 [gue]=8080)

# vip MODE FAMILY
vip() {
	[ "$2" = 4 ] && echo "203.0.113.${LAST[$1]}" || echo "2001:db8:1::${LAST[$1]}"
}

# of MODE: for service, from here on.
of() {
	FORWARD="$1" VIP4="$(vip "$1" 4)" VIP6="$(vip "$1" 6)"
}

{
	of nat
	service nat '["tcp", "udp"]' 80 5-tuple 8080 b1 twin
	service echo '"udp"' 7 5-tuple - b1 twin
	for mode in l2 ipip gue; do
		of "$mode"
		FAMILIES=4 service "$mode" '"tcp"' 8080 5-tuple - b1
	done
	of full-nat
	service full-nat '["tcp", "udp"]' 80 5-tuple 8080 b1 twin
} >"$WORK/services"
write_config <"$WORK/services"
holds_vips b1 "$(vip l2 4)" "$(vip ipip 4)" "$(vip gue 4)"
# Direct answers go back by lb's stack, from an address that its routes know nothing of.
for key in all eth0 eth1; do
	ns_sysctl lb "ipv4/conf/$key/rp_filter" 0
done
start_process b1 echo python3 "$HERE/udp.py" echo 7 "${V4[b1]}" "${V4[twin]}"
start_process b1 swallow "$FLOOD" --swallow --device=eth0
servers_ready() {
	grep -q ready "$STATE/logs/echo" && grep -q swallowing "$STATE/logs/swallow"
}
wait_for 10 servers_ready || {
	fail "servers" "$(cat "$STATE/logs/echo" "$STATE/logs/swallow")"
	end
}
start_or_end
NEXT_HOP="$(ip_ns lb -j link show eth0 | jq -r '.[0].address')"

# start_clients PROTOCOL ADDRESS PORT
start_clients() {
	start_process client "clients-$1" taskset -c "$FLOOD_CPU" \
		python3 "$HERE/flood.py" "$1" "$2" "$3" "$STATE/www/big" "$ESTABLISHED" "$RATE"
	wait_for 60 grep -q ready "$STATE/logs/clients-$1" || {
		fail "clients, $1" "$(tail -n 3 "$STATE/logs/clients-$1")"
		end
	}
}

# end_clients PROTOCOL: what became of them, as JSON.
end_clients() {
	local pid
	if pid="$(process_alive "clients-$1")"; then
		kill -s TERM "$pid"
		wait_for 60 process_gone "clients-$1" || true
	fi
	stop_process "clients-$1"
	tail -n 1 "$STATE/logs/clients-$1"
}

# counted SERVICE: what xdplb has, as JSON.
counted() {
	look stats --json >"$WORK/stats"
	look drops --json >"$WORK/drops"
	jq -n --arg s "$1" --slurpfile stats "$WORK/stats" --slurpfile drops "$WORK/drops" '
		($stats[0].services[] | select(.name == $s) | {packets_in, opened, unrecorded}) +
		([$drops[0][] | select(.verdict == "drop") | {key: .reason, value: .packets}] | from_entries)'
}

# check_clients WHAT REPORT SECONDS: and their figures.
check_clients() {
	local what="$1" report="$2" seconds="$3"
	jq -r --argjson n "$ESTABLISHED" '
		def times: "half within \(.median * 10000 | round / 10) ms, 99 % within \(.p99 * 10000 | round / 10) ms, "
			+ "the longest \(.longest * 10000 | round / 10) ms, \(.slow) more than 1 s"
			+ (.failures | to_entries | map(", \(.key) \(.value)") | add // "");
		(.established | "  established: \($n), broken \(.broken), \(.answers) answers, \(.bytes) bytes: " + times),
		(.new | "  new: \(.made), served \(.answers): " + times)' <<<"$report" || true
	check "$what: no established connection breaks" says "$report" \
		".established.broken == 0 and .established.answers >= $ESTABLISHED"
	check "$what: 99 % of the new ones are served" says "$report" \
		".new.made >= 0.9 * $RATE * $seconds and .new.answers >= 0.99 * .new.made"
}

# note_row WHAT REPORT: what the table at the end says of it.
note_row() {
	jq -r --arg what "$1" --slurpfile flood "$WORK/flood" --slurpfile counted "$WORK/counted" '
		[$what, ($flood[0] | .frames / .seconds / 10000 | round / 100), $counted[0].opened,
			.established.broken, .new.made, (1000 * .new.answers / ([.new.made, 1] | max) | floor / 10),
			(.established.p99 * 10000 | round / 10), (.new.p99 * 10000 | round / 10)] | @tsv' \
		<<<"$2" >>"$WORK/table" || true
}

# show_table: prints it.
show_table() {
	local row='%-36s %6s %9s %7s %6s %9s %13s %10s\n'
	# shellcheck disable=SC2059 # a format of ours
	printf "$row" "$ESTABLISHED established, $RATE new a second" Mpps entries broken new "served %" "99 %: est. ms" "new ms"
	while IFS=$'\t' read -r -a values; do
		# shellcheck disable=SC2059
		printf "$row" "${values[@]}"
	done <"$WORK/table"
}

# says JSON CONDITION: or shows it.
says() {
	jq -e "$2" <<<"$1" >/dev/null || {
		jq -c . <<<"$1"
		return 1
	}
}

# flood WHAT KIND SERVICE FAMILY FRAMES: the clients' protocols are in CLIENTS.
CLIENTS=tcp
flood() {
	local what="$1" kind="$2" service="$3" family="$4" frames="$5" address port protocol seconds counted report
	address="$(vip "$service" "$family")"
	port="${PORT[$service]}"
	for protocol in $CLIENTS; do
		# The flood is not for the server that echoes: it would have no time for others.
		case "$protocol" in
		tcp) start_clients tcp "$address" "$port" ;;
		udp) start_clients udp "$address" 7 ;;
		esac
	done
	counted "$service" >"$WORK/before"
	client taskset -c "$FLOOD_CPU" "$FLOOD" --device=eth0 --mac="$NEXT_HOP" --kind="$kind" \
		--to="$([ "$family" = 4 ] && echo "$address" || echo "[$address]"):$port" --frames="$frames" \
		>"$WORK/flood" 2>&1 || true
	counted "$service" >"$WORK/after"
	seconds="$(jq .seconds "$WORK/flood" 2>/dev/null)" || seconds=0
	jq -n --slurpfile before "$WORK/before" --slurpfile after "$WORK/after" \
		'$after[0] | with_entries(.value -= $before[0][.key])' >"$WORK/counted"

	jq -r --arg what "$what" '"\($what): \(.frames) frames in \(.seconds) s, \(.frames / .seconds / 10000 | round / 100) Mpps"' \
		"$WORK/flood" || true
	jq -r '"  xdplb: \(.opened) opened, \(.unrecorded) packets without an entry, dropped: " +
		(del(.packets_in, .opened, .unrecorded) | with_entries(select(.value > 0)) |
			if length > 0 then to_entries | map("\(.value) \(.key)") | join(", ") else "none" end)' "$WORK/counted"
	check_equal "$what: all frames were sent" \
		"$(jq .frames "$WORK/flood" 2>/dev/null || tail -n 1 "$WORK/flood")" "$frames"
	counted="$(cat "$WORK/counted")"
	check "$what: they arrived at lb, and were sent on or dropped for a reason" says "$counted" \
		"(del(.opened, .unrecorded) | add) >= 0.99 * $frames"
	check "$what: most went without an entry" says "$counted" ".unrecorded > 4 * .opened"
	for protocol in $CLIENTS; do
		report="$(end_clients "$protocol")"
		check_clients "$what, clients of $protocol" "$report" "$seconds"
		note_row "$what, clients of $protocol" "$report"
	done
}

flood "SYNs" syn nat 4 "$FRAMES"
CLIENTS="tcp udp" flood "UDP" udp nat 4 "$FRAMES"
flood "fragments" fragments nat 4 "$FRAMES"
flood "SYNs, IPv6" syn nat 6 $((FRAMES / 10))
flood "SYNs, l2" syn l2 4 $((FRAMES / 4))
flood "SYNs, full-nat" syn full-nat 4 "$FRAMES"
flood "SYNs, full-nat, IPv6" syn full-nat 6 $((FRAMES / 10))

# A device has one XDP program: what takes the tunnels' headers off is in the place of what swallows frames.
stop_process swallow
decapsulate b1 --from "10.0.1.1"
in_ns b1 nft "table ip xdplb_swallow { chain prerouting { type filter hook prerouting priority raw; \
	ip dscp 1 numgen random mod 8 != 0 drop; }; }"
flood "SYNs, ipip" syn ipip 4 $((FRAMES / 4))
flood "SYNs, gue" syn gue 4 $((FRAMES / 4))
check "xdplb goes on" xdplb_alive
show_table
end
