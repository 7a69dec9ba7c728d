#!/usr/bin/env bash
# A removed backend and a backend that is down: no connection of theirs stays, all others
# do, and the ones that come back are as new.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

begin --serve

web_service b1 b2 b3 | write_config
start_or_end
check_equal "all three answer" "$(who_answers "$VIP4" 60) $(who_answers "$VIP6" 60)" "b1 b2 b3 b1 b2 b3"
# b3 is to go; these stay on the others.
web_service b1 b2 b3,weight=0 | write_config
check "reload" reload_xdplb
start_transfer v4 "$VIP4" 2m
start_transfer v6 "$VIP6" 2m
begun() {
	[ "$(look conns --json | jq '[.[] | select(.state | ascii_downcase == "established")] | length')" -ge 2 ]
}
check_soon "the transfers have begun" 5 begun

web_service b1 b2 | write_config
check "reload without b3" reload_xdplb
check_equal "list has no b3" "$(backend_value web b3 name)" null
check_equal "b3 gets nothing, IPv4" "$(who_answers "$VIP4" 60)" "b1 b2"
check_equal "b3 gets nothing, IPv6" "$(who_answers "$VIP6" 60)" "b1 b2"
check_equal "no connection names b3" "$(connections_to b3)" 0
check_transfer "the IPv4 transfer is undisturbed" v4
check_transfer "the IPv6 transfer is undisturbed" v6

web_service b1,state=down b2 | write_config
check "reload with b1 down" reload_xdplb
check_equal "b1 gets nothing" "$(who_answers "$VIP4" 40)" b2
web_service b1,state=down b2,weight=0 | write_config
check "reload with nobody left" reload_xdplb
check_fails "with no usable backend a connection is not made" get "$VIP4"
check "which is counted" test "$(packets_counted no_backend)" -gt 0
web_service b1 b2 b3 | write_config
check "reload with all" reload_xdplb
check_equal "all three are back" "$(who_answers "$VIP4" 60)" "b1 b2 b3"

{
	web_service b1 b2 b3
	service other '"tcp"' 8081 5-tuple 8080 b3
} | write_config
check "reload with a second service" reload_xdplb
check_equal "a service that a reload brings works" "$(who_answers "$VIP4:8081" 10)" b3
web_service b1 b2 b3 | write_config
check "reload without it" reload_xdplb
check_fails "a service that a reload removes does not" get "$VIP4:8081"
end
