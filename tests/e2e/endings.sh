#!/usr/bin/env bash
# Ends that are none. Clients that have shut their sending side get answers that take longer than tcp_closing;
# forged resets and FINs, which both ends ignore, end nothing, not even connections that are idle for longer
# than that: all of them outlive a drain of their backends.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
need python3 python3

connections() {
	client python3 "$HERE/connections.py" "$@"
}

established() {
	look conns --json | jq '[.[] | select(.state == "established")] | length'
}

begin "$@"
for host in b1 b2 b3; do
	start_process "$host" "lines-$host" python3 "$HERE/connections.py" serve 8080
done
# shellcheck disable=SC2034 # for write_config
TIMEOUTS='tcp_opening = "10s"
tcp_established = "10m"
tcp_closing = "2s"'

for FORWARD in nat full-nat; do
	# shellcheck disable=SC2034 # for write_config
	ADDRESSES='"10.0.1.1", "10.0.2.1", "2001:db8:b1::1", "2001:db8:b2::1"'
	web_service b1 b2 b3 | write_config
	start_or_end
	for vip in "$VIP4" "$VIP6"; do
		check_equal "$FORWARD, $vip: answers to half-closed clients" "$(connections half-close "$vip" 80 10 5)" 10
	done

	for vip in "$VIP4" "$VIP6"; do
		source="$CLIENT4"
		[ "$vip" = "$VIP4" ] || source="$CLIENT6"
		coproc HOLD { connections hold "$vip" 80 60; }
		holder=$HOLD_PID
		read -r -u "${HOLD[0]}" -a ports
		echo >&"${HOLD[1]}"
		read -r -u "${HOLD[0]}" answered
		check_equal "$FORWARD, $vip: connections are held" "$answered ${#ports[@]}" "60 60"
		for flags in rst rst-ack fin-ack; do
			connections forge "$source" "$vip" 80 "$flags" "${ports[@]:0:40}"
		done
		# Longer than tcp_closing, and a sweep.
		sleep 5
		live="$(established)"
		# One in 250 random numbers is near enough to be believed of an idle connection.
		check "$FORWARD, $vip: forged segments end next to none ($live of 60)" test "$live" -ge 58
		web_service b1,state=drain b2,state=drain b3 | write_config
		check "$FORWARD, $vip: reload with two backends that drain" reload_xdplb
		echo >&"${HOLD[1]}"
		read -r -u "${HOLD[0]}" answered
		check "$FORWARD, $vip: the drain cut none of the others ($answered)" test "$answered" -ge "$live"
		kill "$holder" 2>/dev/null || true
		wait "$holder" 2>/dev/null || true
		web_service b1 b2 b3 | write_config
		check "$FORWARD, $vip: reload with all" reload_xdplb
	done
	stop_xdplb TERM
done
end
