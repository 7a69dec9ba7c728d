#!/usr/bin/env bash
# The packet tables of tests/packets, run by this kernel.
set -euo pipefail

: "${PACKETS:?the compiled test program; tests/vm/run.sh sets it}"
status=0
"$PACKETS" --test-threads=2 >/tmp/packets 2>&1 || status=$?
sed -nE 's/^test (.*) \.\.\. ok$/PASS packets: \1/p; s/^test (.*) \.\.\. FAILED$/FAIL packets: \1/p' /tmp/packets
if [ "$status" -ne 0 ]; then
	echo "FAIL packets: whole: status $status"
	sed '/^test /d' /tmp/packets | sed 's/^/  /'
fi
exit "$status"
