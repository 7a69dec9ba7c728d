#!/usr/bin/env bash
# Rules that are replaced as fast as they can be, while a source that the old and the new ones deny
# sends all the time: none of its packets gets through, and no other client loses a request.
#
# The two sets say the same in opposite ways, and between the prefixes that they say it with lie
# as many of a blocklist as take a while to write: a packet that met a part of a set would be let in.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need wrk wrk
need tcpdump tcpdump
need python3 python3
begin --serve

DENIED4=10.9.255.1 DENIED6=2001:db8:9:0:ffff::1
client_addresses "$DENIED4" "$DENIED6"
awk 'BEGIN {
	for (i = 0; i < 40000; i++) {
		printf "10.9.%d.%d\n", i / 256, i % 256
		printf "2001:db8:9::%x\n", i
	}
}' >"$WORK/blocklist"

# Two sets of rules; the client itself is let in by either.
rules_of_all() {
	cat <<-TOML
		[firewall]
		default = "deny"
	TOML
}

rules_of_prefixes() {
	cat <<-TOML
		[firewall]
		blocklists = ["blocklist"]

		[[firewall.rule]]
		action = "deny"
		source = "$DENIED4"

		[[firewall.rule]]
		action = "deny"
		source = "$DENIED6"

		[[firewall.rule]]
		action = "allow"
		source = "10.9.0.0/16"

		[[firewall.rule]]
		action = "allow"
		source = "2001:db8:9::/48"
	TOML
}

# rules SET
rules() {
	{
		web_service b1 b2
		service dns '"udp"' 53 5-tuple - b1 b2
		"rules_of_$1"
		for source in "$CLIENT4" "$CLIENT6"; do
			printf '\n[[firewall.rule]]\nname = "%s"\naction = "allow"\nsource = "%s"\n' "$source" "$source"
		done
	} | write_config
}

rules all
start_or_end
for backend in b1 b2; do
	start_process "$backend" "watch-$backend" tcpdump -n -l -i eth0 "host $DENIED4 or host $DENIED6"
	wait_for 10 grep -q 'listening on' "$STATE/logs/watch-$backend" || {
		fail "tcpdump" "$(cat "$STATE/logs/watch-$backend")"
		end
	}
done

SECONDS_OF_LOAD=8
declare -a load=()
for source in "$DENIED4" "$DENIED6"; do
	[[ "$source" == *:* ]] && vip="$VIP6" || vip="$VIP4"
	send ask "$source" "$vip" 53 1000 "$SECONDS_OF_LOAD" >"$WORK/denied-udp-$source" 2>&1 &
	load+=($!)
	send connect "$source" "$vip" 80 300 "$SECONDS_OF_LOAD" >"$WORK/denied-tcp-$source" 2>&1 &
	load+=($!)
	client wrk -t 1 -c 10 -d "${SECONDS_OF_LOAD}s" --timeout 5s "$(url "$vip")" >"$WORK/wrk-$vip" 2>&1 &
	load+=($!)
done
reloads=0 refused=0 set=all
while kill -0 "${load[@]}" 2>/dev/null; do
	[ "$set" = all ] && set=prefixes || set=all
	rules "$set"
	reload_xdplb || refused=$((refused + 1))
	reloads=$((reloads + 1))
	sleep 0.05
done
wait "${load[@]}" || true

check_equal "no reload of $reloads was refused or went unanswered" "$refused" 0
check "there were some, from either set to the other" test "$reloads" -ge 3
for source in "$DENIED4" "$DENIED6"; do
	check_contains "datagrams that both sets deny, from $source: none was answered" \
		"$(cat "$WORK/denied-udp-$source")" '^0 of [1-9][0-9]{3}'
	check_contains "connections that both sets deny, from $source: none was answered" \
		"$(cat "$WORK/denied-tcp-$source")" '^0 of [1-9][0-9]{2}'
done
for backend in b1 b2; do
	stop_process "watch-$backend" INT
	seen="$(grep -E '^[0-9:.]+ IP' "$STATE/logs/watch-$backend" || true)"
	check_equal "$backend saw none of them" "$(wc -l <<<"$seen"): $(head -n 1 <<<"$seen")" "1: "
done
check_wrk "who is let in by both, IPv4" "$WORK/wrk-$VIP4"
check_wrk "who is let in by both, IPv6" "$WORK/wrk-$VIP6"
check "and is counted by one rule all the time" test "$(rule_hits "$CLIENT4")" -gt 1000
end
