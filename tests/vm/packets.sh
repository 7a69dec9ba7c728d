#!/usr/bin/env bash
# This kernel takes both XDP programs, and what tests/packets and tests/decap say of them
# packet by packet holds on it.
#
# Left out is what no kernel changes: the tests that send ten thousands of packets, which search
# the program's arithmetic and take minutes where everything is emulated; which backend is chosen,
# by tables that are made outside of the kernel, and the same without an entry; the command line,
# the commands and what they read; and every combination of firewall rules and limits, of which
# the scenario `protection` has some. The oldest kernel is asked most: what it and this machine's
# agree on, one between them is hardly to have its own view of.
set -euo pipefail

SKIP=(
	forward::every_tcp_and_udp_checksum
	forward::odd_lengths_and_padding
	forward::udp_checksum_that_becomes_zero
	direct::every_checksum
	direct::outer_sources_out_of_a_prefix
	icmp::errors_of_many_checksums
	icmp::pings_of_every_checksum
	icmp::pings_whose_sum_is_nothing
	sources::a_
	sources::every_
	sources::exhaustion_
	sources::half_open_
	sources::nat_
	sources::ports_
	properties::
	selection::
	command_line::
	applied::
	commands::
	totals::
	blocklists::
	firewall::
	police::
	pool::
	endings::both_sides_at_once
	unrecorded::as_if_there_were_an_entry
)
OLDEST=6.1
case "$(uname -r)" in
"$OLDEST".*) ;;
*)
	SKIP+=(
		admission::
		allowed::
		answers::
		firewall_beyond_ports::
		host_traffic::
		malformed::
		not_ours::
	)
	;;
esac

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
