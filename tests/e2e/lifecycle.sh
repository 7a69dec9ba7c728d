#!/usr/bin/env bash
# How xdplb starts and stops: signals, kill -9, a second instance, and every way in which
# a start can fail, each with its exit status, one message, and nothing left behind.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need capsh libcap2-bin
begin --serve

balances() {
	[ "$(who_answers "$VIP4" 60)" = "b1 b2 b3" ]
}
attached() {
	local device found=
	for device in eth0 eth1 eth2; do
		ip_ns lb link show "$device" | grep -q 'prog/xdp' && found="$found $device"
	done
	echo "${found# }"
}
check_nothing_attached() {
	check_equal "$1: no interface has a program" "$(attached)" ""
	check "$1: no pins" test ! -e "$PIN_DIR"
}

web_service b1 b2 b3 | write_config
check_equal "check accepts the file" \
	"$("$XDPLB" check --config "$CONFIG" --json | jq -r '.services[].name')" web
for signal in INT TERM; do
	start_or_end
	check "before SIG$signal it balances" balances
	check_equal "before SIG$signal every interface has a program" "$(attached)" "eth0 eth1 eth2"
	stop_xdplb "$signal"
	check_equal "SIG$signal: status" "$XDPLB_STATUS" 0
	check_nothing_attached "SIG$signal"
done

start_or_end
stop_xdplb KILL
check "after kill -9 a start works at once" start_xdplb
check "after kill -9 it balances" balances

# A second instance.
status=0
said="$(run_xdplb 10 --config "$CONFIG")" || status=$?
check_equal "a second instance ends with status" "$status" 1
check_contains "a second instance names the directory" "$said" "$RUN_DIR"
check "the first one goes on" balances

# SIGHUP with a bad file.
cp "$CONFIG" "$WORK/good.toml"
sed -i 's/weight/wait/; s/address = "10.0.1.2"/address = "10.0.1"/' "$CONFIG"
check_fails "a file that is wrong is refused" reload_xdplb
check_contains "the log says where" "$(grep -i refused "$LOG" | tail -n 1)" 'lb\.toml:[0-9]+:[0-9]+'
check "the old one stays in force" balances
rm "$CONFIG"
check_fails "a file that is gone is refused" reload_xdplb
check "the old one still stays in force" balances
cp "$WORK/good.toml" "$CONFIG"
check "a good one is taken again" reload_xdplb
stop_xdplb TERM
check_nothing_attached "after all that"

# refuses NAME STATUS REGEX: the start fails with that status and one line that says why.
refuses() {
	local said status=0
	said="$(run_xdplb 10 --config "$CONFIG")" || status=$?
	check_equal "$1: status" "$status" "$2"
	check_contains "$1: message" "$said" "$3"
	check_equal "$1: one error" "$(grep -ciE '\berror\b|^xdplb:' <<<"$said")" 1
	check_nothing_attached "$1"
}

(
	INTERFACES='"eth0", "eth9"'
	web_service b1 b2 b3 | write_config
)
refuses "an interface that does not exist" 1 'eth9'

cp "$WORK/good.toml" "$CONFIG"
sed -i 's/^forward = "nat"/forward = "gnat"/' "$CONFIG"
refuses "a word that is none" 2 'lb\.toml:[0-9]+:[0-9]+.*gnat'
status=0
said="$("$XDPLB" check --config "$CONFIG" 2>&1)" || status=$?
check_equal "check refuses the same file: status" "$status" 2
check_contains "check refuses the same file: message" "$said" 'lb\.toml:[0-9]+:[0-9]+'
status=0
said="$("$XDPLB" --config "$WORK/nowhere.toml" 2>&1)" || status=$?
check_equal "a file that does not exist: status" "$status" 2
check_contains "a file that does not exist: message" "$said" 'nowhere\.toml'
status=0
"$XDPLB" --no-such-option >/dev/null 2>&1 || status=$?
check_equal "a command line that is wrong: status" "$status" 2

# Somebody else's XDP program on the second interface: nothing is attached to the first.
cp "$WORK/good.toml" "$CONFIG"
receives_xdp_tx lb eth1
status=0
said="$(run_xdplb 10 --config "$CONFIG")" || status=$?
check_equal "another XDP program: status" "$status" 1
check_contains "another XDP program: message" "$said" 'eth1'
check_equal "another XDP program: it stays, and ours is nowhere" "$(attached)" eth1
check "another XDP program: no pins" test ! -e "$PIN_DIR"
ip_ns lb link set dev eth1 xdpdrv off

# Root by name only.
status=0
said="$(in_ns lb timeout 10 capsh --drop=cap_bpf,cap_net_admin,cap_sys_admin,cap_perfmon -- \
	-c "exec \"$XDPLB\" --config \"$CONFIG\"" 2>&1)" || status=$?
check_equal "no capabilities: status" "$status" 1
check_contains "no capabilities: message" "$said" 'cap_(bpf|net_admin|sys_admin)|root'
check_nothing_attached "no capabilities"

# Looking where nothing runs.
for command in list conns drops; do
	status=0
	said="$(look "$command" 2>&1)" || status=$?
	check_equal "$command without an instance: status" "$status" 1
	check_contains "$command without an instance: message" "$said" "$PIN_DIR"
done

check "after every refusal a start works" start_xdplb
check "and balances" balances
stop_xdplb TERM
end
