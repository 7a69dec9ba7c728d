//! Rows in connection tables that are full: 1,000,000 connections in room for as many.
//!
//! Owns how the tables come to be full, which is by packets: each connection is opened, answered and
//! established before the next one, as clients and a backend would. Every figure includes the harness: for new
//! flows the row of the wrapper with a random source, for flows that take turns the rows that begin with
//! "floor".
//!
//! Lines of the processor's cache that a packet touches in tables with an element for each connection, which
//! are what a row costs where the table is larger than the cache:
//!
//! | path | read | written |
//! | --- | --- | --- |
//! | established, to the backend or to the client | 2: the set's words, the record (IPv6: 2) | the words' a few times a second |
//! | new flow, l2 and tunnels | the words' | those, and the record |
//! | new flow, nat | the words', 1 or 2 of `pending` | likewise |
//! | new flow, full-nat | the words', a bucket of `nat_ports` for each try | likewise, and a claim of 2 |
//! | new flow past the rate, l2; nat; full-nat | 0; 0; the words' and buckets | 0; 1 or 2 of `pending`; likewise |
//!
//! A set of IPv4 is eight lines, and never crosses a page. Where a set is full of live connections, a new flow
//! writes 1 or 2 lines of `pending` in place of a record. Only full-nat's replies look for their connection by
//! its claim first: 2 lines more.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::time::Instant;

use libbpf_rs::{MapCore, MapFlags, ProgramInput, ProgramMut};
use xdplb::datapath::abi;
use xdplb_bench_programs::bench::BenchSkel;

use crate::{
    is_wanted, load, packet, row, set_tunnel_header, Balancer, Result, Transport, CLIENT4, CLIENT6,
    DIRECT, REPEAT, SAVED,
};

/// As many as `limits.connections`.
const CONNECTIONS: u32 = 1_000_000;
/// Of new full-nat connections in a round: all rounds together leave most ports free.
const REPEAT_NEW_FULL_NAT: u32 = 50_000;
/// Half-open connections that are made before a row is measured, in room for far fewer.
const HALF_OPEN: u32 = 4_000_000;

/// Of services that only these rows have: more backends than one, and as many full-nat ports as there may be
/// connections.
const BACKENDS: u32 = 4;
const FULL_NAT_BACKENDS: u32 = 64;
const NAT_VIP: &str = "203.0.113.20";
const NAT_VIP6: &str = "2001:db8:1::20";
const FULL_NAT_VIP: &str = "203.0.113.21";

/// Their part of the file, with so many backends of nat.
fn services(backends: u32) -> String {
    let mut text = format!("[limits]\nconnections = {CONNECTIONS}\n");
    for (name, forward, vip, network, count) in [
        ("many-nat", "nat", NAT_VIP, 2, backends),
        (
            "many-full-nat",
            "full-nat",
            FULL_NAT_VIP,
            3,
            FULL_NAT_BACKENDS,
        ),
    ] {
        // nat alone has both families.
        let vip6 = (forward == "nat").then_some(NAT_VIP6);
        let vips: Vec<&str> = [vip].into_iter().chain(vip6).collect();
        text += &format!(
            "[[service]]\nname = {name:?}\nvip = {vips:?}\nprotocol = [\"tcp\", \"udp\"]\nport = 80\n\
             forward = {forward:?}\n"
        );
        for host in 1..=count {
            let v4 = format!("10.0.{network}.{host}");
            let v6 = vip6.map(|_| format!("2001:db8:b:{network}::{host}"));
            for address in [v4].into_iter().chain(v6) {
                text += &format!("[[service.backend]]\naddress = \"{address}\"\nport = 8080\n");
            }
        }
    }
    text
}

/// What the tables are full of.
#[derive(Clone, Copy, PartialEq)]
enum Full {
    /// Live connections of nat.
    Nat,
    /// The same of IPv6.
    Nat6,
    /// Live connections of l2.
    L2,
    /// Half-open ones.
    HalfOpen,
}

/// What is measured.
#[derive(Clone, Copy)]
enum Measured {
    /// So many flows, at random or in turn.
    Flows(u32, bool),
    /// Likewise, without the datapath.
    Floor(u32, bool),
    /// A flow that is new each time, to this VIP.
    New(&'static str, Transport),
    /// Likewise, when no more entries are made.
    PastRate(&'static str, Transport),
    /// How many of the connections are found again.
    Lost,
}

impl Full {
    /// Whose connections they are, where they are live.
    fn vip(self) -> &'static str {
        match self {
            Full::Nat | Full::HalfOpen => NAT_VIP,
            Full::Nat6 => NAT_VIP6,
            Full::L2 => DIRECT[0].2,
        }
    }

    fn client(self) -> &'static str {
        if self == Full::Nat6 {
            CLIENT6
        } else {
            CLIENT4
        }
    }
}

const FLOW_COUNTS: [u32; 5] = [1, 64, 1024, 65_536, CONNECTIONS];

/// The rows, in tables that are full of this.
fn rows_of(full: Full) -> Vec<(String, Measured)> {
    let mut rows = Vec::new();
    let (of, forward) = match full {
        Full::Nat => ("full of nat", "nat IPv4"),
        Full::Nat6 => ("full of nat", "nat IPv6"),
        Full::L2 => ("full of l2", "l2 IPv4"),
        Full::HalfOpen => ("full of half-open", ""),
    };
    if full != Full::HalfOpen {
        rows.push((format!("{forward}, connections lost"), Measured::Lost));
        for flows in FLOW_COUNTS {
            for at_random in [false, true] {
                if at_random && flows == 1 {
                    continue;
                }
                let how = if at_random { "at random" } else { "in turn" };
                let floor = format!("floor: {flows} flows {how}, XDP_TX");
                rows.push((floor, Measured::Floor(flows, at_random)));
                let name = format!("{forward} TCP, {flows} flows {how}");
                rows.push((name, Measured::Flows(flows, at_random)));
            }
        }
    }
    // Those of l2 would be the same as those of nat.
    if full == Full::L2 {
        return rows;
    }
    let (tcp, udp) = (Transport::Syn, Transport::Udp);
    if full == Full::Nat6 {
        let name = format!("nat IPv6 TCP, new flow, tables {of}");
        rows.push((name, Measured::New(NAT_VIP6, tcp)));
        let name = format!("nat IPv6 SYN, past the rate, tables {of}");
        rows.push((name, Measured::PastRate(NAT_VIP6, tcp)));
        return rows;
    }
    let (l2, ipip, gue) = (DIRECT[0].2, DIRECT[1].2, DIRECT[5].2);
    for (name, vip, transport) in [
        ("l2 TCP", l2, tcp),
        ("ipip TCP", ipip, tcp),
        ("gue TCP", gue, tcp),
        ("nat TCP", NAT_VIP, tcp),
        ("full-nat TCP", FULL_NAT_VIP, tcp),
        ("l2 UDP", l2, udp),
        ("nat UDP", NAT_VIP, udp),
    ] {
        rows.push((
            format!("{name}, new flow, tables {of}"),
            Measured::New(vip, transport),
        ));
    }
    for (name, vip, transport) in [
        ("l2 SYN", l2, tcp),
        ("nat SYN", NAT_VIP, tcp),
        ("full-nat SYN", FULL_NAT_VIP, tcp),
        ("l2 UDP", l2, udp),
        ("nat UDP", NAT_VIP, udp),
    ] {
        let name = format!("{name}, past the rate, tables {of}");
        rows.push((name, Measured::PastRate(vip, transport)));
    }
    rows
}

/// All rows in full tables that the command line asks for.
pub fn rows() -> Result<()> {
    for full in [Full::Nat, Full::Nat6, Full::L2, Full::HalfOpen] {
        let rows = rows_of(full);
        if !rows.iter().any(|(name, _)| is_wanted(name)) {
            continue;
        }
        // Maps of their own: the former ones are full of something else.
        let mut storage = MaybeUninit::uninit();
        let (mut balancer, bench) = load(&mut storage, &services(BACKENDS))?;
        let flows = Flows {
            bench: &bench,
            full,
        };
        if full != Full::HalfOpen {
            flows.establish()?;
        }
        // Before half-open ones come: those that have been lost are the table's doing, not theirs.
        if let Some((name, _)) = rows
            .iter()
            .find(|(_, measured)| matches!(measured, Measured::Lost))
        {
            if is_wanted(name) {
                flows.count_lost(name, &mut balancer)?;
            }
        }
        if rows
            .iter()
            .any(|(name, measured)| is_wanted(name) && !matches!(measured, Measured::Lost))
        {
            open_by_halves(&bench, full)?;
        }
        for (name, measured) in &rows {
            flows.measure(name, *measured, &balancer)?;
        }
    }
    Ok(())
}

/// More half-open connections than there is room for.
fn open_by_halves(bench: &BenchSkel<'_>, full: Full) -> Result<()> {
    let vip = if full == Full::Nat6 {
        NAT_VIP6
    } else {
        DIRECT[0].2
    };
    let syn = packet(full.client(), &at_port_80(vip)?, Transport::Syn)?;
    crate::set_frame(bench, &syn)?;
    run(&bench.progs.repeat_new, &syn, HALF_OPEN)
}

/// Connections that take turns.
struct Flows<'a> {
    bench: &'a BenchSkel<'a>,
    full: Full,
}

impl Flows<'_> {
    /// A packet of one of the clients.
    fn packet(&self, transport: Transport) -> Result<Vec<u8>> {
        packet(self.full.client(), &at_port_80(self.full.vip())?, transport)
    }

    /// Makes each connection, one after the other.
    fn establish(&self) -> Result<()> {
        let began = Instant::now();
        let (syn, ack) = (self.packet(Transport::Syn)?, self.packet(Transport::Tcp)?);
        // Addresses of the client and the backend are written by the program.
        let backend = match self.full {
            Full::Nat6 => "[2001:db8:b:2::1]:8080",
            _ => "10.0.2.1:8080",
        };
        let reply = packet(backend, self.full.client(), Transport::SynAck)?;
        let steps = match self.full {
            Full::L2 => vec![(&syn, false), (&ack, false)],
            _ => vec![(&syn, false), (&reply, true), (&ack, false)],
        };
        let run = self.follow(&steps)?;
        if run.refused + run.elsewhere > 0 {
            return Err(format!(
                "of the packets that make connections {} were not sent on, and {} went to another backend",
                run.refused, run.elsewhere
            )
            .into());
        }
        println!(
            "  ({CONNECTIONS} connections made in {} ms)",
            began.elapsed().as_millis()
        );
        Ok(())
    }

    /// How many of the connections a packet does not find again, where the hash would say otherwise by now: one
    /// backend more is in the file.
    fn count_lost(&self, name: &str, balancer: &mut Balancer) -> Result<()> {
        balancer.apply(&services(BACKENDS + 1), 0)?;
        balancer.limit_new_flows(u32::MAX)?;
        let before = opened(balancer)?;
        let ack = self.packet(Transport::Tcp)?;
        let run = self.follow(&[(&ack, false)])?;
        let lost = opened(balancer)? - before;
        println!(
            "{name:<56} {lost:>7}  {:>6} to another backend",
            run.elsewhere
        );
        if run.refused > 0 {
            return Err(format!("{} packets of connections were not sent on", run.refused).into());
        }
        balancer.apply(&services(BACKENDS), 0)?;
        balancer.limit_new_flows(u32::MAX)
    }

    /// Runs these steps for every connection in turn, and takes down where its packets went.
    fn follow(&self, steps: &[(&Vec<u8>, bool)]) -> Result<Run> {
        self.take_steps(steps)?;
        self.set(Run {
            flows: CONNECTIONS,
            steps: steps.len() as u32,
            ..Default::default()
        })?;
        let (first, _) = steps.first().ok_or("no step")?;
        let packets = CONNECTIONS * steps.len() as u32;
        run(&self.bench.progs.follow_flows, first, packets)?;
        let value = self.bench.maps.run.lookup(&KEY, MapFlags::ANY)?;
        Run::from_bytes(&value.ok_or("the harness' state has gone")?)
    }

    fn take_steps(&self, steps: &[(&Vec<u8>, bool)]) -> Result<()> {
        for (position, (frame, by_backend)) in (0_u32..).zip(steps) {
            let saved = frame.get(..SAVED).ok_or("the packet is too short")?;
            let by_backend = u64::from(*by_backend).to_ne_bytes();
            self.bench.maps.steps.update(
                &position.to_ne_bytes(),
                &[saved, &by_backend].concat(),
                MapFlags::ANY,
            )?;
        }
        Ok(())
    }

    fn set(&self, run: Run) -> Result<()> {
        Ok(self
            .bench
            .maps
            .run
            .update(&KEY, &run.bytes(), MapFlags::ANY)?)
    }

    fn measure(&self, name: &str, measured: Measured, balancer: &Balancer) -> Result<()> {
        let programs = &self.bench.progs;
        match measured {
            Measured::Lost => Ok(()),
            Measured::Flows(flows, at_random) | Measured::Floor(flows, at_random) => {
                let ack = self.packet(Transport::Tcp)?;
                self.take_steps(&[(&ack, false)])?;
                self.set(Run {
                    flows,
                    steps: 1,
                    at_random: at_random.into(),
                    ..Default::default()
                })?;
                let program = match measured {
                    Measured::Floor(..) => &programs.flows_wrapper,
                    _ => &programs.repeat_flows,
                };
                row(name, self.bench, program, &ack, REPEAT)
            }
            Measured::New(vip, transport) => {
                let header = DIRECT
                    .iter()
                    .find(|service| service.2 == vip)
                    .map_or(0, |service| service.5);
                let program = if header > 0 {
                    set_tunnel_header(self.bench, header)?;
                    &programs.repeat_new_tunnel
                } else {
                    &programs.repeat_new
                };
                let repeat = if vip == FULL_NAT_VIP {
                    REPEAT_NEW_FULL_NAT
                } else {
                    REPEAT
                };
                let opening = packet(self.full.client(), &at_port_80(vip)?, transport)?;
                row(name, self.bench, program, &opening, repeat)
            }
            Measured::PastRate(vip, transport) => {
                balancer.limit_new_flows(0)?;
                let opening = packet(self.full.client(), &at_port_80(vip)?, transport)?;
                row(name, self.bench, &programs.repeat_new, &opening, REPEAT)?;
                balancer.limit_new_flows(u32::MAX)
            }
        }
    }
}

const KEY: [u8; 4] = [0; 4];

/// struct run of bench.bpf.c.
#[derive(Default)]
struct Run {
    flows: u32,
    steps: u32,
    at_random: u32,
    refused: u32,
    elsewhere: u32,
}

impl Run {
    /// The first flow's turn, and its first step.
    fn bytes(&self) -> Vec<u8> {
        let words = [
            self.flows,
            self.steps,
            self.at_random,
            0,
            0,
            0,
            0,
            self.refused,
            self.elsewhere,
        ];
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Run> {
        let words: Vec<u32> = bytes
            .chunks_exact(4)
            .map(|word| Ok(u32::from_ne_bytes(word.try_into()?)))
            .collect::<Result<_>>()?;
        let [flows, steps, at_random, _, _, _, _, refused, elsewhere] = words[..] else {
            return Err("struct run has another shape".into());
        };
        Ok(Run {
            flows,
            steps,
            at_random,
            refused,
            elsewhere,
        })
    }
}

fn run(program: &ProgramMut<'_>, packet: &[u8], repeat: u32) -> Result<()> {
    program.test_run(ProgramInput {
        data_in: Some(packet),
        repeat,
        ..Default::default()
    })?;
    Ok(())
}

/// Of all backends.
fn opened(balancer: &Balancer) -> Result<u64> {
    let map = balancer.datapath.map("traffic")?.ok_or("no traffic")?;
    let mut sum = 0;
    for id in balancer.desired.backends.keys() {
        let cpus = map.lookup_percpu(&id.to_ne_bytes(), MapFlags::ANY)?;
        for cpu in cpus.ok_or("no traffic of a backend")? {
            let traffic: abi::traffic = abi::from_bytes(&cpu).ok_or("other traffic")?;
            sum += traffic.opened;
        }
    }
    Ok(sum)
}

fn at_port_80(address: &str) -> Result<String> {
    Ok(SocketAddr::new(address.parse()?, 80).to_string())
}
