#!/usr/bin/env bash
# Who may reach a VIP: rules by prefix, protocol and ports in the order of the file, IPv4 and IPv6;
# service.allow; default = "deny"; and reloads, which hold for connections that are there already.
#
# The clients are addresses of one host. Behind it stands one more, far, on a narrower link:
#
#   far eth0 ---- eth1 client eth0 ---- lb ...
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need ping iputils-ping
need dig bind9-dnsutils
begin --serve

# Of the lab one is a friend; busy is denied some ports.
LAB4=198.51.100.66 LAB6=2001:db8:c:1::66
FRIEND4=198.51.100.67 FRIEND6=2001:db8:c:1::67
BUSY4=198.51.100.5 BUSY6=2001:db8:c::5
FAR4=10.8.0.2 FAR6=2001:db8:f::2
client_addresses "$LAB4" "$LAB6" "$FRIEND4" "$FRIEND6" "$BUSY4" "$BUSY6"

add_ns far
add_link client eth1 far eth0
make_router client
add_addresses client eth1 10.8.0.1/24 2001:db8:f::1/64
add_addresses far eth0 "$FAR4/24" "$FAR6/64"
ip_ns far route add default via 10.8.0.1
ip_ns far -6 route add default via 2001:db8:f::1

# services: web for all, private for the friends.
services() {
	web_service b1
	service dns '["tcp", "udp"]' 53 5-tuple - b1
	service private '"tcp"' 81 5-tuple 8080 b1 |
		sed "s|^no_backend = .*|allow = [\"$FRIEND4\", \"$FRIEND6\", \"${BUSY4%.*}.4/31\"]|"
}

# rule NAME KEY VALUE...: a [[firewall.rule]]; values are put in quotes.
rule() {
	printf '\n[[firewall.rule]]\nname = "%s"\n' "$1"
	shift
	while [ $# -gt 0 ]; do
		printf '%s = "%s"\n' "$1" "$2"
		shift 2
	done
}

# dns SOURCE VIP [OPTION...]: which backend answers a query, or dig's complaint.
dns() {
	local source="$1" vip="$2"
	shift 2
	client dig +short +tries=1 +time=1 -b "$source" "$@" "@$vip" TXT whoami.test 2>&1 | tr -d '"' | xargs
}

# lets_in WHAT SOURCE VIP
lets_in() {
	check_equal "$1: $2 reaches the service" "$(get_from "$2" "$3" 2>&1)" b1
}

# keeps_out WHAT SOURCE VIP
keeps_out() {
	check_fails "$1: $2 does not" get_from "$2" "$3"
}

# at VIP PORT: as curl has it.
at() {
	[[ "$1" == *:* ]] && echo "[$1]:$2" || echo "$1:$2"
}

# ---- rules
ordered_rules() {
	rule friends4 action allow source "$FRIEND4"
	rule friends6 action allow source "$FRIEND6"
	rule lab4 action deny source 198.51.100.64/28
	rule lab6 action deny source 2001:db8:c:1::/64
	# Does not matter any more, though its prefix is longer.
	rule late action allow source "$LAB4"
	rule busy4 action deny source "$BUSY4" protocol tcp port 80
	rule busy6 action deny source "$BUSY6" protocol tcp port 70-90
	rule ping4 action deny source "$BUSY4" protocol icmp
	rule ping6 action deny source "$BUSY6" protocol icmp
	rule low action deny protocol udp source_port 1000-1999 port 53
}
{
	services
	ordered_rules
} | write_config
start_or_end
for family in 4 6; do
	vip="VIP$family" lab="LAB$family" friend="FRIEND$family" busy="BUSY$family" client="CLIENT$family"
	vip="${!vip}" lab="${!lab}" friend="${!friend}" busy="${!busy}" client="${!client}"
	keeps_out "a denied prefix" "$lab" "$vip"
	check_contains "a denied prefix: nor over UDP" "$(dns "$lab" "$vip")" 'no servers|timed out'
	check_fails "a denied prefix: nor by ping" client ping -c 1 -W 1 -I "$lab" "$vip"
	lets_in "allowed by an earlier rule" "$friend" "$vip"
	lets_in "no rule" "$client" "$vip"
	check "no rule: ping from $client" client ping -c 1 -W 2 -I "$client" "$vip"
	keeps_out "a denied port" "$busy" "$vip"
	check_equal "a denied port: $busy reaches another" "$(dns "$busy" "$vip")" b1
	check_fails "protocol = \"icmp\" denied: no ping from $busy" client ping -c 1 -W 1 -I "$busy" "$vip"
	check_contains "a denied source port: from $client" "$(dns "$client#1500" "$vip")" 'no servers|timed out'
	check_equal "a source port beside it: from $client" "$(dns "$client#2000" "$vip")" b1
	check_equal "the source port of another protocol: from $client" "$(dns "$client#1501" "$vip" +tcp)" b1
	lets_in "service.allow" "$friend" "$(at "$vip" 81)"
	keeps_out "service.allow" "$client" "$(at "$vip" 81)"
	check "each rule has counted what it denied, IPv$family" \
		test "$(rule_hits "lab$family")" -ge 3 -a "$(rule_hits "busy$family")" -ge 1 -a "$(rule_hits "ping$family")" -eq 1
done
# A prefix of service.allow, and no other service is meant by it.
check_fails "service.allow: a rule that denies comes before it" get_from "$LAB4" "$(at "$VIP4" 81)"
check_equal "service.allow: a prefix of several addresses" "$(get_from "$BUSY4" "$(at "$VIP4" 81)" 2>&1)" b1
check_equal "the rule that is never reached has decided nothing" "$(rule_hits late)" 0
check_equal "denied packets are counted: as the rules say" "$(packets_counted firewall)" \
	"$(look firewall --json | jq '[.[] | select(.action == "deny") | .packets] | add')"
check "and those of service.allow" test "$(packets_counted not_allowed)" -ge 2

# ---- a reload, for connections that are there
start_transfer denied "$VIP4" 1500k
start_transfer denied6 "$VIP6" 1500k
client curl -sS --fail --interface "$FRIEND4" --max-time 60 -o "$WORK/transfer-friend" \
	"$(url "$VIP4" "big?rate=2500k")" 2>"$WORK/transfer-friend.error" &
TRANSFERS[friend]=$!
three_run() {
	[ "$(connections_to b1 established)" -ge 3 ]
}
check_soon "three downloads run" 5 three_run
sleep 0.5
before="$(rule_hits lab4) $(rule_hits busy6)"
{
	services
	ordered_rules
	rule new4 action deny source "$CLIENT4" protocol tcp
	rule new6 action deny source "$CLIENT6" protocol tcp source_port 1024-65535 port 80
} | write_config
check "reload: two of them are denied" reload_xdplb
check_equal "rules that stayed keep their hits" "$(rule_hits lab4) $(rule_hits busy6)" "$before"
came() {
	stat -c %s "$WORK/transfer-denied" "$WORK/transfer-denied6" 2>/dev/null | xargs
}
# What was on its way.
sleep 0.5
size="$(came)"
sleep 1.5
check_equal "a download that is denied now stops at once" "$(came)" "$size"
check "it had begun" test "${size% *}" -gt 100000 -a "${size#* }" -gt 100000
check "its packets are counted for the new rules" test "$(rule_hits new4)" -ge 1 -a "$(rule_hits new6)" -ge 1
check "ping from there still works" client ping -c 1 -W 2 "$VIP4"
check_transfer "a download that is let in goes on" friend
{
	services
	ordered_rules
} | write_config
check "reload: denied no longer" reload_xdplb
check_transfer "the denied IPv4 download goes on" denied
check_transfer "the denied IPv6 download goes on" denied6
check_equal "rules that stayed keep their hits" "$(rule_hits lab4) $(rule_hits busy6)" "$before"

# ---- a file that cannot be used
{
	services
	ordered_rules
	rule bad action deny source 198.51.100.300/24
} | write_config
line="$(grep -n '198.51.100.300/24' "$CONFIG" | cut -d : -f 1)"
check_fails "reload: a bad rule" reload_xdplb
check_contains "a bad rule is named by file, line and column" "$(tail -n 3 "$LOG")" "$CONFIG:$line:10: "
status=0
said="$("$XDPLB" check --config "$CONFIG" 2>&1)" || status=$?
check_equal "xdplb check of it ends with status 2" "$status" 2
check_contains "and names it too" "$said" "$CONFIG:$line:10: "
check_equal "nothing has changed: hits" "$(rule_hits lab4) $(rule_hits busy6)" "$before"
keeps_out "nothing has changed: a denied prefix" "$LAB4" "$VIP4"
lets_in "nothing has changed: a friend" "$FRIEND4" "$VIP4"

# ---- default = "deny"
{
	services
	printf '\n[firewall]\ndefault = "deny"\n'
	rule web4 action allow source "$FAR4" protocol tcp port 80
	rule web6 action allow source "$FAR6" protocol tcp port 80
} | write_config
check "reload: default = \"deny\"" reload_xdplb
keeps_out 'default = "deny"' "$CLIENT4" "$VIP4"
keeps_out 'default = "deny"' "$CLIENT6" "$VIP6"
check_fails 'default = "deny": no ping' client ping -c 1 -W 1 "$VIP4"
check "what the default denies is counted" test "$(rule_hits default)" -ge 3

# Whoever says that packets are too big is the router between, whom no rule lets in.
for family in 4 6; do
	vip="VIP$family"
	in_ns far curl -sS --fail --connect-timeout 3 --max-time 20 -o "$WORK/transfer-far$family" \
		"$(url "${!vip}" "big?rate=4m")" 2>"$WORK/transfer-far$family.error" &
	TRANSFERS[far$family]=$!
done
sleep 1
check "default = \"deny\": downloads that a rule allows run" kill -0 "${TRANSFERS[@]}"
ip_ns client link set eth1 mtu 1400
check_transfer "path MTU discovery: an IPv4 download over a link that narrows" far4
check_transfer "path MTU discovery: an IPv6 download over a link that narrows" far6
for address in "$FAR4" "$FAR6"; do
	check_contains "the backend has learnt the MTU towards $address" "$(ip_ns b1 route get "$address")" 'mtu 1400'
done
end
