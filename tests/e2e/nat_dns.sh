#!/usr/bin/env bash
# DNS through forward = "nat": dig over UDP and TCP, IPv4 and IPv6, the first datagram
# of each flow included.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need dig bind9-dnsutils
begin --serve

service dns '["tcp", "udp"]' 53 5-tuple - b1 b2 b3 | write_config
start_or_end
for vip in "$VIP4" "$VIP6"; do
	for over in notcp tcp; do
		: >"$WORK/answers"
		# Each query comes from a port of its own: thirty flows, thirty first packets. No
		# second try, so that none may be lost.
		for _ in $(seq 30); do
			client dig +short "+$over" +tries=1 +time=3 "@$vip" TXT whoami.test >>"$WORK/answers" 2>&1 || true
		done
		check_equal "$vip +$over: every query is answered, by each backend some" \
			"$(grep -c '^"b[123]"$' "$WORK/answers" || true): $(sort -u "$WORK/answers" | tr -d '"' | xargs)" "30: b1 b2 b3"
	done
done

# One client's queries follow one backend when only its address is hashed.
service dns '["tcp", "udp"]' 53 source-ip - b1 b2 b3 | write_config
check "reload" reload_xdplb
for _ in $(seq 10); do
	client dig +short +tries=1 +time=3 "@$VIP4" TXT whoami.test
done | sort -u >"$WORK/answers"
check_equal "hash = \"source-ip\" keeps a client on one backend" "$(wc -l <"$WORK/answers")" 1
end
