//! The commands that look at protection and totals, run as an operator runs them over the maps of a lab.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::{json, Value};
use xdplb::config::{PolicyAction, RuleAction};
use xdplb::datapath::abi;

use crate::applied::{firewall, policy, rule, BLOCKLIST, RULE};
use crate::harness::cases::STANDARD;
use crate::harness::Lab;

const CLASS_TCP: abi::protocol_class = abi::protocol_class::CLASS_TCP;
const CLASS_UDP: abi::protocol_class = abi::protocol_class::CLASS_UDP;

/// The program, looking at this directory.
pub fn xdplb(arguments: &[&str], pins: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xdplb"));
    command.args(arguments).arg("--pin-dir").arg(pins);
    command
}

pub fn output(arguments: &[&str], pins: &Path) -> Output {
    xdplb(arguments, pins)
        .output()
        .expect("the program that cargo built")
}

/// What it prints; it has to succeed.
#[track_caller]
pub fn printed(arguments: &[&str], pins: &Path) -> String {
    let output = output(arguments, pins);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[track_caller]
pub fn json(arguments: &[&str], pins: &Path) -> Value {
    serde_json::from_str(&printed(arguments, pins)).expect("JSON")
}

/// A table's rows, each without its padding.
pub fn rows(table: &str) -> Vec<String> {
    let lines = table.lines();
    lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

pub fn pinned() -> (Lab, PathBuf) {
    let mut lab = Lab::new(STANDARD);
    let pins = lab.pin();
    (lab, pins)
}

fn cpus() -> u64 {
    libbpf_rs::num_possible_cpus().expect("the number of CPUs") as u64
}

#[test]
fn firewall_prints_rules_in_the_order_of_the_file() {
    let (mut lab, pins) = pinned();
    assert_eq!(json(&["firewall", "--json"], &pins), json!([]));
    assert!(printed(&["firewall"], &pins).starts_with("no firewall"));

    let deny = rule(Some("no-lab"), "198.18.0.0/15", RuleAction::Deny);
    lab.put_firewall(Some(firewall(deny, &["192.0.2.0/24", "2001:db8:bad::/48"])));
    let hits = |packets| abi::hits {
        packets,
        bytes: 60 * packets,
    };
    lab.set_per_cpu("fw_hits", RULE, &hits(2));
    lab.set_per_cpu("fw_hits", BLOCKLIST, &hits(5));
    let n = cpus();
    assert_eq!(
        rows(&printed(&["firewall"], &pins)),
        [
            "Packets Bytes Action Source Protocol SrcPort Port Name".to_owned(),
            format!(
                "{} {} deny 2 prefixes any any any /etc/blocklist",
                5 * n,
                300 * n
            ),
            format!(
                "{} {} deny 198.18.0.0/15 any any any no-lab",
                2 * n,
                120 * n
            ),
            "0 0 allow any any any any (default)".to_owned(),
        ]
    );
    let any = json!("any");
    assert_eq!(
        json(&["firewall", "--json"], &pins),
        json!([
            {"kind": "blocklist", "packets": 5 * n, "bytes": 300 * n, "action": "deny", "source": null, "prefixes": 2,
             "protocol": any, "source_port": any, "port": any, "name": "/etc/blocklist"},
            {"kind": "rule", "packets": 2 * n, "bytes": 120 * n, "action": "deny", "source": "198.18.0.0/15", "prefixes": null,
             "protocol": any, "source_port": any, "port": any, "name": "no-lab"},
            {"kind": "default", "packets": 0, "bytes": 0, "action": "allow", "source": any, "prefixes": null,
             "protocol": any, "source_port": any, "port": any, "name": null},
        ])
    );
}

/// Enters a source as blocked for that many seconds by the policy in slot 0 of its protocol.
fn block(lab: &Lab, set: u32, address: &str, class: abi::protocol_class, seconds: u64) {
    let clock = lab.datapath.clock();
    let address = crate::harness::ip(address);
    let words = abi::words_of(address);
    let way = abi::dos_source {
        source: if address.is_ipv4() {
            [words[3], 0]
        } else {
            [words[0], words[1]]
        },
        family: if address.is_ipv4() { 4 } else { 6 },
        class: class.0 as u8,
        blocked_until: clock.jiffies_now() + seconds * u64::from(clock.hz),
        last_seen: 77,
        ..Default::default()
    };
    let mut value = abi::dos_set::default();
    value.ways[2] = way;
    lab.set_element("dos_sources", set, &value);
}

#[test]
fn dos_prints_policies_and_whom_they_block() {
    let (mut lab, pins) = pinned();
    assert_eq!(
        json(&["dos", "--json"], &pins),
        json!({"policies": [], "blocked": []})
    );
    let words = printed(&["dos"], &pins);
    assert!(words.contains("no [[dos]] policies") && words.contains("no source is blocked"));

    let minute = PolicyAction::Block(Duration::from_secs(60));
    lab.put_policies(&[
        Some(policy("game", 100, minute)),
        Some(policy("dns", 10, PolicyAction::Limit)),
    ]);
    let hits = abi::policy_hits {
        dropped: 7,
        blocked: 1,
    };
    let udp = abi::xdplb_limit::POLICY_LIMIT.0;
    lab.set_per_cpu("dos_hits", udp, &hits);
    block(&lab, 3, "198.51.100.7", CLASS_UDP, 50);
    block(&lab, 4, "198.51.100.7", CLASS_TCP, 50);
    block(&lab, 5, "2001:db8:7:8::1", CLASS_UDP, 30);
    // Over by now.
    block(&lab, 6, "198.51.100.8", CLASS_UDP, 0);

    let seen = json(&["dos", "--json"], &pins);
    assert_eq!(
        seen["policies"],
        json!([
            {"name": "game", "protocol": "udp", "tcp_flags": [], "limit": 100, "burst": 100,
             "action": "block", "block_for": 60.0, "dropped": 7 * cpus(), "blocked": cpus()},
            {"name": "dns", "protocol": "udp", "tcp_flags": [], "limit": 10, "burst": 10,
             "action": "limit", "block_for": null, "dropped": 0, "blocked": 0},
        ])
    );
    let blocked: Vec<(&str, &str, &str)> = seen["blocked"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| {
            let text = |key: &str| row[key].as_str().expect("text");
            (text("source"), text("protocol"), text("policy"))
        })
        .collect();
    assert_eq!(
        blocked,
        [
            ("198.51.100.7", "tcp", ""),
            ("198.51.100.7", "udp", "game"),
            ("2001:db8:7:8::/64", "udp", "game"),
        ]
    );
    let left = seen["blocked"][2]["expires"].as_f64().expect("seconds");
    assert!((20.0..=30.0).contains(&left), "{left}");
    let table = rows(&printed(&["dos"], &pins));
    assert_eq!(
        table[1],
        format!("game udp any 100/s 100 block 1m {} {}", 7 * cpus(), cpus())
    );
    assert!(table[table.len() - 1].starts_with("2001:db8:7:8::/64 udp game "));
}

#[test]
fn dos_unblock_lets_every_protocol_of_a_source_go() {
    let (lab, pins) = pinned();
    block(&lab, 3, "198.51.100.7", CLASS_UDP, 50);
    block(&lab, 4, "198.51.100.7", CLASS_TCP, 50);
    block(&lab, 5, "198.51.100.8", CLASS_UDP, 50);
    block(&lab, 6, "2001:db8:7:8::1", CLASS_UDP, 50);

    let said = printed(&["dos", "unblock", "198.51.100.7"], &pins);
    assert_eq!(said, "198.51.100.7: tcp, udp unblocked\n");
    let way = lab.source(3, 2);
    assert_eq!((way.blocked_until, way.last_seen, way.family), (0, 77, 4));
    assert_eq!(lab.source(4, 2).blocked_until, 0);
    assert_ne!(lab.source(5, 2).blocked_until, 0);

    // Any address of the /64; and as the list has it, there is nothing left.
    let arguments = ["dos", "unblock", "--json", "2001:db8:7:8:9::1"];
    let unblocked = json!({"source": "2001:db8:7:8::/64", "protocols": ["udp"]});
    assert_eq!(json(&arguments, &pins), unblocked);
    for source in ["2001:db8:7:8::/64", "198.51.100.7"] {
        let again = output(&["dos", "unblock", source], &pins);
        assert_eq!(again.status.code(), Some(1));
        let said = String::from_utf8_lossy(&again.stderr);
        let expected =
            format!("xdplb: {source} is not blocked; `xdplb dos` lists the sources that are\n");
        assert_eq!(said, expected);
    }

    // Before the command as well as behind it.
    let mut before = Command::new(env!("CARGO_BIN_EXE_xdplb"));
    before.arg("dos").arg("--pin-dir").arg(&pins);
    let done = before.args(["unblock", "198.51.100.8"]).output();
    assert!(done.expect("the program that cargo built").status.success());
    assert_eq!(lab.source(5, 2).blocked_until, 0);
}

#[test]
fn no_datapath_is_said() {
    let nowhere = Path::new("/sys/fs/bpf/xdplb-test-nowhere");
    for command in [
        &["firewall"][..],
        &["dos"],
        &["dos", "unblock", "198.51.100.7"],
        &["stats"],
        &["stats", "--watch"],
        &["list"],
        &["list", "--rate"],
        &["conns"],
        &["drops"],
    ] {
        let failed = output(command, nowhere);
        assert_eq!(failed.status.code(), Some(1), "{command:?}");
        let said = String::from_utf8_lossy(&failed.stderr);
        assert!(
            said.contains("no xdplb runs with this pin directory"),
            "{said}"
        );
    }
}

#[test]
fn what_is_no_source_or_interval() {
    let pins = Path::new("/sys/fs/bpf/xdplb");
    for (arguments, says) in [
        (&["dos", "unblock"][..], "<ADDR>"),
        (&["dos", "unblock", "client"], "IPv6 /64"),
        (&["dos", "unblock", "198.51.100.0/24"], "IPv6 /64"),
        (&["dos", "unblock", "2001:db8::/48"], "IPv6 /64"),
        (&["stats", "--watch=0"], "from 0.1 to 86400"),
        (&["stats", "--watch=soon"], "from 0.1 to 86400"),
        (&["list", "--rate=0"], "from 0.1 to 86400"),
    ] {
        let refused = output(arguments, pins);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: no {says:?} in: {said}");
    }
}

/// As much of every CPU's, `factor` times.
fn traffic(factor: u64) -> abi::traffic {
    let mut traffic = abi::traffic {
        opened: 10 * factor,
        closed: 4 * factor,
        unrecorded: factor,
        ..Default::default()
    };
    traffic.by[0] = abi::exchange {
        packets_in: 100 * factor,
        bytes_in: 10_000 * factor,
        packets_out: 50 * factor,
        bytes_out: 5000 * factor,
    };
    traffic
}

#[test]
fn stats_add_up() {
    let (lab, pins) = pinned();
    let id = lab.backend_id("n4");
    let service = lab.desired.backends[&id].service;
    lab.set_per_cpu("traffic", id, &traffic(1));
    lab.set_element("past", service, &traffic(1000));
    lab.set_element("expired", id, &abi::expiries { connections: 3 });
    let n = cpus();

    let stats = json(&["stats", "--json"], &pins);
    let tcp = &stats["protocols"][0];
    assert_eq!(tcp["protocol"], "tcp");
    assert_eq!(tcp["packets_in"], 100_000 + 100 * n);
    assert_eq!(stats["protocols"][1]["packets_in"], 0);
    let service = &stats["services"][0];
    assert_eq!(service["name"], "nat");
    assert_eq!(service["bytes_out"], 5_000_000 + 5000 * n);
    assert_eq!(service["opened"], 10_000 + 10 * n);
    assert_eq!(service["unrecorded"], 1000 + n);
    let backends = service["backends"].as_array().expect("backends");
    let backend = backends.iter().find(|row| row["name"] == "n4");
    let backend = backend.expect("n4");
    assert_eq!(
        *backend,
        json!({
            "name": "n4", "address": "10.0.0.2", "port": 8080,
            "packets_in": 100 * n, "bytes_in": 10_000 * n,
            "packets_out": 50 * n, "bytes_out": 5000 * n,
            "opened": 10 * n, "closed": 4 * n + 3, "active": 0, "inactive": 0, "unrecorded": n,
            "protocols": {"tcp": {
                "packets_in": 100 * n, "bytes_in": 10_000 * n,
                "packets_out": 50 * n, "bytes_out": 5000 * n,
            }},
        })
    );

    let table = rows(&printed(&["stats"], &pins));
    let of = |label: &str| {
        let mut found = table.iter().filter(|row| row.starts_with(label));
        found
            .next()
            .unwrap_or_else(|| panic!("no {label} in {table:?}"))
            .clone()
    };
    assert_eq!(
        of("tcp"),
        format!(
            "tcp {} {} {} {} - - 0 0",
            100_000 + 100 * n,
            50_000 + 50 * n,
            10_000_000 + 10_000 * n,
            5_000_000 + 5000 * n
        )
    );
    assert_eq!(
        of("-> n4"),
        format!(
            "-> n4 10.0.0.2:8080 {} {} {} {} {} {} 0 0 {n}",
            100 * n,
            50 * n,
            10_000 * n,
            5000 * n,
            10 * n,
            4 * n + 3
        )
    );
}

#[test]
fn list_has_rates_when_asked() {
    let (lab, pins) = pinned();
    let id = lab.backend_id("n4");
    let plain = json(&["list", "--json"], &pins);
    assert_eq!(plain[0]["name"], "nat");
    assert_eq!(plain[0].get("rate"), None);
    assert_eq!(plain[0]["backends"][0].get("rate"), None);

    let child = xdplb(&["list", "--rate=1", "--stats", "--json"], &pins)
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.expect("the program that cargo built");
    // Ever more, as long as it looks.
    let mut factor = 0;
    while child.try_wait().expect("a child").is_none() {
        factor += 1;
        lab.set_per_cpu("traffic", id, &traffic(factor));
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().expect("its output");
    assert!(output.status.success());
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let service = &listed[0];
    let backends = service["backends"].as_array().expect("backends");
    let rate = |row: &Value, field: &str| row["rate"][field].as_f64().expect("a rate");
    let n4 = backends.iter().find(|row| row["name"] == "n4").expect("n4");
    let packets = rate(n4, "packets_in");
    assert!(packets > 0.0);
    for (field, each) in [
        ("bits_in", 800.0),
        ("packets_out", 0.5),
        ("bits_out", 400.0),
        ("opened", 0.1),
        ("closed", 0.04),
        ("unrecorded", 0.01),
    ] {
        // A reading may be amid a writing.
        let expected = packets * each;
        let found = rate(n4, field);
        assert!(
            (found - expected).abs() <= 0.2 * expected,
            "{field}: {found}, not {expected}"
        );
        assert_eq!(rate(service, field), found);
    }
    for other in backends.iter().filter(|row| row["name"] != "n4") {
        assert_eq!(rate(other, "packets_in"), 0.0);
    }

    let table = rows(&printed(&["list", "--rate=0.1"], &pins));
    assert_eq!(
        table[1],
        "-> RemoteAddress:Port Name Forward Weight State Health ActiveConn InActConn \
         Conns/s InPkts/s OutPkts/s InBits/s OutBits/s"
    );
    let n4 = table
        .iter()
        .find(|row| row.starts_with("-> 10.0.0.2:8080 n4 "));
    let n4 = n4.unwrap_or_else(|| panic!("no n4 in {table:?}"));
    assert!(n4.ends_with(" 0 0 0 0 0 0 0"), "{n4}");
}

#[test]
fn stats_know_what_packets_did() {
    let (lab, pins) = pinned();
    for case in crate::harness::cases::all() {
        case.establish(&lab);
    }
    let stats = json(&["stats", "--json"], &pins);
    for (index, protocol) in ["tcp", "udp"].into_iter().enumerate() {
        assert_eq!(stats["protocols"][index]["protocol"], protocol);
        assert_eq!(stats["protocols"][index]["active"], 4);
    }
    for service in stats["services"].as_array().expect("services") {
        assert_eq!(service["opened"], 4, "{service}");
        assert_eq!(service["active"], 4);
        assert_eq!(service["closed"], 0);
        let backends = service["backends"].as_array().expect("backends");
        assert_eq!(backends.len(), 2);
        for backend in backends {
            assert_eq!(backend["active"], 2, "one of each protocol");
        }
    }
}

/// A running watch; ended when dropped.
pub struct Watch(pub Child);

impl Watch {
    pub fn start(arguments: &[&str], pins: &Path) -> Watch {
        let child = xdplb(arguments, pins)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Watch(child.expect("the program that cargo built"))
    }

    /// Its status and what it said, once it has ended by itself.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.0.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut said = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            std::io::Read::read_to_string(&mut stderr, &mut said).expect("UTF-8");
        }
        (self.0.wait().expect("a child").code(), said)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn stats_watch_has_a_line_of_json_for_each_interval() {
    let (lab, pins) = pinned();
    let id = lab.backend_id("n4");
    let mut watch = Watch::start(&["stats", "--watch=0.2", "--json"], &pins);
    let mut lines = BufReader::new(watch.0.stdout.take().expect("a pipe")).lines();
    let mut next = || -> Value {
        let line = lines.next().expect("a line").expect("UTF-8");
        serde_json::from_str(&line).expect("an object a line")
    };
    assert_eq!(next()["services"][0]["packets_in"], 0.0);
    lab.set_per_cpu("traffic", id, &traffic(1));
    // In this interval or the next.
    let seen = [next(), next(), next()];
    let added: f64 = seen
        .iter()
        .map(|line| {
            let seconds = line["seconds"].as_f64().expect("seconds");
            assert!((0.2..5.0).contains(&seconds), "{seconds}");
            line["services"][0]["packets_in"].as_f64().expect("a rate") * seconds
        })
        .sum();
    let expected = 100.0 * cpus() as f64;
    assert!((added - expected).abs() < 1.0, "{added} of {expected}");

    kill(Pid::from_raw(watch.0.id().cast_signed()), Signal::SIGINT).expect("a signal");
    assert_eq!(watch.end(), (Some(0), String::new()));
}

#[test]
fn stats_watch_ends_with_its_reader() {
    let (_lab, pins) = pinned();
    let mut watch = Watch::start(&["stats", "--watch=0.1"], &pins);
    let mut reader = BufReader::new(watch.0.stdout.take().expect("a pipe"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    assert!(
        line.contains("InPkts/s") && !line.contains('\x1b'),
        "{line:?}"
    );
    drop(reader);
    assert_eq!(watch.end(), (Some(0), String::new()));
}
