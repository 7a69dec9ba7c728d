#!/usr/bin/env bash
# This kernel takes both XDP programs, and what tests/packets and tests/decap say of them
# packet by packet holds on it: every table, and of searches of thousands of cases a part, since
# emulated each packet takes ten times as long.
set -euo pipefail

SKIP=(
	# What a user types and reads: no kernel changes it, and each loads the programs for itself, since
	# maps that were pinned are not handed on.
	commands::
	command_line::
)
export XDPLB_TESTS_ONE_IN=32

: "${PROGRAMS:?where the compiled test programs are; tests/vm/run.sh sets it}"
output="$(mktemp)"
trap 'rm -f "$output"' EXIT

# First what the verifier says: where it refuses the program, no other test can do better.
if ! "$PROGRAMS/packets" --nocapture the_verifiers_budget >"$output" 2>&1; then
	echo "FAIL packets: the program loads within the verifier's budget"
	sed 's/^/  /' "$output"
	exit 1
fi
echo "PASS packets: the program loads: $(sed -n 's/^verified //p' "$output") verified"

failed=0
for program in packets decap; do
	status=0
	"$PROGRAMS/$program" --test-threads=2 "${SKIP[@]/#/--skip=}" >"$output" 2>&1 || status=$?
	sed -nE "s/^test (.*) \.\.\. ok$/PASS $program: \1/p; s/^test (.*) \.\.\. FAILED$/FAIL $program: \1/p" "$output"
	if [ "$status" -ne 0 ]; then
		failed=1
		echo "FAIL $program: whole: status $status"
		sed '/^test /d; s/^/  /' "$output"
	fi
done
exit "$failed"
