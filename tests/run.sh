#!/usr/bin/env bash
# Everything that is checked before a change goes in: format, lints, licences, unit and
# packet tests, the release build, the scenarios end to end, some of them on older kernels.
# Installs what is missing.
#
#   sudo tests/run.sh          all of it
#   sudo tests/run.sh quick    without other kernels, and without floods
#
# Steps that do not wait for each other run side by side, and what one of those says is shown when it
# has ended. Of those, the ones whose time nothing is measured by get what CPU time the others leave: then
# scenarios, which mostly wait, find the machine as if they had it for themselves.
#
# cargo runs as the user who called sudo, so that target/ stays theirs; what needs root (tests
# that load BPF, namespaces) runs as root.
set -euo pipefail
cd "$(dirname "$0")/.."

QUICK=
case "$*" in
'') ;;
quick) QUICK=yes ;;
*)
	echo "usage: tests/run.sh [quick]     quick: without other kernels, and without floods" >&2
	exit 2
	;;
esac
if [ "$(id -u)" -ne 0 ]; then
	if command -v sudo >/dev/null; then
		echo "tests/run.sh needs root (network namespaces, BPF): run \"sudo tests/run.sh\"" >&2
	else
		echo "tests/run.sh needs root (network namespaces, BPF), and sudo is not installed: become root with \"su -\" and run it again" >&2
	fi
	exit 1
fi
# shellcheck source=topology/requirements.sh
. topology/requirements.sh

# Scenarios that send as fast as they can, or count what a busy machine would lose: by themselves.
LOAD="dos fullnat_onearm long_transfer nat_iperf wrk_fullnat wrk_nat wrk_reload"

KERNELS=(6.1 6.12)

summary=()
failures=0
work="$(mktemp -d)"
declare -A beside=() # process: the step
declare -A began=()  # process: when, in seconds

# Where this is stopped, so are the steps that run beside: they clean up.
finish() {
	local status=$? process
	trap - EXIT
	for process in "${!beside[@]}"; do
		kill -s TERM -- "-$process" 2>/dev/null || true
	done
	wait
	rm -rf "$work"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# conclude NAME SECONDS STATUS
conclude() {
	local verdict=ok
	if [ "$3" -ne 0 ]; then
		verdict=FAILED
		failures=$((failures + 1))
	fi
	summary+=("$(printf '%-8s %4d s  %s' "$verdict" "$2" "$1")")
}

# step NAME COMMAND...: goes on after a failure, so that one run shows all of them.
step() {
	local name="$1" start=$SECONDS status=0
	shift
	printf '\n==== %s\n' "$name"
	"$@" || status=$?
	conclude "$name" $((SECONDS - start)) "$status"
}

# step_beside NAME COMMAND...: likewise, while others run. What it says is shown by join_steps. It
# sets no variables here.
step_beside() {
	local name="$1" process
	shift
	# A process group of its own, so that all of it can be told to stop.
	set -m
	"$@" >"$work/said-$name" 2>&1 </dev/null &
	process=$!
	set +m
	beside[$process]="$name"
	began[$process]=$SECONDS
}

# idly COMMAND...: with the CPU time that nobody else wants.
idly() {
	chrt --idle --pid 0 "$BASHPID" >/dev/null
	"$@"
}

# join_steps [NAME]: until that one, or all that run beside, have ended.
join_steps() {
	local process name status
	while [ "${#beside[@]}" -gt 0 ]; do
		[ $# -eq 0 ] || grep -qxF -- "$1" <(printf '%s\n' "${beside[@]}") || return 0
		status=0
		wait -n -p process "${!beside[@]}" || status=$?
		name="${beside[$process]}"
		printf '\n==== %s\n' "$name"
		cat "$work/said-$name"
		conclude "$name" $((SECONDS - began[$process])) "$status"
		unset "beside[$process]" "began[$process]"
	done
}

c_format() {
	local files=()
	mapfile -t files < <(git ls-files 'bpf/*.c' 'bpf/*.h' 'include/*.h' 'topology/*.c' 'tests/*.c')
	[ "${#files[@]}" -eq 0 ] || clang-format-19 --dry-run -Werror "${files[@]}"
}

shell_lint() {
	local files=()
	# By name, and by their first line.
	mapfile -t files < <({
		git ls-files '*.sh'
		git grep -lIE '^#! ?/(usr/)?bin/(env )?(ba|da)?sh' || true
	} | sort -u)
	shellcheck "${files[@]}"
}

# Beside others, so not in their shell: $work/xdplb says where it is.
release() {
	build_release && echo "$XDPLB" >"$work/xdplb"
}

# The tests' programs, with those that need them, by cargo's names for them: in $work/programs, a line each.
build_tests() {
	as_cargo_user cargo test --quiet --no-run --message-format=json-render-diagnostics >"$work/tests.json" || return
	jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable != null) |
		"\(.target.name) \(.executable)"' "$work/tests.json" >"$work/programs"
	if [ ! -s "$work/programs" ]; then
		echo "cargo built no test program" >&2
		return 1
	fi
}

# As root, without root building: each program by itself.
cargo_test() {
	local name program status=0
	while read -r name program; do
		echo "-- $name"
		CARGO_MANIFEST_DIR="$REPOSITORY" "$program" --quiet </dev/null || status=1
	done <"$work/programs"
	as_cargo_user cargo test --doc --quiet || status=1
	return "$status"
}

licences() {
	if ! as_cargo_user sh -c 'command -v cargo-deny' >/dev/null; then
		echo "Installing cargo-deny: several minutes, this once"
		# It reads files; nobody waits for it to be fast, but for it to be built.
		if ! as_cargo_user env CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
			cargo install --locked --quiet cargo-deny; then
			echo "cargo-deny could not be installed: cargo install --locked cargo-deny" >&2
			return 1
		fi
	fi
	if as_cargo_user cargo deny --log-level error fetch db 2>"$work/fetch"; then
		as_cargo_user cargo deny --log-level error check --hide-inclusion-graph
	else
		echo "Advisories are NOT checked, their database could not be fetched: $(grep -i fatal "$work/fetch" || tail -n 1 "$work/fetch")"
		# Those of other platforms too, which building here does not ask for.
		as_cargo_user cargo fetch --locked --quiet
		as_cargo_user cargo deny --log-level error --offline check --hide-inclusion-graph bans licenses sources
	fi
}

# What tests/vm boots: fetched once, which takes the network and not the CPUs.
fetch_machines() {
	local vm kernel
	install_missing "$VM_REQUIREMENTS" || return
	# shellcheck source=tests/vm/packages.sh
	. tests/vm/packages.sh
	vm="$(target_directory)/vm"
	for kernel in "${KERNELS[@]}"; do
		fetch_kernel "$kernel" "$vm/$kernel" || return
	done
	fetch_busybox "$vm/busybox"
}

# scenarios COMMAND...: its checks are counted one by one, by the last line that it prints.
scenarios() {
	local output
	output="$(mktemp "$work/scenarios.XXXXXX")"
	XDPLB="$XDPLB" FLOOD="${FLOOD:-}" "$@" | tee "$output"
}

# with_kernels VERSION...: beside, each in a machine of its own.
with_kernels() {
	local kernel
	for kernel; do
		step_beside "Linux $kernel" idly scenarios env TEST_PROGRAMS="$work/programs" tests/vm/run.sh "$kernel"
	done
}

install_missing "$BUILD_REQUIREMENTS" "$TOPOLOGY_REQUIREMENTS" "$TEST_REQUIREMENTS"
find_cargo
# Under sudo the repository belongs to another than who asks git about it.
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0="$REPOSITORY"

# None of these needs more than a part of one CPU, or anything that is built.
step_beside "cargo fmt" as_cargo_user cargo fmt --all --check
step_beside "clang-format" c_format
step_beside "shellcheck" shell_lint
step_beside "cargo deny" idly licences
[ -n "$QUICK" ] || step_beside "kernels" idly fetch_machines

# Side by side: the end of a build is one program that is linked.
step_beside "release build" release
step "tests' build" build_tests
join_steps "release build"
XDPLB="$(cat "$work/xdplb" 2>/dev/null || true)"

STARTED=
if [ -n "$XDPLB" ]; then
	step_beside "end to end" scenarios env JOBS=2 WITHOUT="flood $LOAD" tests/e2e/run.sh
	if [ -z "$QUICK" ] && [ -s "$work/programs" ]; then
		join_steps "kernels"
		with_kernels "${KERNELS[0]}"
		STARTED=yes
	fi
fi
step "clippy" as_cargo_user cargo clippy --quiet --all-targets -- -D warnings
[ ! -s "$work/programs" ] || step "cargo test" cargo_test
[ -n "$QUICK" ] || step "flood's generator" build_flood
if [ -n "$STARTED" ]; then
	# The others now that there is a CPU for them: a machine takes more than one, but not two.
	join_steps "end to end"
	with_kernels "${KERNELS[@]:1}"
fi
join_steps
if [ -n "$XDPLB" ]; then
	# shellcheck disable=SC2086 # a list of names
	step "end to end, with load" scenarios tests/e2e/run.sh $LOAD ${FLOOD:+flood}
fi

printf '\n==== summary\n'
printf '%s\n' "${summary[@]}"
# The checks of the scenarios, and each other step as one.
passed=0
failed=0
steps=${#summary[@]}
for output in "$work"/scenarios.*; do
	result="$(tail -n 1 "$output" 2>/dev/null | grep -xE '[0-9]+ passed, [0-9]+ failed')" || continue
	read -r good _ bad _ <<<"$result"
	passed=$((passed + good))
	failed=$((failed + bad))
	steps=$((steps - 1))
	[ "$bad" -eq 0 ] || failures=$((failures - 1))
done
passed=$((passed + steps - failures))
failed=$((failed + failures))
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
