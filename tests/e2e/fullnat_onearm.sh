#!/usr/bin/env bash
# forward = "full-nat" on one interface: HTTP, DNS and iperf3, IPv4 and IPv6.
set -euo pipefail
TOPOLOGY=onearm
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need iperf3 iperf3
need dig bind9-dnsutils
begin --serve

for XDP_MODE in native generic; do
	{
		web_service b1 b2 b3
		service dns '["tcp", "udp"]' 53 5-tuple - b1 b2 b3
		service iperf3 '["tcp", "udp"]' 5201 source-ip - b1 b2 b3
	} | write_config
	start_or_end
	for vip in "$VIP4" "$VIP6"; do
		check_equal "$XDP_MODE $vip spreads over the backends" "$(who_answers "$vip" 60)" "b1 b2 b3"
		check_equal "$XDP_MODE $vip answers every request" "$(answers "$vip" 60 | wc -l)" 60
		get "$vip" big >"$WORK/big" || true
		check_equal "$XDP_MODE $vip carries a large file whole" \
			"$(sha256sum <"$WORK/big" | cut -d ' ' -f 1)" "$(big_sum)"
		check_contains "$XDP_MODE $vip answers DNS over UDP" \
			"$(client dig +short +tries=1 +time=3 "@$vip" TXT whoami.test 2>&1)" '^"b[123]"$'
		check_contains "$XDP_MODE $vip answers DNS over TCP" \
			"$(client dig +short +tcp +tries=1 +time=3 "@$vip" TXT whoami.test 2>&1)" '^"b[123]"$'
		check_iperf "$XDP_MODE $vip TCP" 0 -c "$vip" -t 2
		check_iperf "$XDP_MODE $vip TCP, from the backend" 0 -c "$vip" -t 2 -R
		check_iperf "$XDP_MODE $vip UDP" 5 -c "$vip" -t 2 -u -b 20M -l 1200
	done
	check_equal "$XDP_MODE backends see the balancer, IPv4" "$(get "$VIP4" client)" "$LB4"
	check_equal "$XDP_MODE backends see the balancer, IPv6" "$(get "$VIP6" client)" "$LB6"
	stop_xdplb TERM
done

# The host's own connections to the same backends go on beside those it balances.
XDP_MODE=native
web_service b1 b2 b3 | write_config
start_or_end
check "the balancer's own connections to a backend work" \
	in_ns lb curl -sS --fail --max-time 20 -H 'Connection: close' "$(url "${V4[b1]}:8080")?[1-100]"
check "ping to the VIP is answered" client ping -c 1 -W 2 "$VIP4"
check_equal "by the balancer, though the host holds the VIP" "$(packets_counted echo_answered)" 1
end
