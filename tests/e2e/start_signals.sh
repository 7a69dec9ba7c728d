#!/usr/bin/env bash
# Signals during the start: a reload asked for meanwhile happens once xdplb runs, a stop leaves nothing.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

begin --serve

# A neighbour that nobody answers for makes the start take at least as long as it is waited for.
slow_start_file() {
	{
		web_service b1
		printf '\n[[service.backend]]\nname = "nobody"\naddress = "10.0.1.99"\nport = 8080\n'
	} | write_config
}

# It handles signals from its first instructions on; the shell sees when it has them blocked.
handles_signals() {
	[ "$((0x$(sed -n 's/^SigBlk:\t//p' "/proc/$XDPLB_PID/status" 2>/dev/null || echo 0) & 1))" -eq 1 ]
}
at_work() {
	grep -q "$1" "$LOG"
}
attached() {
	ip_ns lb link show eth0 | grep -q 'prog/xdp'
}

slow_start_file
for delay in 0 0.05 0.3 0.9 1.3; do
	launch_xdplb
	check_soon "SIGHUP after $delay s: signals are handled" 5 handles_signals
	sleep "$delay"
	kill -s HUP "$XDPLB_PID"
	check_soon "SIGHUP after $delay s: it starts" 20 at_work balancing
	check_soon "SIGHUP after $delay s: it reloads then" 10 at_work reloaded
	check_equal "SIGHUP after $delay s: once" "$(grep -c reloaded "$LOG")" 1
	stop_xdplb TERM
done

for signal in TERM INT; do
	for delay in 0 0.05 0.3 0.9 1.3; do
		launch_xdplb
		wait_for 5 handles_signals || true
		sleep "$delay"
		stop_xdplb "$signal"
		check_equal "SIG$signal after $delay s: status" "$XDPLB_STATUS" 0
		check_fails "SIG$signal after $delay s: nothing is attached" attached
		check "SIG$signal after $delay s: no pins" test ! -e "$PIN_DIR"
	done
done
end
