#!/usr/bin/env bash
# firewall.blocklists: whose sources are dropped before any rule is asked; half a million prefixes,
# and what they cost; files that change, that have a bad line, and that are not there.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need bpftool bpftool
begin --serve

# The last of the large list's, and beside it one that no list has.
LISTED4=10.6.26.127 LISTED6=2001:db8:1:869f::1
FREE4=10.6.26.128 FREE6=2001:db8:1:86a0::1
client_addresses "$LISTED4" "$LISTED6" "$FREE4" "$FREE6"

# lists FILE...: in this order, and a rule that would let everybody in.
lists() {
	{
		web_service b1
		printf '\n[firewall]\nblocklists = ["%s"]\n' "$(printf '%s", "' "$@" | sed 's/", "$//')"
		printf '\n[[firewall.rule]]\nname = "all"\naction = "allow"\n'
	} | write_config
}

# dropped WHAT SOURCE...
dropped() {
	local what="$1" source
	shift
	for source in "$@"; do
		[[ "$source" == *:* ]] && vip="$VIP6" || vip="$VIP4"
		check_fails "$what: $source is dropped" get_from "$source" "$vip" '' --connect-timeout 0.5
	done
}

# passes WHAT SOURCE...
passes() {
	local what="$1" source
	shift
	for source in "$@"; do
		[[ "$source" == *:* ]] && vip="$VIP6" || vip="$VIP4"
		check_equal "$what: $source is not" "$(get_from "$source" "$vip" 2>&1)" b1
	done
}

cat >"$WORK/few.txt" <<-TEXT
	# by hand
	$LISTED4
	  $LISTED6   # with a comment

	198.51.100.66/32
TEXT

# ---- files that cannot be used
# Not "missing.txt" alone: the other one is there.
lists few.txt missing.txt
status=0
said="$(run_xdplb 20 --config "$CONFIG")" || status=$?
check_equal "a file that is missing at the start: status 2" "$status" 2
check_contains "a file that is missing at the start is named" "$said" "^(xdplb: )?$CONFIG:[0-9]+:[0-9]+: firewall: blocklists names $WORK/missing.txt: .*create it"
printf '198.51.100.0/24\n\n  198.51.100.300\n2001:db8::/129\n' >"$WORK/bad.txt"
lists few.txt bad.txt
status=0
said="$("$XDPLB" check --config "$CONFIG" 2>&1)" || status=$?
check_equal "xdplb check of a list with bad lines: status 2" "$status" 2
check_contains "xdplb check names the first" "$said" "$WORK/bad.txt:3:3: .*198.51.100.300"
check_contains "xdplb check names the second" "$said" "$WORK/bad.txt:4:1: .*2001:db8::/129"

# ---- a few lines
lists few.txt
start_or_end
dropped "a list" "$LISTED4" "$LISTED6"
passes "a list" "$FREE4" "$FREE6"
hits="$(rule_hits few.txt)"
check "the list counts what it drops" test "$hits" -ge 2
check_equal "and nothing else does" "$(packets_counted blocklisted) $(packets_counted firewall)" "$hits 0"
check "who is on no list is decided by the rules" test "$(rule_hits all)" -ge 2

# ---- half a million
half_a_million() {
	awk 'BEGIN {
		for (i = 0; i < 400000; i++)
			printf "10.%d.%d.%d\n", i / 65536, i / 256 % 256, i % 256
		for (i = 0; i < 100000; i++)
			printf "2001:db8:%x:%x::/64\n", i / 65536, i % 65536
	}'
}
half_a_million >"$WORK/many.txt"
available() {
	awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo
}
# timed COMMAND...: how many ms it takes is in TOOK.
timed() {
	local began="${EPOCHREALTIME/[.,]/}"
	"$@"
	TOOK=$(((${EPOCHREALTIME/[.,]/} - began) / 1000))
}
# resident: MiB that xdplb itself takes.
resident() {
	awk '/VmRSS/ { print int($2 / 1024) }' "/proc/$XDPLB_PID/status"
}
before="$(available)"
lists few.txt many.txt
check "reload: 500,000 prefixes" timed reload_xdplb
of_trie="$(bpftool -j map show pinned "$PIN_DIR/fw_prefixes" | jq '.bytes_memlock / 1048576 | floor')"
pass "500,000 prefixes take: $TOOK ms to reload, $((before - $(available))) MiB of the machine's memory, $of_trie of that the trie's, $(resident) xdplb's"
dropped "500,000 prefixes" "$LISTED4"
check_equal "an address on both lists is counted for the first" "$(rule_hits many.txt)" 0
dropped "500,000 prefixes" "$LISTED6"
passes "500,000 prefixes" "$FREE4" "$FREE6"
sed -i '2,3d' "$WORK/few.txt"
check "reload: the first list has changed" timed reload_xdplb
pass "a reload where 500,000 prefixes have not changed takes $TOOK ms"
hits="$(rule_hits few.txt)"
dropped "a list that has changed" "$LISTED4"
check "who is only on the second is counted for that" test "$(rule_hits many.txt)" -ge 1
check_equal "and no longer for the first" "$(rule_hits few.txt)" "$hits"

# ---- a list that is spoilt holds up nothing else
half_a_million | sed "s|^$LISTED4\$|10.6.26.1270|" >"$WORK/many.txt"
{
	web_service b1
	service other '"tcp"' 81 5-tuple 8080 b2
	printf '\n[firewall]\nblocklists = ["few.txt", "many.txt"]\n'
} | write_config
check "reload: a list with a bad line, and a new service" reload_xdplb
check_contains "the bad line is named" "$(cat "$LOG")" "ERROR +$WORK/many.txt:400000:1: .*10.6.26.1270"
check_contains "the log says that the list before stays" "$(cat "$LOG")" 'many.txt: keeping the previous 500000 prefixes'
dropped "a spoilt list stays as it was" "$LISTED4" "$LISTED6"
check_equal "the new service is there" "$(get "$VIP4:81" 2>&1)" b2

# ---- and one that has become short
echo "$FREE4" >"$WORK/many.txt"
check "reload: a short list in its place" reload_xdplb
passes "a list that has become short" "$LISTED4" "$LISTED6"
dropped "a list that has become short" "$FREE4"

# ---- a start with all of it
stop_xdplb TERM
half_a_million >"$WORK/many.txt"
check "a start with 500,000 prefixes" timed start_xdplb
pass "a start with 500,000 prefixes takes $TOOK ms"
dropped "after the start" "$LISTED4" "$LISTED6"
passes "after the start" "$FREE4" "$FREE6"
end
