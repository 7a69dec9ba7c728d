#!/usr/bin/env bash
# xdplb reload and the control socket: who may ask, what is said to whom and when, and that no client
# holds the balancer up.
set -euo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

need python3 python3
need setpriv util-linux
begin --serve

SOCKET="$RUN_DIR/control.sock"

# ask [ARGUMENTS...]: xdplb reload; SAID and STATUS are what comes of it.
ask() {
	STATUS=0
	SAID="$(timeout 20 "$XDPLB" reload --run-dir "$RUN_DIR" "$@" 2>&1)" || STATUS=$?
}
weight() {
	backend_value web b1 weight
}
balances() {
	[ "$(who_answers "$VIP4" 100)" = "b1 b2" ]
}
reloads() {
	grep -c "reloaded" "$LOG" || true
}

# slow_file WEIGHT: a file that takes a second to come into force, if it is new: nobody answers there.
slow_file() {
	{
		web_service "b1,weight=$1" b2
		printf '\n[[service.backend]]\nname = "nobody"\naddress = "10.0.1.%s"\nport = 8080\n' "$((100 + $1))"
	} | write_config
}
file() {
	web_service "b1,weight=$1" b2 | write_config
}

# ---- nobody there
file 1
ask
check_equal "no daemon: status" "$STATUS" 1
check_contains "no daemon: message" "$SAID" "no xdplb answers at $SOCKET: start it"

# ---- during the start
slow_file 1
launch_xdplb
check_soon "during the start the socket is there" 10 test -S "$SOCKET"
ask
check_equal "asked during the start: status" "$STATUS" 0
check_equal "asked during the start: it runs then, and has reloaded" "$(reloads)" 1
check "asked during the start: it balances" balances

# ---- who may ask
check_equal "the directory is its owner's" "$(stat -c '%a %u' "$RUN_DIR")" "700 0"
check_equal "the socket is its owner's" "$(stat -c '%a %u' "$SOCKET")" "600 0"
as_nobody() {
	cp "$XDPLB" "$WORK/xdplb" 2>/dev/null || true
	chmod 755 "$WORK" "$WORK/xdplb"
	setpriv --reuid=65534 --regid=65534 --clear-groups timeout 10 "$WORK/xdplb" reload --run-dir "$RUN_DIR" 2>&1
}
status=0
said="$(as_nobody)" || status=$?
check_equal "another user: status" "$status" 1
check_contains "another user: message" "$said" "cannot open $SOCKET: run as root"
chmod 711 "$RUN_DIR"
chmod 666 "$SOCKET"
status=0
said="$(as_nobody)" || status=$?
check_equal "another user whom the file system lets through: status" "$status" 1
check_contains "another user whom the file system lets through: message" "$said" "only root and the user"
chmod 700 "$RUN_DIR"
chmod 600 "$SOCKET"
check_contains "the log says who asked" "$(cat "$LOG")" "control socket: refused process [0-9]+ of user 65534"

# ---- in force when it returns
for weight in 2 3 4; do
	file "$weight"
	ask
	check_equal "reload: status" "$STATUS" 0
	check_equal "reload: message" "$SAID" "$CONFIG is in force: 1 service"
	check_equal "reload: in force when it returns" "$(weight)" "$weight"
done
ask --json
check_equal "reload --json" "$(jq -c '[.result, .file, .services, .warnings]' <<<"$SAID")" \
	"[\"in_force\",\"$CONFIG\",1,[]]"

# ---- refused: every fault, and nothing changes
web_service b1,weight=5000 b2 | write_config
sed -i 's/^unknown_port = .*/unknown_port = "maybe"/' "$CONFIG"
ask
check_equal "refused: status" "$STATUS" 1
check_contains "refused: the first fault" "$SAID" '^xdplb: .*lb\.toml:[0-9]+:[0-9]+: .*unknown_port.*maybe'
check_contains "refused: the second" "$SAID" 'lb\.toml:[0-9]+:[0-9]+: .*weight.*5000'
check_contains "refused: and what holds" "$SAID" "keeps the previous configuration"
ask --json
check_equal "refused --json: status" "$STATUS" 1
check_equal "refused --json" "$(head -n 1 <<<"$SAID" | jq -c '[.result, .file]')" "[\"refused\",\"$CONFIG\"]"
check_equal "refused --json: each fault with its place" "$(head -n 1 <<<"$SAID" |
	jq -r '.faults[] | capture("lb.toml:[0-9]+:[0-9]+: .*(?<key>unknown_port|weight)").key' | sort -u | xargs)" "unknown_port weight"
check_equal "refused: nothing has changed" "$(weight)" 4
check "refused: it balances" balances
file 4
sed -i "s|^run_dir = .*|run_dir = \"$RUN_DIR-other\"|" "$CONFIG"
ask
check_equal "another run_dir: status" "$STATUS" 1
check_contains "another run_dir: message" "$SAID" "datapath.run_dir can only change with a restart"

# ---- warnings are printed
printf '198.18.0.0/15\n' >"$WORK/list.txt"
{
	web_service b1,weight=4 b2
	printf '[firewall]\nblocklists = ["%s"]\n' "$WORK/list.txt"
} | write_config
ask
check_equal "with a blocklist: status" "$STATUS" 0
printf 'nonsense\n' >"$WORK/list.txt"
ask
check_equal "a spoilt blocklist: status" "$STATUS" 0
check_contains "a spoilt blocklist: a warning" "$SAID" "^xdplb: warning: .*list\.txt:1:1"
check_contains "a spoilt blocklist: in force all the same" "$SAID" "is in force"

# ---- queued: while one is under way several become one, and each is answered by one that covers it
before="$(reloads)"
slow_file 5
timeout 20 "$XDPLB" reload --run-dir "$RUN_DIR" >"$WORK/first" 2>&1 &
first=$!
sleep 0.3
slow_file 6
asked=()
for number in 1 2 3 4 5 6; do
	timeout 20 "$XDPLB" reload --run-dir "$RUN_DIR" >"$WORK/asked-$number" 2>&1 &
	asked+=($!)
done
kill -s HUP "$XDPLB_PID"
check "queued: the first" wait "$first"
for process in "${asked[@]}"; do
	check "queued: one of those that came meanwhile" wait "$process"
done
check_equal "queued: what came meanwhile is in force" "$(weight)" 6
check_equal "queued: two reloads for eight" "$(($(reloads) - before))" 2

# ---- clients that say nothing, too much, or nonsense
python3 - "$SOCKET" "$WORK/python-ready" <<'PYTHON' &
import socket, sys, time
def connect():
    client = socket.socket(socket.AF_UNIX)
    client.connect(sys.argv[1])
    return client
silent = [connect() for _ in range(40)]
long = connect()
try:
    long.sendall(b"x" * 1000000)
except OSError:
    pass
half = connect()
half.sendall(b'{"request":')
nonsense = connect()
nonsense.sendall(b"\xff\x00\n" * 1000)
gone = connect()
gone.sendall(b'{"request":"reload"}\n')
gone.close()
open(sys.argv[2], "w").close()
time.sleep(3)
PYTHON
hostile=$!
check_soon "hostile clients: they are there" 10 test -e "$WORK/python-ready"
file 7
ask
check_equal "hostile clients: a reload works beside them" "$STATUS" 0
check_equal "hostile clients: and is in force" "$(weight)" 7
check "hostile clients: it balances" balances
kill "$hostile" 2>/dev/null || true
wait "$hostile" 2>/dev/null || true
said="$(printf '{"request":"dance"}\n' | python3 -c '
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(sys.stdin.buffer.read())
client.shutdown(socket.SHUT_WR)
print(client.makefile().read())' "$SOCKET")"
check_equal "an unknown request" "$(jq -r '.result' <<<"$said")" error
check_contains "an unknown request: message" "$said" 'unknown variant .*dance.*reload'

# ---- one directory is one instance
cp "$CONFIG" "$WORK/mine.toml"
sed -i "s|^pin_dir = .*|pin_dir = \"$PIN_DIR-other\"|" "$CONFIG"
status=0
said="$(run_xdplb 10 --config "$CONFIG")" || status=$?
check_equal "a second daemon in this run_dir: status" "$status" 1
check_contains "a second daemon in this run_dir: message" "$said" "$RUN_DIR: another xdplb \(process $XDPLB_PID\)"
cp "$WORK/mine.toml" "$CONFIG"
sed -i "s|^run_dir = .*|run_dir = \"$RUN_DIR-other\"|" "$CONFIG"
status=0
said="$(run_xdplb 10 --config "$CONFIG")" || status=$?
check_equal "a second daemon in this pin_dir: status" "$status" 1
check_contains "a second daemon in this pin_dir: message" "$said" "$PIN_DIR"
check "a second daemon leaves nothing" test ! -e "$RUN_DIR-other"
cp "$WORK/mine.toml" "$CONFIG"
ask
check_equal "the first goes on: status" "$STATUS" 0
mkdir -m 755 "$RUN_DIR-other"
touch "$RUN_DIR-other/file"
sed -i "s|^run_dir = .*|run_dir = \"$RUN_DIR-other\"|; s|^pin_dir = .*|pin_dir = \"$PIN_DIR-other\"|" "$CONFIG"
status=0
said="$(run_xdplb 10 --config "$CONFIG")" || status=$?
check_equal "a directory that others may enter: status" "$status" 1
check_contains "a directory that others may enter: message" "$said" "mode 755.*chmod 700"
rm -r "$RUN_DIR-other"
cp "$WORK/mine.toml" "$CONFIG"

# ---- a daemon that ends while it is asked
slow_file 8
timeout 20 "$XDPLB" reload --run-dir "$RUN_DIR" >"$WORK/first" 2>&1 &
first=$!
sleep 0.3
stop_xdplb TERM
status=0
wait "$first" || status=$?
check_equal "it stops meanwhile: status of xdplb" "$XDPLB_STATUS" 0
check_equal "it stops meanwhile: status of xdplb reload" "$status" 1
check_contains "it stops meanwhile: message" "$(cat "$WORK/first")" "stopping"
check "it stops meanwhile: the directory is gone" test ! -e "$RUN_DIR"

# ---- what a killed one left
file 1
start_or_end
stop_xdplb KILL
check "kill -9 leaves the socket" test -S "$SOCKET"
ask
check_contains "kill -9: nobody answers" "$SAID" "no xdplb answers"
start_or_end
ask
check_equal "kill -9: the next one replaces it" "$STATUS" 0
stop_xdplb TERM
check "the end: the directory is gone" test ! -e "$RUN_DIR"
end
