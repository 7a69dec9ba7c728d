#!/usr/bin/env bash
# wrk with 1,000 connections through forward = "full-nat": not one failed request.
set -euo pipefail
TOPOLOGY=onearm
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need wrk wrk
begin --serve
many_files

web_service b1 b2 b3 | write_config
start_or_end
for vip in "$VIP4" "$VIP6"; do
	client wrk -t 2 -c 1000 -d 8s --timeout 10s "$(url "$vip")" >"$WORK/wrk" 2>&1 || true
	check_wrk "$vip, 1,000 connections" "$WORK/wrk"
done
for backend in b1 b2 b3 b1-v6 b2-v6 b3-v6; do
	check "$backend had its share" test "$(backend_value web "$backend" connections)" -gt 100
done
check_equal "no packet found the table full" "$(packets_counted table_full)" 0
end
