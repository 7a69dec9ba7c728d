#!/usr/bin/env bash
# A VIP's ports that no service has: unknown_port = "pass" gives them to the host,
# "drop" to nobody; a reload changes one into the other.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

begin --serve

# The host holds the VIPs, and listens on a port of its own.
ip_ns lb address add "$VIP4/32" dev lo
ip_ns lb -6 address add "$VIP6/128" dev lo nodad
serve_http lb 9999

UNKNOWN_PORT=pass
web_service b1 b2 b3 | write_config
start_or_end
for vip in "$VIP4:9999" "[$VIP6]:9999"; do
	check_equal "pass: the host answers at $vip" "$(client curl -sS --max-time 5 "http://$vip/" 2>&1)" lb
done
check "pass: it is counted" test "$(packets_counted unknown_port_passed)" -gt 0
check_equal "pass: the service's port is balanced" "$(who_answers "$VIP4" 60)" "b1 b2 b3"

UNKNOWN_PORT=drop
web_service b1 b2 b3 | write_config
check "reload" reload_xdplb
for vip in "$VIP4:9999" "[$VIP6]:9999"; do
	check_fails "drop: nobody answers at $vip" client curl -sS --max-time 2 "http://$vip/"
done
check "drop: it is counted" test "$(packets_counted unknown_port_dropped)" -gt 0
check_equal "drop: the service's port is balanced" "$(who_answers "$VIP6" 60)" "b1 b2 b3"
check "drop: ping is no port, it is answered" client ping -c 1 -W 2 "$VIP4"
end
