#!/usr/bin/env bash
# This kernel takes the program, and the packet tables of tests/packets hold on it.
#
# Left out are the tests that send ten thousands of packets: what they search is the program's
# arithmetic, which no kernel changes, and emulated they take minutes.
set -euo pipefail

SKIP=(
	forward::every_tcp_and_udp_checksum
	forward::odd_lengths_and_padding
	forward::udp_checksum_that_becomes_zero
	properties::
)

: "${PACKETS:?the compiled test program; tests/vm/run.sh sets it}"
output="$(mktemp)"
trap 'rm -f "$output"' EXIT

# First what the verifier says: where it refuses the program, no other test can do better.
if ! "$PACKETS" --nocapture the_verifiers_budget >"$output" 2>&1; then
	echo "FAIL packets: the program loads within the verifier's budget"
	sed 's/^/  /' "$output"
	exit 1
fi
echo "PASS packets: the program loads: $(sed -n 's/^verified //p' "$output") verified"

status=0
"$PACKETS" --test-threads=2 "${SKIP[@]/#/--skip=}" >"$output" 2>&1 || status=$?
sed -nE 's/^test (.*) \.\.\. ok$/PASS packets: \1/p; s/^test (.*) \.\.\. FAILED$/FAIL packets: \1/p' "$output"
if [ "$status" -ne 0 ]; then
	echo "FAIL packets: whole: status $status"
	sed '/^test /d; s/^/  /' "$output"
fi
exit "$status"
