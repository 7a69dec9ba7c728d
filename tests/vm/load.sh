#!/usr/bin/env bash
# This kernel takes the program: the release binary loads it and attaches it to veth in every
# XDP mode, and packets of each address family go through; how much the verifier had to look at.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/../e2e/lib.sh"

: "${PACKETS:?the compiled test program; tests/vm/run.sh sets it}"
begin --serve

for XDP_MODE in native generic auto; do
	web_service b1 | write_config
	start_or_end
	for vip in "$VIP4" "$VIP6"; do
		check_equal "$XDP_MODE: $vip answers" "$(get "$vip")" b1
	done
	stop_xdplb TERM
	check_equal "$XDP_MODE: ends with status 0" "$XDPLB_STATUS" 0
done

status=0
"$PACKETS" --nocapture the_verifiers_budget >"$WORK/budget" 2>&1 || status=$?
check_equal "within the verifier's budget: $(sed -n 's/^verified //p' "$WORK/budget")" "$status" 0
end
