#!/usr/bin/env bash
# xdplb decap on a backend that has no tunnel device: every kind of tunnel carries HTTP, DNS
# and uploads to a VIP on its loopback, the answers go directly. And how decap starts,
# stops and fails. The balancer's end of the tunnel is played by lb, with tunnel.py.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need python3 python3
need dig bind9-dnsutils
need capsh libcap2-bin
[ -e /dev/net/tun ] || die "/dev/net/tun is missing: modprobe tun (CONFIG_TUN)"
begin --serve

DECAP_PINS="/sys/fs/bpf/$STEM-decap"
DECAP_LOG="$STATE/logs/decap"
DECAP_PID=

decap_ready_or_gone() {
	grep -q 'decapsulating on' "$DECAP_LOG" || process_gone decap
}

# start_decap ARGUMENTS...: on b1; returns when it is ready, fails when it ended instead.
start_decap() {
	start_process b1 decap env --default-signal=INT,QUIT "$XDPLB" decap --pin-dir "$DECAP_PINS" "$@"
	DECAP_PID="$(process_alive decap)" || true
	wait_for 20 decap_ready_or_gone || true
	grep -q 'decapsulating on' "$DECAP_LOG" || {
		cat "$DECAP_LOG"
		return 1
	}
}

# stop_decap SIGNAL: sets DECAP_STATUS.
stop_decap() {
	kill -s "$1" "$DECAP_PID"
	wait_for 10 process_gone decap || fail "stop" "decap still ran 10 s after SIG$1"
	wait "$DECAP_PID" 2>/dev/null && DECAP_STATUS=0 || DECAP_STATUS=$?
	rm -f "$STATE/pids/decap"
}

has_program() {
	ip_ns b1 link show dev "$1" | grep -q 'prog/xdp'
}

check_no_trace() {
	check_fails "$1: eth0 has no program" has_program eth0
	check "$1: no pins" test ! -e "$DECAP_PINS"
}

# counted REASON
counted() {
	"$XDPLB" drops --json --pin-dir "$DECAP_PINS" |
		jq --arg r "$1" '[.[] | select(.reason == $r) | .packets] | add'
}

# tunnel ipip|gue SOURCE DESTINATION: the one way from lb to the VIPs.
tunnel() {
	stop_process tunnel
	# Or "ready" may be what the last one has said.
	rm -f "$STATE/logs/tunnel"
	start_process lb tunnel python3 "$HERE/tunnel.py" tun0 "$@"
	wait_for 10 grep -q ready "$STATE/logs/tunnel" || {
		fail "tunnel" "$(cat "$STATE/logs/tunnel")"
		end
	}
	# Room for the outer headers; the client is told by ICMP.
	ip_ns lb link set tun0 mtu 1440 up
	ip_ns lb route replace "$VIP4/32" dev tun0
	ip_ns lb -6 route replace "$VIP6/128" dev tun0
}

ask() {
	client curl -sS --fail --connect-timeout 2 --max-time 20 "$(url "$1" "${2:-}")" 2>&1
}

# The VIP is the backend's own, on lo, and its answers leave lb by another interface than
# requests for the VIP do.
ip_ns b1 address add "$VIP4/32" dev lo
ip_ns b1 -6 address add "$VIP6/128" dev lo nodad
for key in all eth0 eth1; do
	ns_sysctl lb "ipv4/conf/$key/rp_filter" 0
done
WEB4="$VIP4:8080" WEB6="[$VIP6]:8080"
declare -A LB=([4]=10.0.1.1 [6]=2001:db8:b1::1) B1=([4]="${V4[b1]}" [6]="${V6[b1]}")

# Without decap nothing arrives: it is not this kernel that decapsulates.
tunnel ipip "${LB[4]}" "${B1[4]}"
check_fails "without decap there is no answer" ask "$WEB4"

check "start" start_decap --interface eth0 --from "${LB[4]}" --from 2001:db8:b1::/64
check_contains "the log says where and from whom" "$(cat "$DECAP_LOG")" \
	"decapsulating on eth0 \(native\) from 10\.0\.1\.1, 2001:db8:b1::/64"
for form in ipip gue; do
	for outer in 4 6; do
		tunnel "$form" "${LB[$outer]}" "${B1[$outer]}"
		for inner in 4 6; do
			[ "$inner" = 4 ] && web="$WEB4" vip="$VIP4" || web="$WEB6" vip="$VIP6"
			kind="${form}_${inner}in${outer}"
			check_equal "$kind: HTTP" "$(ask "$web")" b1
			check_equal "$kind: a 10 MB download" \
				"$(ask "$web" big | sha256sum | cut -d ' ' -f 1)" "$(big_sum)"
			check_equal "$kind: DNS" "$(client dig +short +tries=3 +time=2 "@$vip" TXT whoami.test)" '"b1"'
			check_iperf "$kind: an upload" 0 -c "$vip" -n 3M
			check "$kind: counted" test "$(counted "$kind")" -gt 100
		done
	done
done
check_equal "none was dropped" \
	"$("$XDPLB" drops --json --pin-dir "$DECAP_PINS" | jq '[.[] | select(.verdict == "drop") | .packets] | add')" 0
check_contains "drops explains" "$("$XDPLB" drops --pin-dir "$DECAP_PINS")" \
	'[1-9][0-9]* +pass +gue_6in6 +decapsulated'
check_equal "bpftool shows the counters" \
	"$(bpftool -j map dump pinned "$DECAP_PINS/decap_counters" | jq 'length > 10 and (.[0].formatted.values[0].value | has("packets"))')" true
check_equal "a connection without a tunnel works as before" \
	"$(client curl -sS --max-time 5 "http://${V4[b1]}:8080/" 2>&1)" b1

# Addresses are followed while it runs.
tunnel ipip "${LB[4]}" 10.0.1.77
ip_ns lb neighbour replace 10.0.1.77 dev eth1 \
	lladdr "$(ip_ns b1 -j link show dev eth0 | jq -r '.[0].address')"
check_fails "for an address that is not the host's" ask "$WEB4"
check "that is counted" test "$(counted not_local)" -gt 0
ip_ns b1 address add 10.0.1.77/24 dev eth0
check_soon "once the host has the address" 5 ask "$WEB4"
ip_ns b1 address del 10.0.1.77/24 dev eth0

# A second instance, and the summary at the end.
status=0
said="$(in_ns b1 timeout 10 "$XDPLB" decap --interface eth0 --pin-dir "$DECAP_PINS" 2>&1)" || status=$?
check_equal "a second instance: status" "$status" 1
check_contains "a second instance: message" "$said" "$DECAP_PINS: another xdplb"
stop_decap TERM
check_equal "SIGTERM: status" "$DECAP_STATUS" 0
check_contains "SIGTERM: summary" "$(tail -n 1 "$DECAP_LOG")" \
	'packets decapsulated: [0-9]+ ipip_4in4 \([0-9]+ bytes\), .*left alone: .*[0-9]+ not_local.*; dropped: none'
check_no_trace "SIGTERM"

# Other sources; SIGINT.
tunnel gue "${LB[4]}" "${B1[4]}"
check "start for another source" start_decap --interface eth0 --from 192.0.2.1 --from "${LB[6]}"
check_fails "from a source that was not given" ask "$WEB4"
check "that is counted, too" test "$(counted other_source)" -gt 0
stop_decap INT
check_equal "SIGINT: status" "$DECAP_STATUS" 0
check_no_trace "SIGINT"

# Any source, generic XDP, another port, and interfaces that go and come back.
tunnel gue "${LB[6]}" "${B1[6]}" 7070
ip_ns b1 link add spare type veth peer name spare1
check "start with the other options" \
	start_decap --interface eth0 --interface spare --gue-port 7070 --xdp-mode generic
check_contains "any source is worth a warning" "$(cat "$DECAP_LOG")" 'WARN.*--from'
check_contains "both interfaces are named" "$(cat "$DECAP_LOG")" \
	'on eth0 \(generic\), spare \(generic\) from any source'
check_equal "generic XDP: HTTP" "$(ask "$WEB4")" b1
check_equal "generic XDP: HTTP, IPv6" "$(ask "$WEB6")" b1
check_equal "generic XDP: a 10 MB download" "$(ask "$WEB6" big | sha256sum | cut -d ' ' -f 1)" "$(big_sum)"
ip_ns b1 link del spare
check_soon "an interface that goes is noticed" 5 grep -q 'spare: the interface has gone' "$DECAP_LOG"
ip_ns b1 link add spare type veth peer name spare1
check_soon "and attached to when it is back" 5 has_program spare
check_equal "the other one goes on" "$(ask "$WEB4")" b1
ip_ns b1 link del spare
# It comes back with somebody else's program on it.
ip_ns b1 link add spare0 type veth peer name spare1
receives_xdp_tx b1 spare0
ip_ns b1 link set spare0 down
ip_ns b1 link set spare0 name spare
check_soon "one that comes back occupied: the log says what is in the way, and when it is tried again" 5 \
	grep -qE 'spare: .*another XDP program.*tries again in 1 s' "$DECAP_LOG"
check_soon "and again, later each time" 5 grep -qE 'spare: .*tries again in 2 s' "$DECAP_LOG"
ip_ns b1 link set dev spare xdpdrv off
attached_twice() {
	[ "$(grep -c 'spare: attached again' "$DECAP_LOG")" = 2 ]
}
check_soon "once it is free it is attached" 15 attached_twice
check_equal "and the other one goes on" "$(ask "$WEB4")" b1
ip_ns b1 link del spare

# kill -9 takes XDP with it and leaves the pins; the next start removes them.
stop_decap KILL
check_fails "after kill -9 eth0 has no program" has_program eth0
tunnel ipip "${LB[4]}" "${B1[4]}"
check "after kill -9 a start works" start_decap --interface eth0 --from "${LB[4]}"
check_equal "and so does what it does" "$(ask "$WEB4")" b1
stop_decap TERM
check_no_trace "after all that"

# refuses NAME STATUS REGEX ARGUMENTS...
refuses() {
	local name="$1" expected="$2" pattern="$3" said status=0
	shift 3
	said="$(in_ns b1 timeout 10 "$XDPLB" decap --pin-dir "$DECAP_PINS" "$@" 2>&1)" || status=$?
	check_equal "$name: status" "$status" "$expected"
	check_contains "$name: message" "$said" "$pattern"
	check "$name: no pins" test ! -e "$DECAP_PINS"
}
refuses "no interface" 2 '--interface'
refuses "an interface that does not exist" 1 'no interface eth9; this host has: .*eth0' --interface eth9
refuses "an interface without Ethernet" 1 'lo does not carry Ethernet' --interface lo
refuses "host bits in a prefix" 2 '10\.0\.1\.0/24' --interface eth0 --from 10.0.1.1/24
receives_xdp_tx b1 eth0
refuses "another XDP program" 1 'eth0.*another XDP program.*xdp off' --interface eth0
ip_ns b1 link set dev eth0 xdpdrv off
status=0
said="$(in_ns b1 timeout 10 capsh --drop=cap_bpf,cap_net_admin,cap_sys_admin,cap_perfmon -- \
	-c "exec \"$XDPLB\" decap --interface eth0" 2>&1)" || status=$?
check_equal "no capabilities: status" "$status" 1
check_contains "no capabilities: message" "$said" 'cap_bpf is missing.*root'
end
