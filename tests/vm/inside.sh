#!/usr/bin/env bash
# Inside a virtual machine, as its first process after init: runs the scenarios that
# /run/xdplb/scenarios names and switches the machine off. The last line of the output is
# the result; where it is missing the machine died on the way.
set -euo pipefail

finish() {
	# Changing the terminal's settings waits until all of the output is out.
	stty -F /dev/ttyS1 sane || true
	/run/xdplb/busybox poweroff -f
	sleep infinity
}
trap finish EXIT

export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd /run/xdplb
stty -F /dev/ttyS1 -onlcr
echo "Linux $(uname -r), up after $(cut -d ' ' -f 1 /proc/uptime) s"
mapfile -t scenarios <scenarios
# Distributions have its device node from the start.
modprobe tun
SCENARIO_LIMIT=2200 XDPLB=/run/xdplb/bin/xdplb PROGRAMS=/run/xdplb/bin tests/e2e/run.sh "${scenarios[@]}"
