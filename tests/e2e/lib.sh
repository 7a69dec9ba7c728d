# shellcheck shell=bash
# The library of all end-to-end scenarios: a topology that is up while the
# scenario runs and gone afterwards, xdplb in its lb, configuration files made from a
# few words, and checks that print PASS or FAIL. Sourced by the scenarios, never run.
#
# A scenario sets TOPOLOGY before (router unless it says onearm), calls begin, and
# checks. What it leaves behind, on whatever way out, is a failure too.

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ROOT="$(cd "$HERE/../.." && pwd)"
SCENARIO="$(basename "$0" .sh)"
export XDPLB_PREFIX="${XDPLB_PREFIX:-xdplb-e2e}"
TOPOLOGY="${TOPOLOGY:-router}"
# shellcheck source=topology/lib.sh
. "$ROOT/topology/lib.sh"

XDPLB="${XDPLB:-$ROOT/target/release/xdplb}"
PIN_DIR="/sys/fs/bpf/$STEM"
RUN_DIR="/run/$STEM-daemon"
WORK="$(mktemp -d "/tmp/$STEM.XXXXXX")"
CONFIG="$WORK/lb.toml"
LOG="$WORK/xdplb.log"
XDPLB_PID=
XDPLB_STATUS=
FAILED=0
ENDED=

# What the configuration files say unless a scenario says otherwise, before write_config.
XDP_MODE="${XDP_MODE:-native}"
UNKNOWN_PORT=pass
ICMP_ECHO=true
CONNECTIONS=65536
TIMEOUTS='tcp_opening = "10s"
tcp_established = "10m"
tcp_closing = "10s"
udp = "30s"'

# shellcheck disable=SC2034 # for the scenarios
case "$TOPOLOGY" in
router)
	VIP4=203.0.113.11 VIP6=2001:db8:1::11
	LB4=198.51.100.1 LB6=2001:db8:c::1
	CLIENT4=198.51.100.2 CLIENT6=2001:db8:c::2
	INTERFACES='"eth0", "eth1", "eth2"'
	ADDRESSES=''
	FORWARD=nat
	declare -A V4=([b1]=10.0.1.2 [b2]=10.0.2.2 [b3]=10.0.3.2)
	declare -A V6=([b1]=2001:db8:b1::2 [b2]=2001:db8:b2::2 [b3]=2001:db8:b3::2)
	;;
onearm)
	VIP4=192.0.2.100 VIP6=2001:db8:2::100
	LB4=192.0.2.1 LB6=2001:db8:2::1
	CLIENT4=192.0.2.2 CLIENT6=2001:db8:2::2
	INTERFACES='"eth0"'
	ADDRESSES='"192.0.2.1", "2001:db8:2::1"'
	FORWARD=full-nat
	declare -A V4=([b1]=192.0.2.11 [b2]=192.0.2.12 [b3]=192.0.2.13)
	declare -A V6=([b1]=2001:db8:2::11 [b2]=2001:db8:2::12 [b3]=2001:db8:2::13)
	;;
esac

# ---------------------------------------------------------------------- checks

pass() {
	echo "PASS $SCENARIO: $1"
}

fail() {
	FAILED=$((FAILED + 1))
	echo "FAIL $SCENARIO: $1: ${2:-no reason given}"
}

# check NAME COMMAND...: passes when the command succeeds; its output is the reason if not.
check() {
	local name="$1"
	shift
	# Into a file: a command substitution would lose the variables that the command sets.
	if "$@" >"$WORK/check" 2>&1; then
		pass "$name"
	else
		fail "$name" "\"$*\" failed: $(tail -n 3 "$WORK/check" | tr '\n' ' ')"
	fi
}

# check_fails NAME COMMAND...: passes when the command does not succeed.
check_fails() {
	local name="$1"
	shift
	if "$@" >"$WORK/check" 2>&1; then
		fail "$name" "\"$*\" succeeded: $(tail -n 3 "$WORK/check" | tr '\n' ' ')"
	else
		pass "$name"
	fi
}

# check_equal NAME ACTUAL EXPECTED
check_equal() {
	if [ "$2" = "$3" ]; then
		pass "$1"
	else
		fail "$1" "got \"$2\", expected \"$3\""
	fi
}

# check_contains NAME TEXT EXTENDED_REGEX
check_contains() {
	if grep -qiE -- "$3" <<<"$2"; then
		pass "$1"
	else
		fail "$1" "nothing matches \"$3\" in: $(head -n 5 <<<"$2" | tr '\n' ' ')"
	fi
}

# check_soon NAME SECONDS COMMAND...: passes when the command succeeds within that time.
check_soon() {
	local name="$1" seconds="$2"
	shift 2
	if wait_for "$seconds" "$@"; then
		pass "$name"
	else
		fail "$name" "\"$*\" did not succeed within $seconds s"
	fi
}

# ------------------------------------------------------------- begin and end

# begin [up's arguments]
begin() {
	need_root
	need jq jq
	need curl curl
	if [ ! -x "$XDPLB" ]; then
		echo "FAIL $SCENARIO: no binary at $XDPLB: run \"cargo build --release\", or name one with XDPLB"
		rmdir "$WORK"
		exit 1
	fi
	trap finish EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	# What a run that was killed has left: its topology, xdplb included, and the pins.
	"$ROOT/topology/$TOPOLOGY.sh" down
	rm -rf "$PIN_DIR" "$PIN_DIR"-decap* "$RUN_DIR"
	"$ROOT/topology/$TOPOLOGY.sh" up "$@"
}

# The last line of a scenario: what comes without it ended early.
end() {
	ENDED=yes
	exit "$((FAILED > 0))"
}

finish() {
	local status=$? left
	trap - EXIT
	set +e
	[ -n "$ENDED" ] || fail "whole" "the scenario ended early, status $status"
	jobs -p | xargs -r kill 2>/dev/null
	[ -z "$XDPLB_PID" ] || stop_xdplb TERM
	if [ "$FAILED" -gt 0 ] && [ -s "$LOG" ]; then
		echo "  xdplb's log, the last of it:"
		tail -n 25 "$LOG" | sed 's/^/    /'
	fi
	"$ROOT/topology/$TOPOLOGY.sh" down
	left="$(ip netns list | grep -oE "^$STEM-(client|lb|sw|r|r2|b1|b2|b3)\b" | xargs)"
	[ -z "$left" ] || fail "nothing is left" "namespaces $left"
	left="$(find "$PIN_DIR" "$PIN_DIR"-decap* -type f -printf "%p " 2>/dev/null)"
	[ -z "$left" ] || fail "nothing is left" "pins: $left"
	# After a kill there is nobody to remove it.
	[ ! -e "$RUN_DIR" ] || [ "$XDPLB_STATUS" = 137 ] || fail "nothing is left" "$RUN_DIR"
	rm -rf "$PIN_DIR" "$PIN_DIR"-decap* "$RUN_DIR"
	rm -rf "$WORK"
	exit "$((FAILED > 0))"
}

# --------------------------------------------------------------- configuration

# write_config: services on standard input, the rest from the variables above. The file
# is replaced whole: a reload never reads half of one.
write_config() {
	{
		cat <<-TOML
			[datapath]
			interfaces = [$INTERFACES]
			xdp_mode = "$XDP_MODE"
			pin_dir = "$PIN_DIR"
			run_dir = "$RUN_DIR"
			unknown_port = "$UNKNOWN_PORT"
			icmp_echo = $ICMP_ECHO
			$([ -z "$ADDRESSES" ] || echo "addresses = [$ADDRESSES]")

			[limits]
			services = 64
			backends = 256
			connections = $CONNECTIONS

			[timeouts]
			$TIMEOUTS

		TOML
		cat
	} >"$CONFIG.new"
	mv "$CONFIG.new" "$CONFIG"
}

# service NAME PROTOCOL PORT HASH BACKEND_PORT BACKEND...: a [[service]] on both VIPs,
# each backend with both its addresses, or those of the families in FAMILIES. PROTOCOL and PORT
# are TOML ("tcp" with its quotes), BACKEND is HOST[,weight=N][,state=STATE] (other keys as well),
# BACKEND_PORT "-" leaves the port out. NO_BACKEND is what no_backend says.
FAMILIES='4 6'
NO_BACKEND=drop
service() {
	local name="$1" protocol="$2" port="$3" hash="$4" backend_port="$5" backend
	shift 5
	cat <<-TOML
		[[service]]
		name = "$name"
		vip = ["$VIP4", "$VIP6"]
		protocol = $protocol
		port = $port
		forward = "$FORWARD"
		hash = "$hash"
		no_backend = "$NO_BACKEND"
	TOML
	for backend in "$@"; do
		backend_tables "$backend_port" "$backend"
	done
}

backend_tables() {
	local port="$1" host="${2%%,*}" settings family name address
	settings="$(tr ',' '\n' <<<"$2" | sed -nE 's/^weight=(.*)/weight = \1/p; s/^state=(.*)/state = "\1"/p')"
	for family in $FAMILIES; do
		[ "$family" = 4 ] && name="$host" address="${V4[$host]}" ||
			name="$host-v6" address="${V6[$host]}"
		printf '\n[[service.backend]]\nname = "%s"\naddress = "%s"\n' "$name" "$address"
		[ "$port" = - ] || printf 'port = %s\n' "$port"
		[ -z "$settings" ] || printf '%s\n' "$settings"
	done
}

# web_service BACKEND...: the service that most scenarios use.
web_service() {
	service web '"tcp"' 80 5-tuple 8080 "$@"
}

# ----------------------------------------------------------------------- xdplb

xdplb_alive() {
	[ -n "$XDPLB_PID" ] && [ "$(sed 's/.*) //' "/proc/$XDPLB_PID/stat" 2>/dev/null | cut -c 1)" != Z ] &&
		kill -0 "$XDPLB_PID" 2>/dev/null
}

ready_or_dead() {
	grep -qi balancing "$LOG" || ! xdplb_alive
}

# launch_xdplb: in lb, with $CONFIG; does not wait for it to balance.
launch_xdplb() {
	: >"$LOG"
	# A shell starts what is in the background with SIGINT ignored; nobody else does.
	nsenter --net="/run/netns/$(ns lb)" -- env --default-signal=INT,QUIT \
		"$XDPLB" --config "$CONFIG" >"$LOG" 2>&1 &
	XDPLB_PID=$!
	mkdir -p "$STATE/pids"
	echo "$XDPLB_PID $(process_start_time "$XDPLB_PID")" >"$STATE/pids/xdplb"
}

# start_xdplb: returns when it balances, fails when it ended instead.
start_xdplb() {
	launch_xdplb
	wait_for 90 ready_or_dead || {
		echo "xdplb neither balances nor ends after 90 s"
		return 1
	}
	if ! xdplb_alive; then
		wait "$XDPLB_PID" && XDPLB_STATUS=0 || XDPLB_STATUS=$?
		XDPLB_PID=
		echo "xdplb ended with status $XDPLB_STATUS: $(tail -n 3 "$LOG" | xargs -0)"
		return 1
	fi
}

# start_or_end: for the scenarios that cannot go on without it.
start_or_end() {
	local output="$WORK/start"
	if ! start_xdplb >"$output" 2>&1; then
		fail "start" "$(cat "$output")"
		end
	fi
}

xdplb_dead() {
	! xdplb_alive
}

# stop_xdplb SIGNAL: sets XDPLB_STATUS.
stop_xdplb() {
	[ -n "$XDPLB_PID" ] || return 0
	kill -s "$1" "$XDPLB_PID" 2>/dev/null || true
	if ! wait_for 30 xdplb_dead; then
		kill -s KILL "$XDPLB_PID" 2>/dev/null || true
		fail "stop" "xdplb still ran 30 s after SIG$1"
	fi
	wait "$XDPLB_PID" 2>/dev/null && XDPLB_STATUS=0 || XDPLB_STATUS=$?
	XDPLB_PID=
}

# run_xdplb SECONDS ARGUMENTS...: in lb, to its end; prints what it says, returns its status.
run_xdplb() {
	local seconds="$1"
	shift
	in_ns lb timeout "$seconds" "$XDPLB" "$@" 2>&1
}

answers_to_reload() {
	grep -ciE 'reloaded|refused' "$LOG" || true
}

answered_since() {
	[ "$(answers_to_reload)" -gt "$1" ]
}

# reload_xdplb: SIGHUP, until the log says what came of it. Fails if the file was refused.
reload_xdplb() {
	local before
	xdplb_alive || {
		echo "xdplb does not run"
		return 1
	}
	before="$(answers_to_reload)"
	kill -s HUP "$XDPLB_PID"
	# Half a million prefixes take a while on a busy machine.
	wait_for 60 answered_since "$before" || {
		echo "no answer to SIGHUP in the log after 60 s"
		return 1
	}
	grep -iE 'reloaded|refused' "$LOG" | tail -n 1 | grep -qi reloaded
}

# look COMMAND ARGUMENTS...: a command that reads the maps, as in "look conns --json".
look() {
	local command="$1"
	shift
	in_ns lb "$XDPLB" "$command" --pin-dir "$PIN_DIR" "$@"
}

# The shape of the JSON is known here and nowhere else in the tests.

# connections_to BACKEND [STATE]: how many, IPv4 and IPv6.
connections_to() {
	look conns --json | jq --arg b "$1" --arg s "${2:-}" \
		'[.[] | select(.backend == $b or .backend == $b + "-v6") | select($s == "" or (.state | ascii_downcase) == $s)] | length'
}

# backend_value SERVICE BACKEND FIELD
backend_value() {
	look list --json | jq -r --arg s "$1" --arg b "$2" --arg f "$3" \
		'[.[] | select(.name == $s) | .backends[] | select(.name == $b)][0][$f]'
}

# packets_counted REASON: as in include/reasons.h, in any case, - or _.
packets_counted() {
	look drops --json | jq --arg r "$1" \
		'def plain: ascii_downcase | gsub("-"; "_"); [.[] | select((.reason | plain) == ($r | plain)) | .packets] | add // 0'
}

# rule_hits NAME: packets that the rule of this name has decided, or a blocklist, which has its
# file's, or "default".
rule_hits() {
	look firewall --json | jq -r --arg n "$1" \
		'[.[] | select((.name // .kind) == $n) | .packets][0] // "no such rule"'
}

# dos_blocked SOURCE: the protocols that it is blocked for, on one line.
dos_blocked() {
	look dos --json | jq -r --arg s "$1" '[.blocked[] | select(.source == $s) | .protocol] | sort | join(" ")'
}

# policy_value POLICY FIELD
policy_value() {
	look dos --json | jq -r --arg n "$1" --arg f "$2" '[.policies[] | select(.name == $n)][0][$f]'
}

# ------------------------------------------------- backends that answer directly

# holds_vips HOST VIP...: on its loopback, and nobody hears of it by ARP.
holds_vips() {
	local host="$1" vip
	shift
	for vip in "$@"; do
		case "$vip" in
		*:*) ip_ns "$host" -6 address add "$vip/128" dev lo nodad preferred_lft 0 ;;
		*) ip_ns "$host" address add "$vip/32" dev lo ;;
		esac
	done
	ns_sysctl "$host" ipv4/conf/all/arp_ignore 1
	ns_sysctl "$host" ipv4/conf/all/arp_announce 2
}

# decapsulate HOST ARGUMENTS...: starts xdplb decap on its eth0.
decapsulate() {
	local host="$1"
	shift
	start_process "$host" "decap-$host" "$XDPLB" decap --interface eth0 --pin-dir "$PIN_DIR-decap-$host" "$@"
	wait_for 20 grep -q 'decapsulating on' "$STATE/logs/decap-$host" || {
		fail "decap on $host" "$(tail -n 3 "$STATE/logs/decap-$host")"
		end
	}
}

# decapsulated HOST [REASON]: packets whose outer header came off there.
decapsulated() {
	"$XDPLB" drops --json --pin-dir "$PIN_DIR-decap-$1" | jq --arg r "${2:-}" \
		'[.[] | select(.reason == $r or ($r == "" and (.reason | test("^(ipip|gue)_")))) | .packets] | add'
}

# watch_packets HOST DEVICE EXPRESSION...: tcpdump, until packets_seen.
watch_packets() {
	local host="$1" device="$2"
	shift 2
	start_process "$host" watch tcpdump -n -l -i "$device" "$@"
	wait_for 10 grep -q 'listening on' "$STATE/logs/watch" || {
		fail "tcpdump" "$(cat "$STATE/logs/watch")"
		end
	}
}

# packets_seen: one a line.
packets_seen() {
	# The last of them are on their way to it.
	sleep 0.3
	stop_process watch INT
	grep -E '^[0-9:.]+ IP' "$STATE/logs/watch" || true
}

# --------------------------------------------------------------------- clients

# client COMMAND...
client() {
	in_ns client "$@"
}

# client_addresses ADDRESS...: more of them for the client. It sends from one only where it is told
# to, and lb has no route there: a reply goes back to whom the request came from.
client_addresses() {
	local address
	for address in "$@"; do
		case "$address" in
		*:*) ip_ns client -6 address add "$address/128" dev eth0 nodad preferred_lft 0 ;;
		*) ip_ns client address add "$address/32" dev eth0 ;;
		esac
	done
}

# get_from SOURCE ADDRESS [PATH [CURL_OPTION...]]: like get.
get_from() {
	client curl -sS --fail --interface "$1" --connect-timeout 3 --max-time 20 "${@:4}" "$(url "$2" "${3:-}")"
}

# send KIND SOURCE ADDRESS PORT RATE SECONDS: senders.py in the client.
send() {
	client python3 "$HERE/senders.py" "$@"
}

# url ADDRESS [PATH]: ADDRESS may have a port, IPv6 in brackets then.
url() {
	case "$1" in
	\[*) printf 'http://%s/%s' "$1" "${2:-}" ;;
	*:*:*) printf 'http://[%s]/%s' "$1" "${2:-}" ;;
	*) printf 'http://%s/%s' "$1" "${2:-}" ;;
	esac
}

# get ADDRESS [PATH]: one request, by itself.
get() {
	client curl -sS --fail --connect-timeout 3 --max-time 20 "$(url "$@")"
}

# answers ADDRESS N: N requests, each on a connection of its own; one answer a line.
answers() {
	# Without --fail-early each of them would wait for its own timeout.
	client curl -sS --fail --fail-early --connect-timeout 3 --max-time 20 -H 'Connection: close' \
		"$(url "$1")?[1-$2]"
}

# who_answers ADDRESS N: the backends that did, sorted, on one line; when a request went
# unanswered the line says that, and equals no list of backends.
who_answers() {
	local all count
	all="$(answers "$1" "$2" 2>&1)" || true
	count="$(grep -c . <<<"$all" || true)"
	[ "$count" -eq "$2" ] || printf 'only %s of %s answered: ' "$count" "$2"
	sort -u <<<"$all" | xargs
}

big_sum() {
	sha256sum <"$STATE/www/big" | cut -d ' ' -f 1
}

# start_transfer LABEL ADDRESS RATE: fetches the big file in the background, as slowly as RATE
# says. The server keeps to it: curl's --limit-rate lets the first megabytes through at once.
declare -A TRANSFERS=()
start_transfer() {
	client curl -sS --fail --connect-timeout 3 --max-time 120 -o "$WORK/transfer-$1" \
		"$(url "$2" "big?rate=$3")" 2>"$WORK/transfer-$1.error" &
	TRANSFERS[$1]=$!
}

# check_transfer NAME LABEL: waits for it; every byte has to have come.
check_transfer() {
	if ! wait "${TRANSFERS[$2]}"; then
		fail "$1" "$(cat "$WORK/transfer-$2.error") ($(stat -c %s "$WORK/transfer-$2" 2>/dev/null || echo 0) of 10485760 bytes came)"
	elif [ "$(sha256sum <"$WORK/transfer-$2" | cut -d ' ' -f 1)" != "$(big_sum)" ]; then
		fail "$1" "the file that came is another than the one that was sent"
	else
		pass "$1"
	fi
	unset "TRANSFERS[$2]"
}

# check_wrk NAME FILE: wrk's report, without a failed request.
check_wrk() {
	local trouble
	trouble="$(grep -E 'Socket errors|Non-2xx' "$2" | xargs)" || true
	if [ -n "$trouble" ]; then
		fail "$1" "$trouble"
	elif ! grep -qE '^ +[1-9][0-9]* requests in' "$2"; then
		fail "$1" "wrk made no request: $(tail -n 3 "$2" | xargs)"
	else
		pass "$1 ($(sed -nE 's/^ +([0-9]+ requests) in.*/\1/p' "$2"))"
	fi
}

# many_files: wrk with 1,000 connections needs more descriptors than a shell is given.
many_files() {
	ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -H -n)"
}

# check_iperf NAME LOSS ARGUMENTS...: iperf3 from the client; data came, and of datagrams
# no more than LOSS per cent were lost (two busy cores lose some by themselves).
check_iperf() {
	local name="$1" loss="$2" report="$WORK/iperf3" verdict
	shift 2
	client timeout 30 iperf3 -J "$@" >"$report" 2>"$report.said" || true
	verdict="$(jq -r --argjson loss "$loss" '
		if .error then .error
		elif .end.sum.lost_percent != null then
			if .end.sum.packets > 0 and .end.sum.lost_percent <= $loss then "ok"
			else "\(.end.sum.lost_percent) % of \(.end.sum.packets) datagrams lost" end
		elif (.end.sum_received.bytes // 0) > 100000 then "ok"
		else "\(.end.sum_received.bytes // 0) bytes received" end' "$report" 2>&1)" || true
	if [ "$verdict" = ok ]; then
		pass "iperf3, $name"
	else
		fail "iperf3, $name" "${verdict:-no report}"
	fi
}
