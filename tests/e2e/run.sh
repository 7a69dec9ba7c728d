#!/usr/bin/env bash
# Runs the end-to-end scenarios, all of them or those named, and counts their checks.
#
#   tests/e2e/run.sh [NAME...]     e.g. tests/e2e/run.sh nat_http drain
#
# A NAME with a slash in it is the path of a scenario that is elsewhere.
# XDPLB names the binary, target/release/xdplb by default; SCENARIO_LIMIT is how many seconds one
# may take.
set -euo pipefail
export XDPLB_PREFIX="${XDPLB_PREFIX:-xdplb-e2e}"

here="$(cd "$(dirname "$0")" && pwd)"
if [ "$(id -u)" -ne 0 ]; then
	echo "tests/e2e/run.sh needs root (network namespaces, BPF): run \"sudo tests/e2e/run.sh $*\"" >&2
	exit 1
fi

scenarios=()
if [ $# -gt 0 ]; then
	for name in "$@"; do
		file="$name"
		[[ "$name" == */* ]] || file="$here/$(basename "$name" .sh).sh"
		if [ ! -e "$file" ]; then
			echo "no scenario \"$name\": there is no $file" >&2
			exit 2
		fi
		scenarios+=("$file")
	done
else
	for file in "$here"/*.sh; do
		case "$(basename "$file")" in
		lib.sh | run.sh) ;;
		*) scenarios+=("$file") ;;
		esac
	done
fi

output="$(mktemp)"
trap 'rm -f "$output"' EXIT
passed=0
failed=0
failures=""
for file in "${scenarios[@]}"; do
	name="$(basename "$file" .sh)"
	began=$SECONDS
	status=0
	# A scenario that hangs must not take the others with it.
	limit="${SCENARIO_LIMIT:-300}"
	timeout --foreground --kill-after=30 "$limit" bash "$file" 2>&1 | tee "$output" || status=$?
	if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
		echo "FAIL $name: whole: not done after $limit s" | tee -a "$output"
		# It may have been killed before it could clean up.
		"$here/../../topology/router.sh" down
		"$here/../../topology/onearm.sh" down
	elif [ "$status" -ne 0 ] && ! grep -q '^FAIL ' "$output"; then
		echo "FAIL $name: whole: it ended with status $status and said nothing" | tee -a "$output"
	fi
	passed=$((passed + $(grep -c '^PASS ' "$output" || true)))
	failed=$((failed + $(grep -c '^FAIL ' "$output" || true)))
	failures+="$(grep '^FAIL ' "$output" || true)"$'\n'
	echo "---- $name: $((SECONDS - began)) s"
done

if [ "$failed" -gt 0 ]; then
	echo
	echo "What failed:"
	grep . <<<"$failures"
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
