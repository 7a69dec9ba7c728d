//! `cargo bench`: ns per packet for each kind of packet, beside the floor program, in one run.
//!
//! Method: the datapath's own body in a wrapper that writes the packet afresh, run by BPF_PROG_TEST_RUN
//! a million times over real maps; the least of several rounds. Every figure includes what the harness
//! costs by itself, which the floor's row shows. Needs root. `cargo bench --bench packets -- WORDS` runs
//! the rows whose name has one of the words. Rows that say what the tables are full of, or how many flows take
//! turns, are those of full_tables.rs.

mod full_tables;

use std::collections::BTreeMap;
use std::error::Error;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject, ProgramInput, ProgramMut};
use xdplb::config::Prefix;
use xdplb::config::{self, MacAddress};
use xdplb::datapath::{abi, Datapath, Interface, Settings};
use xdplb::state::{self, Desired, Hop, World};
use xdplb_bench_programs::bench::{BenchSkel, BenchSkelBuilder};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const REPEAT: u32 = 1_000_000;
/// Of new full-nat connections: all rounds together leave most of the 31,744 ports free, or the figure
/// would be that of the search for the last one.
const REPEAT_NEW_FULL_NAT: u32 = 3_000;
const ROUNDS: usize = 5;
/// As in bench.bpf.c.
const SAVED: usize = 72;

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];

const CONFIG: &str = r#"
[datapath]
interfaces = ["lo", "eth1"]
addresses = ["198.51.100.10", "2001:db8::10"]
[[service]]
name = "nat"
vip = ["203.0.113.1", "2001:db8:1::1"]
protocol = ["tcp", "udp"]
port = 80
forward = "nat"
[[service.backend]]
address = "10.0.0.2"
port = 8080
[[service.backend]]
address = "2001:db8:b::2"
port = 8080
[[service]]
name = "full-nat"
vip = ["203.0.113.2", "2001:db8:1::2"]
protocol = ["tcp", "udp"]
port = 80
forward = "full-nat"
[[service.backend]]
address = "10.0.0.3"
port = 8080
[[service.backend]]
address = "2001:db8:b::3"
port = 8080
"#;

/// Each `[[service]]` whose backends answer directly: name, forward, VIP, backend, client, and the bytes
/// that go in front of the packet. They leave as they came, as on the one interface that such a balancer
/// needs.
const DIRECT: [(&str, &str, &str, &str, &str, u32); 9] = [
    ("l2 IPv4", "l2", "203.0.113.10", "10.0.1.10", CLIENT4, 0),
    (
        "ipip 4in4",
        "ipip",
        "203.0.113.11",
        "10.0.1.11",
        CLIENT4,
        20,
    ),
    (
        "ipip 4in6",
        "ipip",
        "203.0.113.12",
        "2001:db8:b:1::12",
        CLIENT4,
        40,
    ),
    (
        "ipip 6in4",
        "ipip",
        "2001:db8:1::13",
        "10.0.1.13",
        CLIENT6,
        20,
    ),
    (
        "ipip 6in6",
        "ipip",
        "2001:db8:1::14",
        "2001:db8:b:1::14",
        CLIENT6,
        40,
    ),
    ("gue 4in4", "gue", "203.0.113.15", "10.0.1.15", CLIENT4, 28),
    (
        "gue 4in6",
        "gue",
        "203.0.113.16",
        "2001:db8:b:1::16",
        CLIENT4,
        48,
    ),
    (
        "gue 6in4",
        "gue",
        "2001:db8:1::17",
        "10.0.1.17",
        CLIENT6,
        28,
    ),
    (
        "gue 6in6",
        "gue",
        "2001:db8:1::18",
        "2001:db8:b:1::18",
        CLIENT6,
        48,
    ),
];

const CLIENT4: &str = "192.0.2.1:4242";
const CLIENT6: &str = "[2001:db8:f::1]:4242";

/// The file that the rows run against.
fn configuration() -> String {
    let mut text = String::from(CONFIG);
    for (name, forward, vip, backend, ..) in DIRECT {
        text.push_str(&format!(
            "[[service]]\nname = {:?}\nvip = {vip:?}\nprotocol = [\"tcp\", \"udp\"]\nport = 80\n\
             forward = {forward:?}\n[[service.backend]]\naddress = {backend:?}\n",
            name.replace(' ', "-")
        ));
    }
    text
}

/// The slots of the interfaces: packets come in by loopback, which `test_run` says, and leave by the
/// other.
const IN: u16 = 0;
const OUT: u16 = 1;
const OUT_NAME: &str = "xdplb-bench0";

#[derive(Clone, Copy)]
enum Transport {
    Tcp,
    /// TCP's first segment.
    Syn,
    /// The other end's answer to it.
    SynAck,
    Udp,
}

/// What to measure of a connection.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// The client's direction, both directions seen before.
    Established,
    /// The backend's direction.
    Reply,
    /// A flow that is new each time.
    New,
    /// A segment in the middle of a connection that another instance may have made.
    Unknown,
}

fn main() -> Result<()> {
    second_interface()?;
    println!("{:<56} {:>7}  {:>6}", "packet", "verdict", "ns");
    few_connections()?;
    full_tables::rows()
}

/// The datapath with the file and `more` in force and as many new flows as come, and the programs over its
/// maps.
fn load<'a>(
    storage: &'a mut MaybeUninit<OpenObject>,
    more: &str,
) -> Result<(Balancer, BenchSkel<'a>)> {
    let config = parse(more)?;
    let mut datapath = Datapath::load(&config.limits)?;
    let out = nix::net::if_::if_nametoindex(OUT_NAME)?;
    for (port, ifindex, name) in [(IN, 1, "lo"), (OUT, out, OUT_NAME)] {
        let interface = Interface {
            ifindex,
            name: name.into(),
            mac: MacAddress(OUR_MAC),
            mtu: 1500,
            ipv4: None,
            ipv6: None,
        };
        datapath.set_interface(port, &interface)?;
    }
    let mut balancer = Balancer {
        datapath,
        desired: Desired::default(),
    };
    balancer.apply(more, 0)?;
    // Of new connections it is the cost that is wanted, however many there are.
    balancer.limit_new_flows(u32::MAX)?;
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Warn, |_, message| {
        eprint!("{message}")
    })));
    let mut open = BenchSkelBuilder::default().open(storage)?;
    for mut map in open.open_object_mut().maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        if let Some(shared) = balancer.datapath.map(&name)? {
            map.reuse_fd(shared.as_fd())?;
        }
    }
    Ok((balancer, open.load()?))
}

/// Rows in tables that are nearly empty.
fn few_connections() -> Result<()> {
    let mut storage = MaybeUninit::uninit();
    let (mut balancer, bench) = load(&mut storage, "")?;
    let other = packet("192.0.2.1:4242", "192.0.2.2:80", Transport::Tcp)?;
    row(
        "floor: bounds check, write, XDP_TX",
        &bench,
        &bench.progs.floor_program,
        &other,
        REPEAT,
    )?;
    row(
        "wrapper: the packet written afresh, XDP_TX",
        &bench,
        &bench.progs.wrapper,
        &other,
        REPEAT,
    )?;
    row(
        "wrapper: the same from a random source, XDP_TX",
        &bench,
        &bench.progs.new_wrapper,
        &other,
        REPEAT,
    )?;
    row(
        "IPv4 TCP, not for a VIP",
        &bench,
        &bench.progs.repeat,
        &other,
        REPEAT,
    )?;
    let other = packet("[2001:db8:f::1]:4242", "[2001:db8:f::2]:80", Transport::Tcp)?;
    row(
        "IPv6 TCP, not for a VIP",
        &bench,
        &bench.progs.repeat,
        &other,
        REPEAT,
    )?;
    for (family, backend, elsewhere) in [
        ("IPv4", "10.0.0.2:40000", "192.0.2.2:443"),
        ("IPv6", "[2001:db8:b::2]:40000", "[2001:db8:f::2]:443"),
    ] {
        for (name, transport) in [("TCP", Transport::Tcp), ("UDP", Transport::Udp)] {
            row(
                &format!("{family} {name}, a backend's own packet, passed on"),
                &bench,
                &bench.progs.repeat,
                &packet(backend, elsewhere, transport)?,
                REPEAT,
            )?;
        }
    }
    for (forward, number) in [("nat", 1), ("full-nat", 2)] {
        for (family, client, vip) in [
            ("IPv4", CLIENT4, format!("203.0.113.{number}:80")),
            ("IPv6", CLIENT6, format!("[2001:db8:1::{number}]:80")),
        ] {
            for (name, transport) in [("TCP", Transport::Tcp), ("UDP", Transport::Udp)] {
                let request = packet(client, &vip, transport)?;
                let reply = establish(&bench, &request, transport)?;
                let opening = match transport {
                    Transport::Tcp => packet(client, &vip, Transport::Syn)?,
                    _ => request.clone(),
                };
                for (kind, what) in [
                    (Kind::Established, "to the backend"),
                    (Kind::Reply, "to the client"),
                    (Kind::New, "new connection"),
                    (Kind::Unknown, "goes on, unknown here"),
                ] {
                    let new = match number {
                        2 => REPEAT_NEW_FULL_NAT,
                        _ => REPEAT,
                    };
                    let (program, packet, repeat) = match kind {
                        Kind::Established => (&bench.progs.repeat, &request, REPEAT),
                        Kind::Reply => (&bench.progs.repeat, &reply, REPEAT),
                        Kind::New => (&bench.progs.repeat_new, &opening, new),
                        Kind::Unknown if name == "UDP" => continue,
                        Kind::Unknown => (&bench.progs.repeat_new, &request, new),
                    };
                    row(
                        &format!("{forward} {family} {name}, {what}"),
                        &bench,
                        program,
                        packet,
                        repeat,
                    )?;
                }
            }
        }
    }
    direct_rows(&bench)?;
    flood_rows(&balancer, &bench)?;
    firewall_rows(&mut balancer, &bench)?;
    policy_rows(&mut balancer, &bench)
}

/// The maps, and what was put into them last.
struct Balancer {
    datapath: Datapath,
    desired: Desired,
}

/// The file that the rows run against, with `protection` behind it.
fn parse(protection: &str) -> Result<config::Config> {
    let text = configuration() + protection;
    Ok(config::parse(&text, Path::new("bench.toml"))?.config)
}

impl Balancer {
    /// Puts the file in force, with a blocklist of so many prefixes should it name one.
    fn apply(&mut self, protection: &str, blocked: u32) -> Result<()> {
        let config = parse(protection)?;
        let hop = |backend: &config::Backend| {
            let address = backend.address.to_string();
            let direct = DIRECT.iter().any(|service| service.3 == address);
            Some(Hop {
                mac: MacAddress(BACKEND_MAC),
                slot: if direct { IN } else { OUT },
                on_link: true,
            })
        };
        let paths = config
            .firewall
            .iter()
            .flat_map(|firewall| &firewall.blocklists);
        let prefixes: Arc<[Prefix]> = (0..blocked).map(blocked_prefix).collect();
        let blocklists: BTreeMap<_, _> = paths
            .map(|path| (path.clone(), Arc::clone(&prefixes)))
            .collect();
        self.desired = state::plan(
            &self.desired,
            &config,
            &World {
                hop: &hop,
                own_addresses: &[],
                blocklists: &blocklists,
            },
        )?;
        let settings = Settings {
            timeouts: config.timeouts,
            unknown_port: config.datapath.unknown_port,
            hash_seed: 0,
            nat_ports: (1024, 32767),
            gue_port: config.tunnel.gue_port,
        };
        Ok(self.datapath.apply(&self.desired, &settings)?)
    }

    /// How many entries for new flows each CPU makes in a second.
    fn limit_new_flows(&self, a_second: u32) -> Result<()> {
        let map = self.datapath.map("settings")?.ok_or("no settings")?;
        let key = 0_u32.to_ne_bytes();
        let bytes = map.lookup(&key, MapFlags::ANY)?.ok_or("no settings")?;
        let mut settings: abi::settings = abi::from_bytes(&bytes).ok_or("other settings")?;
        settings.new_flows = a_second;
        Ok(map.update(&key, abi::bytes_of(&settings), MapFlags::ANY)?)
    }
}

/// Prefixes that are spread over 128.0.0.0/1, from /24 to /32, where no client of ours is but one.
fn blocked_prefix(index: u32) -> Prefix {
    let address = Ipv4Addr::from_bits(1 << 31 | index.wrapping_mul(0x9e37_79b1) >> 1);
    Prefix::covering(address.into(), 24 + (index % 9) as u8)
}

/// Rules, each for a source and a port of its own, the last of them for the source that is denied.
fn rules(count: u32) -> String {
    let rules = (0..count).map(|index| {
        let source = Ipv4Addr::from_bits(0x0a00_0000 + (index << 8));
        format!(
            "[[firewall.rule]]\naction = \"deny\"\nsource = \"{source}/24\"\nport = {}\n",
            1 + index
        )
    });
    let last = format!(
        "[[firewall.rule]]\naction = \"deny\"\nsource = {:?}\n",
        DENIED_SOURCE
    );
    rules.skip(1).chain([last]).collect()
}

const DENIED_SOURCE: &str = "198.18.0.1";

/// New flows when there are more than the tables take: each goes by hash, and leaves where its reply will
/// look.
fn flood_rows(balancer: &Balancer, bench: &BenchSkel<'_>) -> Result<()> {
    balancer.limit_new_flows(0)?;
    for (name, vip) in [("nat", 1), ("full-nat", 2), ("l2", 10)] {
        for (what, transport) in [("SYN", Transport::Syn), ("UDP", Transport::Udp)] {
            let request = packet(CLIENT4, &format!("203.0.113.{vip}:80"), transport)?;
            let name = format!("{name} IPv4 {what}, new flow without an entry");
            row(&name, bench, &bench.progs.repeat_new, &request, REPEAT)?;
        }
    }
    balancer.limit_new_flows(u32::MAX)
}

/// What the firewall costs a packet of a connection that it has let in, and one that it denies.
fn firewall_rows(balancer: &mut Balancer, bench: &BenchSkel<'_>) -> Result<()> {
    let request = packet(CLIENT4, "203.0.113.1:80", Transport::Tcp)?;
    let denied = packet(
        &format!("{DENIED_SOURCE}:4242"),
        "203.0.113.1:80",
        Transport::Tcp,
    )?;
    let blocked = SocketAddr::new(blocked_prefix(0).address(), 4242).to_string();
    let blocked = packet(&blocked, "203.0.113.1:80", Transport::Tcp)?;
    for (prefixes, rule_count) in [
        (0, 0),
        (0, 1),
        (0, 1000),
        (1000, 1),
        (100_000, 1),
        (100_000, 1000),
    ] {
        let lists = if prefixes > 0 {
            "blocklists = [\"list\"]\n"
        } else {
            ""
        };
        let file = if prefixes + rule_count > 0 {
            format!("[firewall]\n{lists}{}", rules(rule_count))
        } else {
            String::new()
        };
        let began = Instant::now();
        balancer.apply(&file, prefixes)?;
        let took = began.elapsed();
        establish(bench, &request, Transport::Tcp)?;
        let size = format!("{prefixes} prefixes, {rule_count} rules");
        row(
            &format!("nat IPv4 TCP, to the backend; {size}"),
            bench,
            &bench.progs.repeat,
            &request,
            REPEAT,
        )?;
        if rule_count > 0 {
            row(
                &format!("denied by a rule; {size}"),
                bench,
                &bench.progs.repeat,
                &denied,
                REPEAT,
            )?;
        }
        if prefixes > 0 {
            row(
                &format!("on a blocklist; {size}"),
                bench,
                &bench.progs.repeat,
                &blocked,
                REPEAT,
            )?;
            println!("  ({size}: put in force in {} ms)", took.as_millis());
        }
    }
    balancer.apply("", 0)
}

/// What source limits cost, which are for every packet.
fn policy_rows(balancer: &mut Balancer, bench: &BenchSkel<'_>) -> Result<()> {
    let policy = |number: u32, limit: u32, action: &str| {
        format!("[[dos]]\nname = \"p{number}\"\nprotocol = \"tcp\"\nlimit = {limit}\naction = {action:?}\n")
    };
    for (family, client, vip) in [
        ("IPv4", CLIENT4, "203.0.113.1:80"),
        ("IPv6", CLIENT6, "[2001:db8:1::1]:80"),
    ] {
        let request = packet(client, vip, Transport::Tcp)?;
        let syn = packet(client, vip, Transport::Syn)?;
        for count in [0, 1, 8] {
            let file: String = (0..count)
                .map(|number| policy(number, 10_000_000, "limit"))
                .collect();
            balancer.apply(&file, 0)?;
            establish(bench, &request, Transport::Tcp)?;
            let name = format!("nat {family} TCP, to the backend; {count} policies");
            row(&name, bench, &bench.progs.repeat, &request, REPEAT)?;
        }
        balancer.apply(&policy(0, 1, "block"), 0)?;
        once(bench, &request)?;
        once(bench, &request)?;
        row(
            &format!("{family} TCP, from a source that is blocked"),
            bench,
            &bench.progs.repeat,
            &request,
            REPEAT,
        )?;
        balancer.apply(&policy(0, 10_000_000, "limit"), 0)?;
        balancer.limit_new_flows(0)?;
        row(
            &format!("{family} SYN, new source, new flow without an entry; 1 policy"),
            bench,
            &bench.progs.repeat_new,
            &syn,
            REPEAT,
        )?;
        balancer.apply("", 0)?;
    }
    Ok(())
}

/// One row for each way to a backend that answers directly.
fn direct_rows(bench: &BenchSkel<'_>) -> Result<()> {
    let other = packet(CLIENT4, "192.0.2.2:80", Transport::Tcp)?;
    set_tunnel_header(bench, 20)?;
    row(
        "wrapper: 20 bytes put on and taken off, XDP_TX",
        bench,
        &bench.progs.tunnel_wrapper,
        &other,
        REPEAT,
    )?;
    for (name, forward, vip, _, client, header) in DIRECT {
        let vip = SocketAddr::new(vip.parse()?, 80).to_string();
        set_tunnel_header(bench, header)?;
        for (transport_name, transport) in [("TCP", Transport::Tcp), ("UDP", Transport::Udp)] {
            let request = packet(client, &vip, transport)?;
            // The second one moves the connection to where established ones are.
            for _ in 0..3 {
                once(bench, &request)?;
            }
            let program = if forward == "l2" {
                &bench.progs.repeat
            } else {
                &bench.progs.repeat_tunnel
            };
            let name = format!("{name} {transport_name}, to the backend");
            row(&name, bench, program, &request, REPEAT)?;
        }
    }
    Ok(())
}

/// How many bytes the wrapper takes off again.
fn set_tunnel_header(bench: &BenchSkel<'_>, bytes: u32) -> Result<()> {
    Ok(bench.maps.tunnel_header.update(
        &0_u32.to_ne_bytes(),
        &bytes.to_ne_bytes(),
        MapFlags::ANY,
    )?)
}

/// A network namespace of our own, with a second interface in it; both go when the process does.
fn second_interface() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).map_err(|error| {
        format!("cannot make a network namespace: {error}; run the benchmark as root")
    })?;
    for arguments in [
        vec![
            "link",
            "add",
            OUT_NAME,
            "type",
            "veth",
            "peer",
            "name",
            "xdplb-bench1",
        ],
        vec!["link", "set", OUT_NAME, "up"],
    ] {
        let status = Command::new("ip").args(&arguments).status()?;
        if !status.success() {
            return Err(
                format!("ip {} failed; is iproute2 installed?", arguments.join(" ")).into(),
            );
        }
    }
    Ok(())
}

/// 64 bytes and more, so that the wrapper can write as much for each kind.
fn packet(source: &str, destination: &str, transport: Transport) -> Result<Vec<u8>> {
    let (source, destination): (SocketAddr, SocketAddr) = (source.parse()?, destination.parse()?);
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC);
    let ip = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => return Err("addresses of two families".into()),
    };
    let payload = [0x5a; 32];
    let mut bytes = Vec::new();
    match transport {
        Transport::Tcp => {
            ip.tcp(source.port(), destination.port(), 1, 1024)
                .ack(1)
                .write(&mut bytes, &payload)?;
        }
        Transport::Syn => {
            ip.tcp(source.port(), destination.port(), 1, 1024)
                .syn()
                .write(&mut bytes, &payload)?;
        }
        Transport::SynAck => {
            ip.tcp(source.port(), destination.port(), 1, 1024)
                .syn()
                .ack(2)
                .write(&mut bytes, &payload)?;
        }
        Transport::Udp => ip
            .udp(source.port(), destination.port())
            .write(&mut bytes, &payload)?,
    }
    Ok(bytes)
}

/// Lets the datapath see both directions; gives back the backend's packet.
fn establish(bench: &BenchSkel<'_>, request: &[u8], transport: Transport) -> Result<Vec<u8>> {
    let sent = once(bench, request)?;
    let headers = etherparse::PacketHeaders::from_ethernet_slice(&sent)?;
    let (from, to): (IpAddr, IpAddr) = match headers.net {
        Some(etherparse::NetHeaders::Ipv4(ip, _)) => (ip.source.into(), ip.destination.into()),
        Some(etherparse::NetHeaders::Ipv6(ip, _)) => (ip.source.into(), ip.destination.into()),
        _ => return Err("the datapath sent something that is not IP".into()),
    };
    let (from_port, to_port) = match headers.transport {
        Some(etherparse::TransportHeader::Tcp(tcp)) => (tcp.source_port, tcp.destination_port),
        Some(etherparse::TransportHeader::Udp(udp)) => (udp.source_port, udp.destination_port),
        _ => return Err("the datapath sent something that is neither TCP nor UDP".into()),
    };
    let (backend, us) = (
        SocketAddr::new(to, to_port),
        SocketAddr::new(from, from_port),
    );
    let reply = packet(&backend.to_string(), &us.to_string(), transport)?;
    once(bench, &reply)?;
    once(bench, request)?;
    Ok(reply)
}

fn set_frame(bench: &BenchSkel<'_>, packet: &[u8]) -> Result<()> {
    let saved = packet
        .get(..SAVED)
        .ok_or("the packet is shorter than what the wrapper writes")?;
    Ok(bench
        .maps
        .frame
        .update(&0_u32.to_ne_bytes(), saved, MapFlags::ANY)?)
}

fn once(bench: &BenchSkel<'_>, packet: &[u8]) -> Result<Vec<u8>> {
    set_frame(bench, packet)?;
    let mut out = vec![0; packet.len() + 64];
    let input = ProgramInput {
        data_in: Some(packet),
        data_out: Some(&mut out),
        repeat: 1,
        ..Default::default()
    };
    bench.progs.repeat.test_run(input)?;
    Ok(out)
}

/// Whether the command line asks for the row.
fn is_wanted(name: &str) -> bool {
    let mut wanted = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .peekable();
    wanted.peek().is_none() || wanted.any(|word| name.contains(&word))
}

fn row(
    name: &str,
    bench: &BenchSkel<'_>,
    program: &ProgramMut<'_>,
    packet: &[u8],
    repeat: u32,
) -> Result<()> {
    if !is_wanted(name) {
        return Ok(());
    }
    set_frame(bench, packet)?;
    let mut least = Duration::MAX;
    let mut verdict = 0;
    for _ in 0..ROUNDS {
        let input = ProgramInput {
            data_in: Some(packet),
            repeat,
            ..Default::default()
        };
        let output = program.test_run(input)?;
        least = least.min(output.duration);
        verdict = output.return_value;
    }
    let verdict = ["aborted", "drop", "pass", "tx", "redirect"]
        .get(verdict as usize)
        .unwrap_or(&"?");
    println!("{name:<56} {verdict:>7}  {:>6}", least.as_nanos());
    Ok(())
}
