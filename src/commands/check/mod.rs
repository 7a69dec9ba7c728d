//! `xdplb check`: the configuration with every default filled in, in words or as JSON. Reads the file and the blocklists that it names,
//! and of the host only the interfaces' MTUs, so it needs no privileges.

mod mtu;
mod report;
mod text;

use std::io::Write;
use std::path::Path;

use super::Error;
use crate::config::blocklist::{self, Contents};
use crate::config::{self, Config, Diagnostic};
use crate::datapath::memory::{self, Table};
use crate::nat_ports;
use crate::state;
use crate::state::firewall::Ruleset;
use report::Report;

/// Reads and validates `file` and prints the configuration that would run.
///
/// # Errors
/// When the file or a blocklist is wrong, when it does not fit the tables, or nothing can be printed.
pub fn run(file: &Path, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let config::Loaded {
        config,
        blocklists,
        warnings,
    } = config::load(file)?;
    let blocklists = blocklist::load_all(&blocklists, &Contents::new())?;
    let plan = state::plan_of_file(&config, &blocklists)?;
    let mtus = mtu::of_interfaces(&config.datapath.interfaces);
    let tables = memory::tables(&config.limits, &plan.needs)?;
    let host = Host {
        mtus: &mtus,
        nat_ports: nat_ports::range(),
        tables: &tables,
    };
    let firewall = plan.firewall.as_deref();
    print(&config, &warnings, &host, firewall, json, out)
}

/// Facts about this host.
struct Host<'a> {
    /// The MTUs of the file's interfaces, in their order; none where they are another host's.
    mtus: &'a [u32],
    /// The ports that full-nat sends from, inclusive.
    nat_ports: (u16, u16),
    /// The maps that a start with the file makes.
    tables: &'a [Table],
}

/// Prints what `config` would run, and the warnings about it; `firewall` is compiled from it.
fn print(
    config: &Config,
    warnings: &[Diagnostic],
    host: &Host<'_>,
    firewall: Option<&Ruleset>,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Error> {
    let report = Report::new(config, warnings, host, firewall);
    if json {
        return super::text::json(out, &report);
    }
    text::print(&report, out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[datapath]
interfaces = ["eth0", "eth1"]
[[service]]
name = "web"
vip = ["203.0.113.11", "2001:db8:1::11"]
protocol = ["tcp", "udp"]
port = [443, "8000-8010", 80]
[[service.backend]]
name = "node5"
address = "10.0.5.2"
port = 8080
weight = 30
interface = "eth1"
mac = "52:54:00:23:a4:5c"
[[service.backend]]
address = "10.0.5.3"
weight = 10
[[service.backend]]
address = "10.0.5.4"
weight = 100
state = "drain"
[[service.backend]]
address = "2001:db8:5::2"
[[service]]
name = "empty"
vip = "203.0.113.12"
protocol = "udp"
port = "any"
"#;

    fn printed(file: &str, mtus: &[u32], json: bool) -> String {
        with_blocklists(file, &Contents::new(), mtus, json)
    }

    fn with_blocklists(file: &str, blocklists: &Contents, mtus: &[u32], json: bool) -> String {
        let loaded = crate::config::parse(file, Path::new("lb.toml")).expect("a valid file");
        let (config, warnings) = (&loaded.config, &loaded.warnings);
        let plan = state::plan_of_file(config, blocklists).expect("it fits");
        let mut out = Vec::new();
        let host = Host {
            mtus,
            nat_ports: (1024, 32767),
            tables: &[
                Table {
                    name: "small".into(),
                    entries: 64,
                    bytes: 512,
                    bytes_per_entry: 64,
                },
                Table {
                    name: "large".into(),
                    entries: 1_000_000,
                    bytes: 3 << 20,
                    bytes_per_entry: 0,
                },
            ],
        };
        let firewall = plan.firewall.as_deref();
        print(config, warnings, &host, firewall, json, &mut out).expect("a vector takes all");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn in_words() {
        let expected = "\
datapath
  interfaces       eth0, eth1
  xdp_mode         auto
  pin_dir          /sys/fs/bpf/xdplb
  run_dir          /run/xdplb
  addresses        the interfaces' own
  hash_seed        0
  unknown_port     pass
  icmp_echo        true
limits
  services         3 of 4096
  backends         4 of 16384
  connections      1000000 of each address family
  firewall_rules   0 of 65536
  sources          262144
memory
  table  entries  memory
  large  1000000  3.0 MiB
  small  64       512 bytes  up to 64 bytes more for each entry that is there
  all             3.0 MiB
timeouts
  tcp_opening      30s
  tcp_established  1h
  tcp_half_closed  10m
  tcp_closing      30s
  udp              1m
  other            1m
tunnel
  source           the first of addresses
  gue_port         6080
log
  level            info
  format           text

service web
  vip              203.0.113.11, 2001:db8:1::11
  protocol         tcp, udp
  port             80, 443, 8000-8010
  forward          nat
  scheduler        maglev
  hash             5-tuple
  no_backend       drop
  on_down          keep, rehash
  allow            all
  backend        address        port  weight  state  share   interface  mac
  node5          10.0.5.2       8080  30      up     75.0%   eth1       52:54:00:23:a4:5c
  10.0.5.3       10.0.5.3       same  10      up     25.0%   by route   resolved
  10.0.5.4       10.0.5.4       same  100     drain  0.0%    by route   resolved
  2001:db8:5::2  2001:db8:5::2  same  1       up     100.0%  by route   resolved

service empty
  vip              203.0.113.12
  protocol         udp
  port             any
  forward          nat
  scheduler        maglev
  hash             5-tuple
  no_backend       drop
  on_down          rehash
  allow            all
  backends         none

warning: lb.toml:25:1: service \"empty\" has no backend, so its packets are dropped; add a [[service.backend]]
";
        assert_eq!(printed(FILE, &[1500, 1500], false), expected);
    }

    #[test]
    fn as_json() {
        let view: serde_json::Value =
            serde_json::from_str(&printed(FILE, &[], true)).expect("JSON");
        assert_eq!(view["datapath"]["interfaces"][1], "eth1");
        assert_eq!(view["limits"]["services"]["used"], 3);
        assert_eq!(view["limits"]["connections"], 1_000_000);
        assert_eq!(view["timeouts"]["tcp_established"], 3600.0);
        let service = &view["services"][0];
        assert_eq!(service["vips"][1], "2001:db8:1::11");
        assert_eq!(
            service["ports"],
            serde_json::json!(["80", "443", "8000-8010"])
        );
        assert_eq!(service["backends"][0]["share_percent"], 75.0);
        assert_eq!(service["backends"][0]["mac"], "52:54:00:23:a4:5c");
        assert_eq!(service["backends"][1]["port"], serde_json::Value::Null);
        assert_eq!(service["backends"][2]["state"], "drain");
        assert_eq!(view["log"]["level"], "info");
        assert_eq!(view["warnings"][0]["line"], 25);
        assert_eq!(view["datapath"]["icmp_echo"], true);
        assert_eq!(view["tunnel"]["source"], serde_json::json!([]));
        assert_eq!(view["tunnel"]["gue_port"], 6080);
        assert_eq!(service["no_backend"], "drop");
        assert_eq!(view["memory"]["bytes"], (3 << 20) + 512);
        assert_eq!(view["memory"]["tables"][0]["name"], "large");
        assert_eq!(view["memory"]["tables"][1]["bytes_per_entry"], 64);
    }

    const PROTECTED: &str = r#"
[datapath]
interfaces = ["eth0"]
[limits]
firewall_rules = 1000
sources = 1000
[[service]]
name = "web"
vip = "203.0.113.11"
protocol = "tcp"
port = 80
allow = ["198.51.100.0/24", "192.0.2.1"]
backend = [{ address = "10.0.5.2" }]
[firewall]
default = "deny"
blocklists = ["/etc/xdplb/blocklist.txt", "more.txt"]
[[firewall.rule]]
name = "no-lab"
action = "deny"
source = "198.18.0.0/15"
protocol = "tcp"
port = "8000-9000"
[[firewall.rule]]
action = "allow"
protocol = 47
[[firewall.rule]]
action = "allow"
source = "2001:db8::/32"
protocol = "udp"
source_port = 53
[[dos]]
name = "syn"
protocol = "tcp"
tcp_flags = "syn"
limit = 1000
action = "block"
[[dos]]
name = "ping"
protocol = "icmp"
limit = 10
burst = 50
"#;

    fn blocklists() -> Contents {
        let list = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse().expect("a prefix"))
                .collect()
        };
        Contents::from([
            (
                "/etc/xdplb/blocklist.txt".into(),
                list(&["192.0.2.0/24", "192.0.2.7"]),
            ),
            ("more.txt".into(), list(&["10.0.0.0/8"])),
        ])
    }

    #[test]
    fn protection_in_words() {
        let text = with_blocklists(PROTECTED, &blocklists(), &[], false);
        for expected in [
            "  firewall_rules   3 of 1000\n  sources          1000\n",
            "  allow            198.51.100.0/24, 192.0.2.1\n",
            "
firewall
  default          deny
  prefixes         6, at most 768 bytes of memory
  rule  name    action  source         protocol  source_port  port
  1     no-lab  deny    198.18.0.0/15  tcp       any          8000-9000
  2             allow   any            47        any          any
  3             allow   2001:db8::/32  udp       53           any
  blocklist                 prefixes
  /etc/xdplb/blocklist.txt  2
  more.txt                  1

dos
  policy  protocol  tcp_flags  limit  burst  action  block_for
  syn     tcp       syn        1000   1000   block   1m
  ping    icmp      any        10     50     limit
",
        ] {
            assert!(text.contains(expected), "{text}\nlacks {expected}");
        }
        assert!(!text.contains("warning"), "{text}");

        let empty = format!("{FILE}[firewall]\n");
        let text = printed(&empty, &[], false);
        let expected = "
firewall
  default          allow
  rules            none
  blocklists       none
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn protection_as_json() {
        let text = with_blocklists(PROTECTED, &blocklists(), &[], true);
        let view: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let limits = &view["limits"];
        assert_eq!(limits["firewall_rules"]["used"], 3);
        assert_eq!(limits["firewall_rules"]["limit"], 1000);
        assert_eq!(limits["sources"], 1000);
        let allow = serde_json::json!(["198.51.100.0/24", "192.0.2.1"]);
        assert_eq!(view["services"][0]["allow"], allow);
        let firewall = &view["firewall"];
        assert_eq!(firewall["default"], "deny");
        assert_eq!(firewall["prefixes"], 6);
        let rule = serde_json::json!({
            "name": "no-lab", "action": "deny", "source": "198.18.0.0/15", "protocol": "tcp",
            "source_port": "any", "port": "8000-9000",
        });
        assert_eq!(firewall["rules"][0], rule);
        assert_eq!(firewall["rules"][1]["name"], serde_json::Value::Null);
        let list = serde_json::json!({ "path": "/etc/xdplb/blocklist.txt", "prefixes": 2 });
        assert_eq!(firewall["blocklists"][0], list);
        let policies = serde_json::json!([
            {
                "name": "syn", "protocol": "tcp", "tcp_flags": ["syn"], "limit": 1000,
                "burst": 1000, "action": "block", "block_for": 60.0,
            },
            {
                "name": "ping", "protocol": "icmp", "tcp_flags": [], "limit": 10, "burst": 50,
                "action": "limit", "block_for": null,
            },
        ]);
        assert_eq!(view["dos"], policies);

        let view: serde_json::Value =
            serde_json::from_str(&printed(FILE, &[], true)).expect("JSON");
        assert_eq!(view["firewall"], serde_json::Value::Null);
        assert_eq!(view["dos"], serde_json::json!([]));
    }

    #[test]
    fn what_does_not_fit() {
        let loaded = crate::config::parse(PROTECTED, Path::new("lb.toml")).expect("a valid file");
        let error = state::plan_of_file(&loaded.config, &Contents::new())
            .expect_err("blocklists are missing");
        assert!(matches!(error, state::PlanError::Unread { .. }), "{error}");
    }

    const TUNNELS: &str = r#"
[datapath]
interfaces = ["eth0", "eth1"]
unknown_port = "reject"
icmp_echo = false
[tunnel]
source = ["172.16.0.0/16", "2001:db8::10"]
gue_port = 6081
[[service]]
name = "web"
vip = ["203.0.113.11", "2001:db8:1::11"]
protocol = "tcp"
port = 80
forward = "ipip"
no_backend = "reject"
[[service.backend]]
address = "10.0.5.2"
weight = 3
[[service.backend]]
address = "2001:db8:5::2"
interface = "eth1"
"#;

    #[test]
    fn tunnels() {
        let text = printed(TUNNELS, &[], false);
        for expected in [
            "  unknown_port     reject\n  icmp_echo        false\n",
            "tunnel\n  source           172.16.0.0/16, 2001:db8::10\n  gue_port         6081\n",
            // Each serves both families.
            "  backends         4 of 16384\n",
            "  forward          ipip\n",
            "  no_backend       reject\n",
            "10.0.5.2       10.0.5.2       same  3       up     75.0%  by route",
            "2001:db8:5::2  2001:db8:5::2  same  1       up     25.0%  eth1 ",
        ] {
            assert!(text.contains(expected), "{text}\nlacks {expected}");
        }
        assert!(!text.contains("warning"), "{text}");
    }

    #[test]
    fn mtus_that_tunnels_do_not_fit() {
        let warnings = |mtus: &[u32]| {
            let text = printed(TUNNELS, mtus, true);
            let view: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            view["warnings"].as_array().expect("a list").clone()
        };
        assert_eq!(warnings(&[1500, 9000]), [] as [serde_json::Value; 0]);
        // The IPv4 backend may be behind eth0, the other one is not.
        let [ref warning] = warnings(&[9000, 1500])[..] else {
            panic!("one warning")
        };
        let message = warning["message"].as_str().expect("text");
        assert!(message.starts_with("eth1 has an MTU of 1500"), "{message}");
        assert!(message.contains("is 1540"), "{message}");
        assert_eq!(warning.get("line"), None);
        let text = printed(TUNNELS, &[1500, 1500], false);
        assert!(
            text.contains("\nwarning: eth1 has an MTU of 1500"),
            "{text}"
        );
    }

    #[test]
    fn what_full_nat_can_carry() {
        let file = FILE.replacen("port = [443", "forward = \"full-nat\"\nport = [443", 1);
        let words = printed(&file, &[], false);
        let expected = "\
full-nat
  ports            1024 to 32767
  rate             488 new connections a second from each address to each backend port
                   a port is used again 65 s after its connection has closed
log
";
        assert!(words.contains(expected), "{words}");
        let view: serde_json::Value =
            serde_json::from_str(&printed(&file, &[], true)).expect("JSON");
        assert_eq!(view["full_nat"]["connections_per_second"], 488);
        let without: serde_json::Value =
            serde_json::from_str(&printed(FILE, &[], true)).expect("JSON");
        assert_eq!(without["full_nat"], serde_json::Value::Null);
    }
}
