#!/usr/bin/env bash
# Runs the end-to-end scenarios, all of them or those named, and counts their checks.
#
#   tests/e2e/run.sh [NAME...]     e.g. tests/e2e/run.sh nat_http drain
#
# A NAME with a slash in it is the path of a scenario that is elsewhere.
# XDPLB names the binary, target/release/xdplb by default; SCENARIO_LIMIT is how many seconds one
# may take; WITHOUT names some to leave out; JOBS is how many run side by side, one by default, each
# with a prefix of its own: what one says is then shown when it has ended.
set -euo pipefail
export XDPLB_PREFIX="${XDPLB_PREFIX:-xdplb-e2e}"
JOBS="${JOBS:-1}"

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

name_of() {
	basename "$1" .sh
}

# is_in NAME LIST...
is_in() {
	local name="$1" one
	shift
	for one in "$@"; do
		[ "$one" != "$name" ] || return 0
	done
	return 1
}

chosen=()
for file in "${scenarios[@]}"; do
	# shellcheck disable=SC2086 # a list of names
	is_in "$(name_of "$file")" ${WITHOUT:-} || chosen+=("$file")
done

work="$(mktemp -d)"
PREFIX="$XDPLB_PREFIX"
declare -A running=() # process: the place that it has, from 1 on
declare -A files=()   # process: the scenario

# Where it is stopped, its scenarios are told and clean up.
finish() {
	local status=$? process
	trap - EXIT
	for process in "${!running[@]}"; do
		kill -s TERM -- "-$process" 2>/dev/null || true
	done
	wait
	rm -rf "$work"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# run_one FILE: what it says, and how long it took.
run_one() {
	local file="$1" name began=$SECONDS status=0 limit="${SCENARIO_LIMIT:-300}" output
	name="$(name_of "$file")"
	output="$work/said-$name"
	# A scenario that hangs must not take the others with it.
	timeout --foreground --kill-after=30 "$limit" bash "$file" 2>&1 | tee "$output" || status=$?
	if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
		echo "FAIL $name: whole: not done after $limit s"
		# It may have been killed before it could clean up.
		"$here/../../topology/router.sh" down
		"$here/../../topology/onearm.sh" down
	elif [ "$status" -ne 0 ] && ! grep -q '^FAIL ' "$output"; then
		echo "FAIL $name: whole: it ended with status $status and said nothing"
	fi
	echo "---- $name: $((SECONDS - began)) s"
}

# start FILE: in the first place that is free.
start() {
	local file="$1" place=1 prefix="$PREFIX" process
	while is_in "$place" "${running[@]}"; do
		place=$((place + 1))
	done
	[ "$place" -eq 1 ] || prefix="$PREFIX-$place"
	# A process group of its own, so that all of it can be told to stop.
	set -m
	XDPLB_PREFIX="$prefix" run_one "$file" >"$work/$(name_of "$file")" 2>&1 </dev/null &
	process=$!
	set +m
	running[$process]=$place
	files[$process]=$file
}

# await: the next one to end.
await() {
	local process
	wait -n -p process "${!running[@]}" || true
	unset "running[$process]"
	cat "$work/$(name_of "${files[$process]}")"
}

for file in "${chosen[@]}"; do
	if [ "$JOBS" -le 1 ]; then
		run_one "$file" 2>&1 | tee "$work/$(name_of "$file")"
		continue
	fi
	[ "${#running[@]}" -lt "$JOBS" ] || await
	start "$file"
done
while [ "${#running[@]}" -gt 0 ]; do
	await
done

passed=0
failed=0
failures=""
for file in "${chosen[@]}"; do
	said="$work/$(name_of "$file")"
	passed=$((passed + $(grep -c '^PASS ' "$said" || true)))
	failed=$((failed + $(grep -c '^FAIL ' "$said" || true)))
	failures+="$(grep '^FAIL ' "$said" || true)"$'\n'
done

if [ "$failed" -gt 0 ]; then
	echo
	echo "What failed:"
	grep . <<<"$failures"
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
