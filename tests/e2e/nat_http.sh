#!/usr/bin/env bash
# HTTP through forward = "nat" in every XDP mode: IPv4 and IPv6, spread over the
# backends, the client's address kept.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

begin --serve

for XDP_MODE in native generic auto; do
	web_service b1 b2 b3 | write_config
	start_or_end
	for vip in "$VIP4" "$VIP6"; do
		check_equal "$XDP_MODE $vip spreads over the backends" "$(who_answers "$vip" 60)" "b1 b2 b3"
		check_equal "$XDP_MODE $vip answers every request" "$(answers "$vip" 60 | wc -l)" 60
		get "$vip" big >"$WORK/big" || true
		check_equal "$XDP_MODE $vip carries a large file whole" \
			"$(sha256sum <"$WORK/big" | cut -d ' ' -f 1)" "$(big_sum)"
	done
	check_equal "$XDP_MODE backends see the client, IPv4" "$(get "$VIP4" client)" "$CLIENT4"
	check_equal "$XDP_MODE backends see the client, IPv6" "$(get "$VIP6" client)" "$CLIENT6"
	stop_xdplb TERM
	check_equal "$XDP_MODE ends with status 0" "$XDPLB_STATUS" 0
done

# Weights: 9 to 1 of 400 requests; the bounds are five standard deviations off.
XDP_MODE=native
web_service b1,weight=9 b2,weight=1 b3,weight=0 | write_config
start_or_end
answers "$VIP4" 400 >"$WORK/answers"
few="$(grep -c b2 "$WORK/answers" || true)"
check "of 400 requests about 40 go to a backend of weight 1 in 10: $few" \
	test "$few" -ge 10 -a "$few" -le 70
check_equal "a backend of weight 0 gets none" "$(grep -c b3 "$WORK/answers" || true)" 0

check_equal "list counts the connections" \
	"$(look list --json | jq '[.[] | select(.name == "web") | .backends[].connections] | add')" 400
check "list counts packets to the backend" test "$(backend_value web b1 packets_in)" -gt 0
check "list counts packets from the backend" test "$(backend_value web b1 packets_out)" -gt 0
check "list prints a table" look list
check "conns prints a table" look conns
check "drops prints a table" look drops
end
