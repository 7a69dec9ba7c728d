#!/usr/bin/env bash
# [[dos]]: a source that sends more than it may is held blocked for that protocol, for as long as the
# file says or until it is let go, or has the excess dropped; nobody else notices. IPv6 goes by /64.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need ping iputils-ping
need python3 python3
begin --serve

NOISY4=198.51.100.20 NOISY6=2001:db8:c:20::1 BESIDE6=2001:db8:c:20:ffff::2
QUIET4=198.51.100.21 QUIET6=2001:db8:c:21::1
# How dos calls them.
SOURCE4="$NOISY4" SOURCE6=2001:db8:c:20::/64
client_addresses "$NOISY4" "$NOISY6" "$BESIDE6" "$QUIET4" "$QUIET6"
start_process b1 echo python3 "$HERE/udp.py" echo 7 "${V4[b1]}" "${V6[b1]}"
wait_for 10 grep -q ready "$STATE/logs/echo" || {
	fail "udp.py" "$(cat "$STATE/logs/echo")"
	end
}

# By the half of it everything that is tried meanwhile is done.
BLOCK_FOR=6

# config [HOST...]: the policies come on standard input; the hosts are the backends of web, b1 if
# none is given.
config() {
	{
		web_service "${@:-b1}"
		service echo '"udp"' 7 5-tuple - b1
		cat
	} | write_config
}

# blocking SYN_LIMIT [HOST...]
blocking() {
	local limit="$1"
	shift
	config "$@" <<-TOML
		[[dos]]
		name = "syn"
		protocol = "tcp"
		tcp_flags = "syn"
		limit = $limit
		action = "block"
		block_for = "${BLOCK_FOR}s"

		[[dos]]
		name = "udp"
		protocol = "udp"
		limit = 50
		burst = 20
		action = "block"
		block_for = "1h"
	TOML
}

now_ms() {
	echo $((${EPOCHREALTIME/[.,]/} / 1000))
}

# until_part PERCENT: of block_for, counted from BEGAN.
until_part() {
	local rest=$((BEGAN + BLOCK_FOR * 10 * $1 - $(now_ms)))
	[ "$rest" -le 0 ] || sleep "$((rest / 1000)).$(printf %03d $((rest % 1000)))"
}

# blocked_by POLICY: it holds them all, for no longer than block_for.
blocked_by() {
	look dos --json | jq -e --arg p "$1" --argjson most "$BLOCK_FOR" \
		'.blocked | length > 0 and all(.policy == $p and .expires > 0 and .expires <= $most)'
}

# refused_web SOURCE VIP
refused_web() {
	! get_from "$1" "$2" '' --connect-timeout 0.4 >/dev/null 2>&1
}

# echoed SOURCE VIP: one datagram comes back.
echoed() {
	[ "$(send ask "$1" "$2" 7 10 0.05)" = "1 of 1" ]
}

# nothing_missed WHAT FILE: of what a quiet client sent.
nothing_missed() {
	local answered sent
	read -r answered _ sent <"$2"
	if [ "${sent:-0}" -ge 10 ] && [ "$answered" = "$sent" ]; then
		pass "$1 ($sent sent)"
	else
		fail "$1" "answered: $(cat "$2")"
	fi
}

blocking 50
start_or_end
check_equal "nobody is blocked at first" "$(look dos --json | jq '.blocked | length')" 0

# ---- a block
quiet=()
for source in "$QUIET4" "$QUIET6"; do
	[[ "$source" == *:* ]] && vip="$VIP6" || vip="$VIP4"
	send web "$source" "$vip" 80 10 10 >"$WORK/web-$source" 2>&1 &
	quiet+=($!)
	send ask "$source" "$vip" 7 20 10 >"$WORK/ask-$source" 2>&1 &
	quiet+=($!)
done
BEGAN="$(now_ms)"
send connect "$NOISY4" "$VIP4" 80 0 0.5 >"$WORK/noisy4" 2>&1 &
noisy=$!
send connect "$NOISY6" "$VIP6" 80 0 0.5 >"$WORK/noisy6" 2>&1
wait "$noisy"
check_equal "IPv4: too many SYNs block a source within a second, for TCP" "$(dos_blocked "$SOURCE4")" tcp
check_equal "IPv6: too many SYNs block a /64 within a second, for TCP" "$(dos_blocked "$SOURCE6")" tcp
check_equal "nobody else is" "$(look dos --json | jq '.blocked | length')" 2
check "xdplb dos says for how long, and by which policy" blocked_by syn
check_contains "and says so in words" "$(look dos)" "^$NOISY4 +tcp +syn +[1-6]s"
check "IPv4: blocked for TCP" refused_web "$NOISY4" "$VIP4"
check "IPv6: blocked for TCP, the whole /64" refused_web "$BESIDE6" "$VIP6"
check "IPv4: not for UDP" echoed "$NOISY4" "$VIP4"
check "IPv6: not for UDP" echoed "$NOISY6" "$VIP6"
check "IPv4: not for ping" client ping -c 1 -W 2 -I "$NOISY4" "$VIP4"
check "IPv6: not for ping" client ping -c 1 -W 2 -I "$NOISY6" "$VIP6"
check "what they sent was dropped and counted" test "$(packets_counted source_blocked)" -ge 100
check_equal "the policy has counted as many" "$(policy_value syn dropped)" "$(packets_counted source_blocked)"
check "and how many sources it has blocked" test "$(policy_value syn blocked)" -ge 2
until_part 50
check_equal "blocked for half of block_for" "$(dos_blocked "$SOURCE4"), $(dos_blocked "$SOURCE6")" "tcp, tcp"
# What has come meanwhile has not prolonged it.
until_part 150
check_equal "the block has ended by one and a half of block_for, IPv4" "$(get_from "$NOISY4" "$VIP4" 2>&1)" b1
check_equal "the block has ended by one and a half of block_for, IPv6" "$(get_from "$BESIDE6" "$VIP6" 2>&1)" b1
check_equal "xdplb dos has forgotten it" "$(look dos --json | jq '.blocked | length')" 0

# ---- another protocol, until somebody lets it go
send ask "$NOISY4" "$VIP4" 7 0 0.3 >"$WORK/noisy4" 2>&1
send ask "$NOISY6" "$VIP6" 7 0 0.3 >"$WORK/noisy6" 2>&1
check_equal "IPv4: blocked for UDP" "$(dos_blocked "$SOURCE4")" udp
check_equal "IPv6: blocked for UDP" "$(dos_blocked "$SOURCE6")" udp
blocking 50 b1 b2
check "reload: the policies are the same" reload_xdplb
check_equal "who was blocked still is" "$(dos_blocked "$SOURCE4"), $(dos_blocked "$SOURCE6")" "udp, udp"
check_fails "IPv4: blocked for UDP: no answer" echoed "$NOISY4" "$VIP4"
check_contains "IPv4: not for TCP" "$(get_from "$NOISY4" "$VIP4" 2>&1)" '^b[12]$'
check_contains "unblock says what it has done" "$(look dos unblock "$NOISY4")" "$NOISY4.*udp"
check "unblock frees an IPv4 address at once" echoed "$NOISY4" "$VIP4"
check_contains "unblock says so in JSON" "$(look dos unblock "$BESIDE6" --json | jq -c .)" '"protocols":\["udp"\]'
check "unblock frees an IPv6 /64 at once, by any address in it" echoed "$NOISY6" "$VIP6"
status=0
said="$(look dos unblock "$NOISY4" 2>&1)" || status=$?
check_equal "unblock of what is not blocked: status 1" "$status" 1
check_contains "unblock of what is not blocked says so" "$said" "$NOISY4.* not blocked"
status=0
look dos unblock example >"$WORK/said" 2>&1 || status=$?
check_equal "unblock of what is no address: status 2" "$status" 2

wait "${quiet[@]}"
for source in "$QUIET4" "$QUIET6"; do
	nothing_missed "TCP from $source, below the limit, goes on meanwhile" "$WORK/web-$source"
	nothing_missed "UDP from $source, below the limit, goes on meanwhile" "$WORK/ask-$source"
done

# What is dropped takes nothing from others: whatever a blocked source sends, there is room for entries.
check_equal "all connections had an entry" \
	"$(look stats --json | jq '[.services[] | select(.name == "web") | .unrecorded] | add')" 0

# ---- a limit that changes frees whom it held
send connect "$NOISY4" "$VIP4" 80 0 0.3 >"$WORK/noisy4" 2>&1
check_equal "blocked once more" "$(dos_blocked "$SOURCE4")" tcp
blocking 1000
check "reload: another limit" reload_xdplb
check_equal "nobody is blocked by the policy that was changed" "$(dos_blocked "$SOURCE4")" ''
check_equal "and TCP works" "$(get_from "$NOISY4" "$VIP4" 2>&1)" b1

# ---- only what is too much
config <<-TOML
	[[dos]]
	name = "excess"
	protocol = "udp"
	limit = 100
	action = "limit"
TOML
check "reload: action = \"limit\"" reload_xdplb
before="$(packets_counted rate_limited)"
# limited NOISY QUIET VIP
limited() {
	local noisy answered sent
	send ask "$1" "$3" 7 1000 2 >"$WORK/limited" 2>&1 &
	noisy=$!
	send ask "$2" "$3" 7 50 2 >"$WORK/ask" 2>&1
	wait "$noisy"
	read -r answered _ sent <"$WORK/limited"
	# A full bucket, and two seconds of filling it.
	check "of $sent datagrams from $1 as many as the limit allows are let through: $answered" \
		test "$answered" -ge 200 -a "$answered" -le 500 -a "$sent" -ge 1500
	nothing_missed "all of those from $2 are" "$WORK/ask"
}
limited "$NOISY4" "$QUIET4" "$VIP4"
limited "$NOISY6" "$QUIET6" "$VIP6"
check_equal "the rest is counted" "$(policy_value excess dropped)" "$(($(packets_counted rate_limited) - before))"
check_equal "nobody is blocked" "$(look dos --json | jq '.blocked | length')" 0

# A bucket of one packet, and more of them in a tick of the kernel's clock.
config <<-TOML
	[[dos]]
	name = "even"
	protocol = "udp"
	limit = 1000
	burst = 1
	action = "limit"
TOML
check "reload: a small burst" reload_xdplb
read -r answered _ sent <<<"$(send ask "$QUIET4" "$VIP4" 7 500 1)"
check "a small burst lets through what is below the limit: $answered of $sent" \
	test "$sent" -ge 300 -a "$answered" -gt $((sent * 6 / 10))
end
