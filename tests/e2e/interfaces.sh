#!/usr/bin/env bash
# The interfaces that xdplb is attached to: no packet is lost to their order at the start, one that
# comes back occupied is tried again, and nobody gets the slot that connections still name.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need bpftool bpftool
begin --serve

# Datagrams to the VIP from one new port after another, as fast as one process sends them.
start_datagrams() {
	start_process client datagrams python3 -c "
import socket
while True:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.sendto(b'x', ('$VIP4', 53))
        except OSError:
            pass
"
}
slot_of() {
	local index
	index="$(ip_ns lb -j link show "$1" | jq '.[0].ifindex')"
	bpftool -j map dump pinned "$PIN_DIR/interfaces" |
		jq -r --argjson i "$index" '.[].formatted | select(.value.ifindex == $i) | .key'
}
balanced() {
	[ "$(look stats --json | jq '[.. | .packets_in? // empty] | add')" -gt 0 ]
}
eth2_has_none() {
	[ -z "$(slot_of eth2)" ]
}
log_has() {
	grep -qE -- "$1" "$LOG"
}

service dns '["tcp", "udp"]' 53 5-tuple - b1 b2 b3 | write_config
start_datagrams
for round in 1 2 3 4 5; do
	start_or_end
	check_soon "start $round, under datagrams: they are balanced" 5 balanced
	check_equal "start $round, under datagrams: none is lost for want of an interface" "$(packets_counted no_interface)" 0
	stop_xdplb TERM
done
stop_process datagrams

# eth1 goes, and comes back with somebody else's program on it.
web_service b1 | write_config
start_or_end
check_equal "b1 answers" "$(get "$VIP4")" b1
ip_ns lb link del eth1
check_soon "the log says that eth1 has gone" 5 log_has 'eth1: the interface has gone'
add_link lb new1 b1 eth0
receives_xdp_tx lb new1
ip_ns lb link set new1 down
ip_ns lb link set new1 name eth1
ip_ns lb link set eth1 up
receives_redirects b1 eth0
add_addresses lb eth1 10.0.1.1/24 2001:db8:b1::1/64
add_addresses b1 eth0 10.0.1.2/24 2001:db8:b1::2/64
ip_ns b1 route add default via 10.0.1.1
ip_ns b1 -6 route add default via 2001:db8:b1::1
check_soon "the log says what is in the way, and when it tries again" 5 \
	log_has 'eth1: .*another XDP program.*tries again in 1 s'
check_soon "and again, later each time" 5 log_has 'eth1: .*another XDP program.*tries again in 2 s'
ip_ns lb link set dev eth1 xdpdrv off
check_soon "once it is free it is attached" 15 log_has 'eth1: attached again'
answered() {
	[ "$(get "$VIP4")" = b1 ]
}
check_soon "and b1 answers again" 10 answered

# eth2 leaves; eth3 comes.
check_equal "eth2 has a slot" "$(slot_of eth2)" 2
INTERFACES='"eth0", "eth1"'
check "reload without eth2" eval 'web_service b1 | write_config; reload_xdplb'
check_soon "eth2 has none then" 5 eth2_has_none
add_link lb eth3 b1 eth3
INTERFACES='"eth0", "eth1", "eth3"'
check "reload with eth3" eval 'web_service b1 | write_config; reload_xdplb'
check_equal "eth3 does not get the slot that eth2 had" "$(slot_of eth3)" 3
INTERFACES='"eth0", "eth1", "eth3", "eth2"'
check "reload with eth2" eval 'web_service b1 b2 b3 | write_config; reload_xdplb'
check_equal "eth2 gets the slot that it had" "$(slot_of eth2)" 2
all_answer() {
	[ "$(who_answers "$VIP4" 60)" = "b1 b2 b3" ]
}
check_soon "and all backends answer" 10 all_answer
end
