#!/usr/bin/env bash
# The demonstration: from nothing to requests spread over three backends, one of them
# drained by editing the file, in network namespaces that are gone afterwards. Asks
# nothing; a second run takes seconds.
#
#   sudo topology/demo.sh [--keep]     --keep leaves it running, and says how to go on
set -euo pipefail
export XDPLB_PREFIX="${XDPLB_PREFIX:-xdplb-demo}"
TOPOLOGY=router
# shellcheck source=topology/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=topology/requirements.sh
. "$TOPOLOGY_DIR/requirements.sh"

router="$TOPOLOGY_DIR/router.sh"
pin_dir="/sys/fs/bpf/$STEM"
run_dir="/run/$STEM-daemon"
config="$STATE/lb.toml"
log="$STATE/logs/xdplb"
keep=
work="$(mktemp -d)"

case "${1:-}" in
'') ;;
--keep) keep=yes ;;
-h | --help)
	echo "usage: $0 [--keep]"
	exit
	;;
*) die "takes --keep or nothing, not \"$1\"" ;;
esac
need_root "$@"

clean_up() {
	local status=$?
	trap - EXIT
	rm -rf "$work"
	if [ "$status" -ne 0 ] && [ "$status" -lt 128 ] && [ -s "$log" ]; then
		echo "The demo stopped. xdplb's log:" >&2
		tail -n 20 "$log" >&2
	fi
	if [ -z "$keep" ] || [ "$status" -ne 0 ]; then
		"$router" down
	fi
	exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -t 1 ]; then
	bold=$'\e[1m' plain=$'\e[0m'
else
	bold='' plain=''
fi

title() {
	printf '\n%s%s%s\n' "$bold" "$*" "$plain"
}

# run SHOWN COMMAND...: a command as a person would type it, and what it says.
run() {
	printf '$ %s\n' "$1"
	shift
	"$@"
}

look() {
	run "xdplb $*" in_ns lb "$XDPLB" "$@" --pin-dir "$pin_dir"
}

# requests VIP N: each on a connection of its own, and who answered how many.
requests() {
	printf '%3s requests to %-20s' "$2" "$1"
	in_ns client curl -sS --fail --fail-early --max-time 20 -H 'Connection: close' "$1/?[1-$2]" >"$work/answers"
	sort "$work/answers" | uniq -c | awk '{ printf "   %s: %d", $2, $1 } END { print "" }'
}

logged() {
	grep -qiE "$1" "$log"
}

ended_or_logged() {
	process_gone xdplb || logged "$1"
}

title "What it takes: packages and the program"
install_missing "$BUILD_REQUIREMENTS" "$TOPOLOGY_REQUIREMENTS"
if [ -z "${XDPLB:-}" ]; then
	find_cargo
	echo "Building the release (minutes the first time, nothing after that)"
fi
build_release
echo "$XDPLB"

title "A client, the balancer as a router, three web servers - in namespaces of this machine"
"$router" down
"$router" up --serve
sed "s|^pin_dir = .*|pin_dir = \"$pin_dir\"|; s|^run_dir = .*|run_dir = \"$run_dir\"|" \
	"$TOPOLOGY_DIR/router.toml" >"$config"
"$router" status | grep -vE '^(dnsmasq|iperf3|nginx)-'

title "xdplb, on the balancer's three interfaces"
run "xdplb --config lb.toml" start_process lb xdplb "$XDPLB" --config "$config"
if ! wait_for 20 ended_or_logged balancing || process_gone xdplb; then
	die "xdplb did not start"
fi
cat "$log"

title "Requests to the VIP, spread over the backends"
requests http://203.0.113.11 90
requests 'http://[2001:db8:1::11]' 90

title "The services, the connections, and what was not balanced"
look list
look conns >"$work/conns"
head -n 11 "$work/conns"
[ "$(wc -l <"$work/conns")" -le 11 ] || echo "... and $(($(wc -l <"$work/conns") - 11)) more"
look drops

title "b2 is drained, by editing the file, while a download from each backend runs"
downloads=()
for _ in 1 2 3 4 5 6; do
	in_ns client curl -sS --fail -o "$work/download" 'http://203.0.113.11/big?rate=3m' &
	downloads+=($!)
done
established() {
	in_ns lb "$XDPLB" conns --json --pin-dir "$pin_dir" |
		jq -e '[.[] | select(.state | ascii_downcase == "established")] | length >= 6'
}
wait_for 5 established || die "the downloads do not show in xdplb conns"
sed -i '/^name = "b2"/a state = "drain"' "$config"
echo "lb.toml, [[service.backend]] name = \"b2\": state = \"drain\""
run "xdplb reload" in_ns lb "$XDPLB" reload --run-dir "$run_dir"
requests http://203.0.113.11 90
look list
failed=0
for download in "${downloads[@]}"; do
	wait "$download" || failed=$((failed + 1))
done
echo "downloads that were running: ${#downloads[@]}, broken: $failed"
[ "$failed" -eq 0 ] || die "a drain must not break a connection"

if [ -n "$keep" ]; then
	title "It stays up"
	cat <<-TEXT
		requests:         $router exec client curl http://203.0.113.11/
		the balancer:     $router exec lb $XDPLB list --pin-dir $pin_dir
		configuration:    $config, then $XDPLB reload --run-dir $run_dir
		the log:          $log
		take it down:     XDPLB_PREFIX=$PREFIX $router down
		Each with XDPLB_PREFIX=$PREFIX in the environment.
	TEXT
else
	title "Stopped; nothing is left"
	stop_process xdplb TERM
fi
