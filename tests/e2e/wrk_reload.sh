#!/usr/bin/env bash
# wrk with 1,000 connections while the file changes and is reloaded every 100 ms for a
# minute: not one failed request. Weights change all the time; b3 is drained, removed
# once its last connection has ended, and comes back; a backend nobody uses comes and goes.
# Removing a backend that still has connections would break them, and is meant to.
#
# E2E_SECONDS: how long, 60 by default.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need wrk wrk
begin --serve
many_files

phase=in
rounds=0
b3() {
	case "$phase" in
	in) echo "b3,weight=$((RANDOM % 20 + 1))" ;;
	draining) echo "b3,state=drain" ;;
	out) ;;
	esac
}

change_config() {
	# One word or none each.
	# shellcheck disable=SC2046
	{
		web_service "b1,weight=$((RANDOM % 20 + 1))" "b2,weight=$((RANDOM % 20 + 1))" $(b3)
		[ $((RANDOM % 2)) -eq 0 ] || service other '"tcp"' 8081 5-tuple 8080 "b2,weight=$((RANDOM % 9))"
	} | write_config
}

# A backend that is draining may go once nothing is left of its connections; those that
# only wait for late segments do not count.
b3_is_empty() {
	[ "$(look conns --json | jq '[.[] | select((.backend == "b3" or .backend == "b3-v6")
		and (.state | ascii_downcase | test("establish|opening")))] | length')" -eq 0 ]
}

next_phase() {
	rounds=$((rounds + 1))
	case "$phase" in
	in) [ "$rounds" -lt 20 ] || { phase=draining rounds=0; } ;;
	draining)
		if [ $((rounds % 10)) -eq 0 ] && b3_is_empty; then
			phase=out rounds=0
			removals=$((removals + 1))
		fi
		;;
	out) [ "$rounds" -lt 20 ] || { phase=in rounds=0; } ;;
	esac
}

change_config
start_or_end
seconds="${E2E_SECONDS:-60}"
client wrk -t 2 -c 1000 -d "${seconds}s" --timeout 10s "$(url "$VIP4")" >"$WORK/wrk" 2>&1 &
wrk=$!
reloads=0 refused=0 removals=0
due="${EPOCHREALTIME/[.,]/}"
while kill -0 "$wrk" 2>/dev/null; do
	change_config
	reload_xdplb || refused=$((refused + 1))
	reloads=$((reloads + 1))
	next_phase
	due=$((due + 100000))
	rest=$((due - ${EPOCHREALTIME/[.,]/}))
	if [ "$rest" -gt 0 ]; then
		sleep "$(printf '0.%06d' "$rest")"
	else
		due=$((due - rest)) # behind: no burst to make up for it
	fi
done
wait "$wrk" || true
check_wrk "$reloads reloads under load" "$WORK/wrk"
check_equal "no reload was refused or went unanswered" "$refused" 0
# wrk leaves little of two cores to the rest.
check "there were at least four reloads a second" test "$reloads" -ge $((seconds * 4))
check "a backend was drained and removed, $removals times" test "$removals" -ge 1
end
