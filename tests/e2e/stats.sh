#!/usr/bin/env bash
# xdplb stats after traffic that is known: by protocol, service and backend, both ways; opened and
# closed; totals that no reload lowers; rates. And the messages of the commands that look, where
# nothing runs.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need python3 python3
begin --serve
start_process b1 echo-b1 python3 "$HERE/udp.py" echo 7 "${V4[b1]}" "${V6[b1]}"
start_process b2 echo-b2 python3 "$HERE/udp.py" echo 7 "${V4[b2]}" "${V6[b2]}"
wait_for 10 grep -q ready "$STATE/logs/echo-b1" "$STATE/logs/echo-b2" || {
	fail "udp.py" "$(cat "$STATE/logs"/echo-*)"
	end
}

TIMEOUTS='tcp_opening = "2s"
tcp_established = "10m"
tcp_closing = "2s"
udp = "3s"'

# backends HOST...
backends() {
	{
		web_service "$@"
		service echo '"udp"' 7 5-tuple - "$@"
		service idle '"tcp"' 82 5-tuple 8080 b1
	} | write_config
}

# stat_of FILTER: of the JSON, on one line.
stat_of() {
	look stats --json | jq -r "$1"
}

# of SERVICE FIELD...: on one line.
of() {
	local service="$1"
	shift
	look stats --json | jq -r --arg s "$service" \
		'[.services[] | select(.name == $s)][0] | [.[$ARGS.positional[]]] | map(tostring) | join(" ")' --args "$@"
}

# protocol NAME FIELD...
protocol() {
	local name="$1"
	shift
	look stats --json | jq -r --arg p "$name" \
		'[.protocols[] | select(.protocol == $p)][0] | [.[$ARGS.positional[]]] | map(tostring) | join(" ")' --args "$@"
}

EXCHANGE=(packets_in bytes_in packets_out bytes_out)

backends b1 b2
start_or_end
check_equal "nothing is counted at first" \
	"$(stat_of '[.. | .packets_in?, .bytes_out?, .opened?, .active? | numbers] | add')" 0

# ---- datagrams: each of 8 bytes, and as many back
send ask "$CLIENT4" "$VIP4" 7 100 0.3 >"$WORK/sent4"
send ask "$CLIENT6" "$VIP6" 7 100 0.2 >"$WORK/sent6"
read -r answered4 _ sent4 <"$WORK/sent4"
read -r answered6 _ sent6 <"$WORK/sent6"
check "there were some: $sent4 and $sent6" test "$sent4" -ge 10 -a "$sent6" -ge 10
# Ethernet, IPv4 or IPv6, UDP, and the datagram.
expected="$((sent4 + sent6)) $((sent4 * 50 + sent6 * 70)) $((answered4 + answered6)) $((answered4 * 50 + answered6 * 70))"
check_equal "UDP by service, packets and bytes both ways" "$(of echo "${EXCHANGE[@]}")" "$expected"
check_equal "UDP by protocol" "$(protocol udp "${EXCHANGE[@]}")" "$expected"
check_equal "UDP: two connections, both active" "$(of echo opened closed active)" "2 0 2"
check_equal "nothing of that is TCP" "$(protocol tcp "${EXCHANGE[@]}"), $(of web opened)" "0 0 0 0, 0"

# ---- requests
check_equal "20 requests over IPv4" "$(who_answers "$VIP4" 20)" "b1 b2"
check_equal "20 requests over IPv6" "$(who_answers "$VIP6" 20)" "b1 b2"
check_equal "40 connections were opened" "$(of web opened)" 40
check_equal "by the backends, as many together" \
	"$(stat_of '.services[] | select(.name == "web") | [.backends[].opened] | add')" 40
check_equal "each of the four some" \
	"$(stat_of '[.services[] | select(.name == "web") | .backends[] | .opened > 0 and .packets_out > 0] | tostring')" \
	"[true,true,true,true]"
check_equal "and none by a service that nobody asked" "$(of idle "${EXCHANGE[@]}" opened)" "0 0 0 0 0"
all_closed() {
	[ "$(of web opened closed active inactive)" = "40 40 0 0" ] && [ "$(of echo opened closed active)" = "2 2 0" ]
}
check_soon "all are closed in the end, those of UDP by their timeout" 10 all_closed

# ---- a download
read -r packets bytes <<<"$(of web packets_out bytes_out)"
check_equal "a download comes whole" "$(get "$VIP4" big | sha256sum | cut -d ' ' -f 1)" "$(big_sum)"
read -r packets_after bytes_after <<<"$(of web packets_out bytes_out)"
bytes=$((bytes_after - bytes))
packets=$((packets_after - packets))
# 66 bytes of headers for each, and some sent twice.
least=$((10485760 + packets * 66)) most=$((10485760 * 106 / 100 + packets * 66))
check "its bytes are counted: $bytes in $packets packets" test "$bytes" -ge "$least" -a "$bytes" -le "$most"
check_equal "TCP by protocol is what its services have together" "$(protocol tcp "${EXCHANGE[@]}")" \
	"$(stat_of '[.services[] | select(.name != "echo")] | [([.[].packets_in] | add), ([.[].bytes_in] | add), ([.[].packets_out] | add), ([.[].bytes_out] | add)] | join(" ")')"
table="$(look stats)"
check_contains "the table has the protocols" "$table" "^udp +$((sent4 + sent6)) +$((answered4 + answered6)) "
check_contains "the table has the service" "$table" "^web +$(of web packets_in packets_out bytes_in bytes_out opened closed | sed 's/ / +/g') "
check_contains "the table has the backends" "$table" "^ +-> b1 ${V4[b1]}:8080 +[1-9]"

# ---- a backend that is removed
before="$(of web "${EXCHANGE[@]}" opened closed), $(of echo "${EXCHANGE[@]}" opened closed), $(protocol tcp "${EXCHANGE[@]}")"
backends b1
check "reload: b2 is removed" reload_xdplb
check_equal "b2 is not shown any more" "$(stat_of '[.services[].backends[] | select(.name | startswith("b2"))] | length')" 0
check_equal "the totals are what they were" \
	"$(of web "${EXCHANGE[@]}" opened closed), $(of echo "${EXCHANGE[@]}" opened closed), $(protocol tcp "${EXCHANGE[@]}")" "$before"
backends b1 b2
check "reload: b2 is back" reload_xdplb
check_equal "the totals are what they were" \
	"$(of web "${EXCHANGE[@]}" opened closed), $(of echo "${EXCHANGE[@]}" opened closed), $(protocol tcp "${EXCHANGE[@]}")" "$before"
check_equal "b2 begins with none" \
	"$(stat_of '[.services[].backends[] | select(.name | startswith("b2")) | .packets_in] | add')" 0

# ---- rates
send ask "$CLIENT4" "$VIP4" 7 100 8 >"$WORK/sent4" &
load=$!
# watch NAME ARGUMENTS...: in the background; its pid is in WATCH. A shell starts what is in the
# background with SIGINT ignored.
watch() {
	local name="$1"
	shift
	nsenter --net="/run/netns/$(ns lb)" -- env --default-signal=INT \
		"$XDPLB" stats --pin-dir "$PIN_DIR" "$@" >"$WORK/$name" 2>"$WORK/$name.error" &
	WATCH=$!
}
watch text --watch
text=$WATCH
watch json --watch=0.5 --json
json=$WATCH
sleep 1
# Ten datagrams in a tenth of a second, and as many back: of 50 bytes each.
rates="$(look list --rate=2 --json | jq -c '.[] | select(.name == "echo") | .rate | [.packets_in, .packets_out, .bits_in] | map(round)')"
check_contains "list --rate: packets and bits a second" "$rates" '^\[(9|10|11)[0-9],(9|10|11)[0-9],(3[6-9]|4[0-9])[0-9]{3}\]$'
check_contains "list --rate: the table" "$(look list --rate=0.5)" \
	'^ +-> [0-9.]+:[7*] +b[12] .* (9|10|11)[0-9](\.[0-9])? +(9|10|11)[0-9](\.[0-9])? +[34][0-9]\.[0-9]k +[34][0-9]\.[0-9]k$'
sleep 1
kill -s INT "$text"
kill -s TERM "$json"
status=0
wait "$text" || status=$?
check_equal "--watch ends on SIGINT with status 0 and without a word" "$status$(cat "$WORK/text.error")" 0
status=0
wait "$json" || status=$?
check_equal "--watch ends on SIGTERM with status 0 and without a word" "$status$(cat "$WORK/json.error")" 0
check "--watch prints every second" test "$(grep -c '^udp' "$WORK/text")" -ge 2
check_contains "--watch prints rates" "$(cat "$WORK/text")" '^echo +[0-9.]+ +(9|10|11)[0-9](\.[0-9])? +(9|10|11)[0-9]'
check "--watch=0.5 --json prints an object a line, twice a second" \
	test "$(jq -c .seconds "$WORK/json" | wc -l)" -ge 5 -a "$(jq -c .seconds "$WORK/json" | wc -l)" -eq "$(wc -l <"$WORK/json")"
check_contains "and they have the rates" \
	"$(jq -s '[.[1:][] | .services[] | select(.name == "echo") | .packets_in] | add / length | round' "$WORK/json")" '^(8|9|10|11|12)[0-9]$'
{
	timeout 10 nsenter --net="/run/netns/$(ns lb)" -- "$XDPLB" stats --watch=0.2 --pin-dir "$PIN_DIR" 2>"$WORK/error" || status=$?
	echo "$status $(cat "$WORK/error")" >"$WORK/ended"
} | head -n 1 >"$WORK/first"
check_equal "--watch ends when nobody reads it any more, without a word" "$(wc -l <"$WORK/first"), $(cat "$WORK/ended")" "1, 0 "
wait "$load"

# ---- elsewhere, and where nothing runs
# says_so NAME WHERE COMMAND...: status 1, and the message says where and what to do.
says_so() {
	local name="$1" where="$2" status=0 said
	shift 2
	said="$(in_ns lb timeout 10 "$XDPLB" "$@" --pin-dir "$where" 2>&1)" || status=$?
	check_equal "$name: $*: status 1" "$status" 1
	check_contains "$name: $* says where" "$said" "^(error|xdplb): .*$where"
}
COMMANDS=(list "list --rate" conns drops firewall dos "dos unblock 198.51.100.7" stats "stats --watch")
for command in "${COMMANDS[@]}"; do
	# shellcheck disable=SC2086 # words
	says_so "another pin directory" "$PIN_DIR-none" $command
done
stop_xdplb TERM
for command in "${COMMANDS[@]}"; do
	# shellcheck disable=SC2086 # words
	says_so "nothing runs" "$PIN_DIR" $command
done
for command in firewall dos "dos unblock" stats drops; do
	# shellcheck disable=SC2086 # words
	check_contains "$command --help needs nobody" "$("$XDPLB" $command --help 2>&1)" '^Usage: xdplb'
done
end
