#!/usr/bin/env bash
# iperf3 through forward = "nat": TCP both ways, UDP both ways, IPv4 and IPv6.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need iperf3 iperf3
begin --serve

service iperf3 '["tcp", "udp"]' 5201 source-ip - b1 b2 b3 | write_config
start_or_end
for vip in "$VIP4" "$VIP6"; do
	check_iperf "$vip TCP" 0 -c "$vip" -t 3
	check_iperf "$vip TCP, four at once" 0 -c "$vip" -t 3 -P 4
	check_iperf "$vip TCP, from the backend" 0 -c "$vip" -t 3 -R
	check_iperf "$vip UDP" 5 -c "$vip" -t 3 -u -b 50M -l 1200
	check_iperf "$vip UDP, from the backend" 5 -c "$vip" -t 3 -u -b 50M -l 1200 -R
done
# Each datagram of 4000 bytes is three fragments.
check_iperf "$VIP4 UDP in fragments" 5 -c "$VIP4" -t 2 -u -b 10M -l 4000
check_iperf "$VIP4 UDP in fragments, from the backend" 5 -c "$VIP4" -t 2 -u -b 10M -l 4000 -R
end
