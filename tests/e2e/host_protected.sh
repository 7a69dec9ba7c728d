#!/usr/bin/env bash
# However much is denied, and however little a source may send, the machine itself stays reachable:
# firewall, blocklists and [[dos]] are for VIPs. Logins, ping, neighbours, DNS, BGP, OSPF and VRRP to
# the host's own addresses, and what it asks of others.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need bird bird2
need dig bind9-dnsutils
need ping iputils-ping
need python3 python3
need tcpdump tcpdump
begin --serve
serve_http lb 22
serve_http lb 80
serve_dns lb
serve_http client
serve_dns client

# limits: one packet of each protocol, then nothing for an hour.
limits() {
	local protocol
	for protocol in tcp udp icmp; do
		cat <<-TOML

			[[dos]]
			name = "$protocol"
			protocol = "$protocol"
			limit = 1
			action = "block"
			block_for = "1h"
		TOML
	done
}

services() {
	web_service b1 b2 b3
	service dns '["tcp", "udp"]' 53 5-tuple - b1
}

printf '0.0.0.0/0\n::/0\n' >"$WORK/everybody.txt"
{
	services
	printf '\n[firewall]\ndefault = "deny"\nblocklists = ["everybody.txt"]\n'
	limits
} | write_config

# router HOST ADDRESS AS NEIGHBOUR AS: BIRD, which announces the VIPs where it is told to by
# standard input.
router() {
	local directory="$STATE/bird-$1"
	mkdir -p "$directory"
	{
		cat <<-BIRD
			router id $2;
			protocol device {}
			protocol bgp peer {
				local $2 as $3;
				neighbor $4 as $5;
				connect delay time 1;
				connect retry time 1;
				ipv4 { import all; export all; };
			}
		BIRD
		cat
	} >"$directory/bird.conf"
	start_process "$1" "bird-$1" bird -f -c "$directory/bird.conf" -s "$directory/control" -P "$directory/pid"
}

# asks HOST COMMAND...
asks() {
	birdc -s "$STATE/bird-$1/control" "${@:2}"
}

peer_says() {
	asks client show protocols all peer | grep -q "BGP state: *Established" &&
		asks client show route | grep -q "$VIP4/32.*from\|$VIP4/32.*\[peer"
}

# answered HOST ADDRESS N: of N queries.
answered() {
	for _ in $(seq "$3"); do
		in_ns "$1" dig +short +tries=1 +time=3 "@$2" TXT whoami.test || true
	done 2>&1 | grep -c '^"' || true
}

start_or_end

# ---- nobody reaches a service
for vip in "$VIP4" "$VIP6"; do
	check_fails "no TCP to $vip" client curl -sS --connect-timeout 0.5 "$(url "$vip")"
	check_fails "no UDP to $vip" client timeout 0.5 dig +short +tries=1 "@$vip" TXT whoami.test
	check_fails "no ping to $vip" client ping -c 1 -W 0.5 "$vip"
done
before="$(packets_counted blocklisted)"
check "they were on the blocklist" test "$before" -ge 6

# ---- and everybody the host
router lb "$LB4" 64512 "$CLIENT4" 64513 <<-BIRD
	protocol static { ipv4; route $VIP4/32 blackhole; }
BIRD
router client "$CLIENT4" 64513 "$LB4" 64512 </dev/null
# reachable: from the client, and others from the host.
reachable() {
	local address other login
	for address in "$LB4" "$LB6"; do
		[[ "$address" == *:* ]] && other="$CLIENT6" login="[$address]:22" || other="$CLIENT4" login="$address:22"
		check_equal "$1: a service of the host's, at $login" "$(who_answers "$login" 20)" lb
		check_equal "$1: the host's own port 80 at $address" "$(who_answers "$address" 20)" lb
		check_equal "$1: DNS to $address" "$(answered client "$address" 5)" 5
		check "$1: ping to $address" client ping -c 5 -i 0.2 -W 2 -w 10 "$address"
		check "$1: ping from the host to $other" in_ns lb ping -c 5 -i 0.2 -W 2 -w 10 "$other"
		check_equal "$1: the host's own queries to $other" "$(answered lb "$other" 5)" 5
	done
	for address in "$CLIENT4:8080" "[$CLIENT6]:8080" "${V4[b1]}:8080" "[${V6[b1]}]:8080"; do
		check "$1: the host's own connections to $address" in_ns lb curl -sS --fail --max-time 5 "http://$address/"
	done
	check_equal "$1: a backend, asked by the client itself" \
		"$(client curl -sS --max-time 5 "http://${V4[b1]}:8080/client" 2>&1)" "$CLIENT4"
}
reachable "all are denied"

ip_ns client neighbour flush all
ip_ns lb neighbour flush all
for address in "$LB4" "$LB6"; do
	check "neighbours find each other anew: ping to $address" client ping -c 1 -W 3 "$address"
done

# OSPF and VRRP, to the host and to whoever listens.
watch_packets lb eth0 -Q in 'ip proto 89 or ip proto 112 or ip6 proto 89 or ip6 proto 112'
sent_in_all=0
for protocol in 89 112; do
	for way in "$CLIENT4 $LB4" "$CLIENT4 224.0.0.18" "$CLIENT6 $LB6"; do
		send raw "${way% *}" "${way#* }" "$protocol" 100 0.1 >"$WORK/sent" 2>&1
		read -r _ _ sent <"$WORK/sent"
		sent_in_all=$((sent_in_all + sent))
	done
done
check "OSPF and VRRP packets are sent" test "$sent_in_all" -ge 12
check_equal "OSPF and VRRP packets come up to the host, all $sent_in_all" "$(packets_seen | wc -l)" "$sent_in_all"

check_soon "a BGP session comes up, and announces the VIP" 15 peer_says
check_equal "nothing of all that was judged" "$(packets_counted blocklisted)" "$before"
check_equal "nor counted against a limit" "$(packets_counted source_blocked) $(packets_counted rate_limited)" "0 0"
check_fails "the VIP is closed all the time" client curl -sS --connect-timeout 0.5 "$(url "$VIP4")"

# ---- whoever is held blocked reaches the host too
{
	services
	limits
} | write_config
check "reload: limits alone" reload_xdplb
for vip in "$VIP4" "$VIP6"; do
	# The handshake is more than one packet.
	check_fails "one packet is no request to $vip" client curl -sS --max-time 0.5 "$(url "$vip")"
	client ping -c 2 -i 0.2 -W 0.3 "$vip" >"$WORK/said" 2>&1 || true
	client timeout 0.3 dig +tries=1 "@$vip" TXT whoami.test >"$WORK/said" 2>&1 || true
	client timeout 0.3 dig +tries=1 "@$vip" TXT whoami.test >"$WORK/said" 2>&1 || true
done
check_equal "the client is held blocked for everything" \
	"$(dos_blocked "$CLIENT4"), $(dos_blocked "${CLIENT6%2}/64")" "icmp tcp udp, icmp tcp udp"
# Of TCP, what was sent to the VIP may still be sent again.
before="$(policy_value udp dropped) $(policy_value icmp dropped)"
reachable "all are blocked"
check "all are blocked: the BGP session stays" peer_says
check_equal "nothing of that was dropped" "$(policy_value udp dropped) $(policy_value icmp dropped)" "$before"
end
