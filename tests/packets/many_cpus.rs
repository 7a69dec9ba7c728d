//! Connections on several CPUs at once, beside a plain table: what the program does with each packet of a
//! million is held against what the table says may become of it.
//!
//! Threads with a CPU each open, answer, use and close the same connections, in turns and at the same time, while
//! others flood the service, sweep the tables, take backends out of the file and put them back. Every packet that
//! leaves is compared in whole. The table knows a connection as live once the program has listed it as
//! established while nothing moved: from then on it keeps its backend and its source until it ends or its
//! backend goes. Of any other the program may forget what it knew, which is counted; it never takes a
//! packet for that of another connection.
//!
//! XDPLB_MODEL_PACKETS: how many packets, 400,000 by default. XDPLB_MODEL_SEED: other ones.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{sched_getaffinity, sched_setaffinity, CpuSet};
use nix::unistd::Pid;
use xdplb::datapath::abi::{self, from_bytes, Flow};
use xdplb::datapath::view::Connection;
use xdplb::datapath::View;

use crate::harness::cells::Mode;
use crate::harness::dialog::ends_of;
use crate::harness::frame::{tcp, udp, Frame, Protocol, ACK, FIN, PSH, RST, SYN};
use crate::harness::runner::Runner;
use crate::harness::{
    backend_mac, hex, ip, listed, own_mac, Lab, BACKENDS, CLIENTS, NAT_PORTS, ROUTER,
};
use crate::property::one_in;

const CONNECTIONS: u32 = 2000;
const ROUNDS: u32 = 10;
/// From this round on few entries are made, and most new flows go without: those of nat do not look whether
/// another connection has their source.
const CROWDED: u32 = 7;
/// Of UDP, half-open and ended connections.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long after a packet of it a UDP connection is surely not too old, however its age is rounded.
const FRESH: Duration = Duration::from_millis(400);
/// Verdicts.
const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;

/// A service of the file: its VIPs and its backends by their last numbers. Two have the same backends, so that
/// one client's connections to both meet there.
struct Service {
    name: &'static str,
    mode: Mode,
    vip: u8,
    backends: std::ops::RangeInclusive<u8>,
}

const SERVICES: [Service; 4] = [
    Service {
        name: "nat",
        mode: Mode::Nat,
        vip: 11,
        backends: 2..=5,
    },
    Service {
        name: "nat-too",
        mode: Mode::Nat,
        vip: 21,
        backends: 2..=5,
    },
    Service {
        name: "full",
        mode: Mode::FullNat,
        vip: 12,
        backends: 12..=15,
    },
    Service {
        name: "l2",
        mode: Mode::L2,
        vip: 13,
        backends: 22..=25,
    },
];

impl Service {
    fn vip(&self, ipv6: bool) -> SocketAddr {
        let address = if ipv6 {
            ip(&format!("2001:db8:1::{}", self.vip))
        } else {
            IpAddr::V4(Ipv4Addr::new(203, 0, 113, self.vip))
        };
        SocketAddr::new(address, 80)
    }

    fn text(&self, without: Option<u8>) -> String {
        let forward = match self.mode {
            Mode::Nat => "nat",
            Mode::FullNat => "full-nat",
            _ => "l2",
        };
        let mut text = format!(
            "[[service]]\nname = \"{}\"\nvip = [\"{}\", \"{}\"]\nprotocol = [\"tcp\", \"udp\"]\nport = 80\n\
             forward = \"{forward}\"\n",
            self.name,
            self.vip(false).ip(),
            self.vip(true).ip()
        );
        let port = if self.mode == Mode::L2 {
            ""
        } else {
            "port = 8080\n"
        };
        for number in self
            .backends
            .clone()
            .filter(|&number| Some(number) != without)
        {
            for ipv6 in [false, true] {
                let address = backend_address(number, ipv6);
                text += &format!("[[service.backend]]\naddress = \"{address}\"\n{port}");
            }
        }
        text
    }
}

fn services(without: Option<u8>) -> String {
    SERVICES
        .iter()
        .map(|service| service.text(without))
        .collect()
}

/// The last number is that of its MAC address, too.
fn backend_address(number: u8, ipv6: bool) -> IpAddr {
    if ipv6 {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()))
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, number))
    }
}

/// How a connection goes: the client as the backend sees it, and the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    seen: SocketAddr,
    backend: SocketAddr,
    number: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Nothing is known to the program, or need not be.
    None,
    /// The client has begun; `answered`: so has the backend.
    Opening { answered: bool },
    /// Both have.
    Open,
    /// They have ended it, or begun to.
    Over,
}

/// What the table says of a connection.
#[derive(Debug, Clone, Copy)]
struct State {
    life: Life,
    way: Option<Way>,
    /// Of the way's backend when it was chosen.
    incarnation: u32,
    /// Of both sides' segments.
    sequence: u32,
}

/// A client's 5-tuple, and what the table says of it.
struct Entry {
    service: &'static Service,
    client: SocketAddr,
    protocol: Protocol,
    state: RwLock<State>,
    /// It was listed as established, and nothing has ended it since.
    is_live: AtomicBool,
    /// Milliseconds since the start, when it last had a packet.
    used: AtomicU64,
}

impl Entry {
    fn vip(&self) -> SocketAddr {
        self.service.vip(self.client.is_ipv6())
    }

    fn frame(&self, from: SocketAddr, to: SocketAddr, flags: u8, sequence: u32) -> Frame {
        match self.protocol {
            Protocol::Tcp => tcp(from, to, flags).with(|frame| {
                frame.sequence = sequence;
                frame.acknowledged = sequence.wrapping_add(1);
            }),
            Protocol::Udp => udp(from, to, b"a datagram"),
        }
    }

    fn request(&self, flags: u8, sequence: u32) -> Frame {
        let frame = self.frame(self.client, self.vip(), flags, sequence);
        frame.between(ROUTER, own_mac(CLIENTS))
    }

    fn reply(&self, way: Way, flags: u8, sequence: u32) -> Frame {
        let frame = self.frame(way.backend, way.seen, flags, sequence);
        frame.between(backend_mac(way.backend.ip()), own_mac(BACKENDS))
    }

    fn flow(&self) -> Flow {
        let (client, vip) = (self.client, self.vip());
        Flow {
            source: (client.ip(), client.port()),
            destination: (vip.ip(), vip.port()),
            protocol: self.protocol.number().0,
        }
    }
}

/// Whose replies a backend's packets to a source are: the clients and VIPs that have sent from it, the last one
/// at the end.
type Owners = HashMap<(u8, SocketAddr, SocketAddr), Vec<(SocketAddr, SocketAddr)>>;

/// A backend by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// In force, or about to be.
    There,
    /// About to go.
    Leaving,
    /// No packet of a client may go to it.
    Gone,
}

#[derive(Debug, Clone, Copy)]
struct Backend {
    presence: Presence,
    /// How often it has left.
    incarnation: u32,
}

#[derive(Default)]
struct Counts {
    packets: AtomicU64,
    /// Connections that were live for the table, and are not for the program: there was no room.
    lost: AtomicU64,
    /// Others that the program has forgotten.
    forgotten: AtomicU64,
    /// First packets that were dropped, of full-nat.
    refused: AtomicU64,
    opened: AtomicU64,
    answered: AtomicU64,
    closed: AtomicU64,
    raced: AtomicU64,
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// The table.
struct Model {
    seed: u64,
    began: Instant,
    /// Whether no live connection may be lost.
    has_room: bool,
    /// Whether connections of nat have a source of their own each.
    is_apart: AtomicBool,
    entries: Vec<Entry>,
    owners: Mutex<Owners>,
    backends: RwLock<BTreeMap<u8, Backend>>,
    counts: Counts,
    to_clients: Runner,
    to_backends: Runner,
}

/// Small and good enough: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True in so many of a hundred cases.
    fn percent(&mut self, share: u64) -> bool {
        self.below(100) < share
    }
}

/// What became of a client's packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Sent(Way),
    Dropped,
}

impl Model {
    fn new(lab: &Lab, entries: u32, has_room: bool, seed: u64) -> Model {
        let numbers = SERVICES.iter().flat_map(|service| service.backends.clone());
        let backend = Backend {
            presence: Presence::There,
            incarnation: 0,
        };
        Model {
            seed,
            began: Instant::now(),
            has_room,
            // Of a flow without a place not more is known than fits.
            is_apart: AtomicBool::new(has_room),
            entries: (0..entries).map(entry).collect(),
            owners: Mutex::default(),
            backends: RwLock::new(numbers.map(|number| (number, backend)).collect()),
            counts: Counts::default(),
            to_clients: lab.runner(BACKENDS),
            to_backends: lab.runner(CLIENTS),
        }
    }

    #[track_caller]
    fn fail(&self, entry: &Entry, what: &str) -> ! {
        panic!(
            "XDPLB_MODEL_SEED={}: {} {} -> {}: {what}; the table has {:?}",
            self.seed,
            entry.service.name,
            entry.client,
            entry.vip(),
            entry.state.try_read().map(|state| *state),
        );
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Whether the program must know the connection: live, and its backend has not left since.
    fn must_know(&self, entry: &Entry, state: &State, backends: &BTreeMap<u8, Backend>) -> bool {
        let Some(way) = state.way else { return false };
        entry.is_live.load(Ordering::Relaxed)
            && is_same(state, way, backends)
            && (entry.protocol == Protocol::Tcp || !self.may_be_old(entry))
    }

    fn may_be_old(&self, entry: &Entry) -> bool {
        let idle = self.now() - entry.used.load(Ordering::Relaxed).min(self.now());
        idle > FRESH.as_millis() as u64
    }

    /// A packet of the client: that it arrives in whole at a backend of its service that is there.
    fn request(&self, entry: &Entry, frame: &Frame, backends: &BTreeMap<u8, Backend>) -> Outcome {
        add(&self.counts.packets);
        let (verdict, bytes) = self.to_backends.send(&frame.bytes());
        if verdict == DROP && entry.service.mode == Mode::FullNat {
            return Outcome::Dropped;
        }
        if verdict != REDIRECT {
            self.fail(
                entry,
                &format!(
                    "verdict {verdict} on a packet of the client, {:#x}:\n{}",
                    frame.flags,
                    hex(&bytes)
                ),
            );
        }
        let way = self.way_of(entry, &bytes);
        let arrives = frame
            .becomes(
                way.seen,
                if entry.service.mode == Mode::L2 {
                    entry.vip()
                } else {
                    way.backend
                },
            )
            .between(own_mac(BACKENDS), backend_mac(way.backend.ip()))
            .bytes();
        if bytes != arrives {
            self.fail(
                entry,
                &format!(
                    "to the backend:\n{}\nexpected:\n{}",
                    hex(&bytes),
                    hex(&arrives)
                ),
            );
        }
        match backends.get(&way.number) {
            Some(backend) if backend.presence != Presence::Gone => Outcome::Sent(way),
            other => self.fail(entry, &format!("sent to {way:?}, which is {other:?}")),
        }
    }

    /// Where a packet went to: that it may.
    fn way_of(&self, entry: &Entry, bytes: &[u8]) -> Way {
        let service = entry.service;
        let (seen, destination) = ends_of(bytes);
        // The last byte of the frame's destination.
        let number = bytes[5];
        let port = if service.mode == Mode::L2 { 80 } else { 8080 };
        let way = Way {
            seen,
            backend: SocketAddr::new(backend_address(number, entry.client.is_ipv6()), port),
            number,
        };
        let is_ours = service.backends.contains(&number);
        let is_right = match service.mode {
            Mode::L2 => seen == entry.client && destination == entry.vip(),
            Mode::FullNat => {
                let own = ip(if seen.is_ipv6() {
                    "fd00::100"
                } else {
                    "10.0.0.100"
                });
                let ports = NAT_PORTS.0..=NAT_PORTS.1;
                seen.ip() == own && ports.contains(&seen.port()) && destination == way.backend
            }
            _ => seen.ip() == entry.client.ip() && destination == way.backend,
        };
        if !is_ours || !is_right {
            self.fail(
                entry,
                &format!("sent from {seen} to {destination}, MAC {number}"),
            );
        }
        way
    }

    /// A packet of the backend. True if it reached the client, in whole; false if the program did not know it.
    fn reply(&self, entry: &Entry, way: Way, frame: &Frame) -> bool {
        add(&self.counts.packets);
        let sent = frame.bytes();
        let (verdict, bytes) = self.to_clients.send(&sent);
        if verdict == PASS {
            if bytes != sent {
                self.fail(entry, "a reply was passed on, but changed");
            }
            return false;
        }
        let for_client = |vip, client| {
            frame
                .becomes(vip, client)
                .between(own_mac(CLIENTS), ROUTER)
                .bytes()
        };
        if verdict == REDIRECT && bytes == for_client(entry.vip(), entry.client) {
            return true;
        }
        // The source may be another connection's by now, if this one is not one that must be known: that one's
        // packet is just behind its way into the table, perhaps.
        let give_up = Instant::now() + Duration::from_secs(1);
        while verdict == REDIRECT && Instant::now() < give_up {
            let mut owners = self.owners_of(entry, way);
            if self.has_own_source(entry.service) {
                owners = owners.split_off(owners.len().saturating_sub(1));
            }
            if owners
                .into_iter()
                .any(|(client, vip)| bytes == for_client(vip, client))
            {
                return false;
            }
            thread::yield_now();
        }
        self.fail(
            entry,
            &format!(
                "verdict {verdict} on a reply from {} to {}:\n{}\nexpected:\n{}",
                way.backend,
                way.seen,
                hex(&bytes),
                hex(&for_client(entry.vip(), entry.client))
            ),
        )
    }

    /// The client's packet has gone this way: it is the connection's from now on.
    fn learn(&self, entry: &Entry, state: &mut State, way: Way, backends: &BTreeMap<u8, Backend>) {
        if state.way != Some(way) || !is_same(state, way, backends) {
            if state.way.is_some() && matches!(state.life, Life::Opening { .. } | Life::Open) {
                add(&self.counts.forgotten);
            }
            entry.is_live.store(false, Ordering::Relaxed);
            state.life = Life::Opening { answered: false };
        }
        state.way = Some(way);
        state.incarnation = backends[&way.number].incarnation;
        self.own(entry, way, backends);
    }

    /// Nobody else's replies look like this connection's.
    fn own(&self, entry: &Entry, way: Way, backends: &BTreeMap<u8, Backend>) {
        if entry.service.mode == Mode::L2 {
            return;
        }
        let Some(former) = self.take_over(entry, way) else {
            return;
        };
        let other = self.entries.iter().find(|other| {
            (other.client, other.vip(), other.protocol) == (former.0, former.1, entry.protocol)
        });
        // Its state may be in another thread's hands, which will see what comes of it.
        let is_checked = self.has_room && self.has_own_source(entry.service);
        let Some(other) = other.filter(|_| is_checked) else {
            return;
        };
        let shares = other
            .state
            .try_read()
            .is_ok_and(|state| state.way == Some(way) && self.must_know(other, &state, backends));
        if shares {
            self.fail(
                entry,
                &format!("shares {way:?} with {} -> {}", former.0, former.1),
            );
        }
    }

    /// With nat, connections that share one are of one client.
    fn has_own_source(&self, service: &Service) -> bool {
        service.mode == Mode::FullNat || self.is_apart.load(Ordering::Relaxed)
    }

    /// Enters it as the last owner of its source; gives the former one if that was another.
    fn take_over(&self, entry: &Entry, way: Way) -> Option<(SocketAddr, SocketAddr)> {
        let key = (entry.protocol.number().0, way.seen, way.backend);
        let own = (entry.client, entry.vip());
        let mut owners = self.owners.lock().expect("owners");
        let owners = owners.entry(key).or_default();
        let former = owners.last().copied().filter(|former| *former != own);
        owners.retain(|owner| *owner != own);
        owners.push(own);
        former
    }

    fn owners_of(&self, entry: &Entry, way: Way) -> Vec<(SocketAddr, SocketAddr)> {
        let key = (entry.protocol.number().0, way.seen, way.backend);
        let owners = self.owners.lock().expect("owners");
        owners.get(&key).cloned().unwrap_or_default()
    }

    fn owns(&self, entry: &Entry, way: Way) -> bool {
        let own = (entry.client, entry.vip());
        entry.service.mode == Mode::L2 || self.owners_of(entry, way).last() == Some(&own)
    }

    /// The program has not found what it must know.
    fn lose(&self, entry: &Entry, what: &str) {
        if self.has_room {
            self.fail(entry, what);
        }
        add(&self.counts.lost);
    }
}

fn is_same(state: &State, way: Way, backends: &BTreeMap<u8, Backend>) -> bool {
    backends.get(&way.number).is_some_and(|backend| {
        backend.presence == Presence::There && backend.incarnation == state.incarnation
    })
}

/// Clients come with a connection to each service, of one port.
fn entry(number: u32) -> Entry {
    let (client, service) = (
        number / SERVICES.len() as u32,
        number as usize % SERVICES.len(),
    );
    let ipv6 = client % 2 == 1;
    let host = client / 16;
    let address = if ipv6 {
        IpAddr::V6(Ipv6Addr::from(
            (0x2001_0db8_00c0_u128 << 80) + u128::from(host),
        ))
    } else {
        IpAddr::V4(Ipv4Addr::from_bits(0xc612_0001 + host))
    };
    Entry {
        service: &SERVICES[service],
        client: SocketAddr::new(address, 2000 + (client * 7919 % 60000) as u16),
        protocol: if client % 5 == 4 {
            Protocol::Udp
        } else {
            Protocol::Tcp
        },
        state: RwLock::new(State {
            life: Life::None,
            way: None,
            incarnation: 0,
            sequence: number << 8,
        }),
        is_live: AtomicBool::new(false),
        used: AtomicU64::new(0),
    }
}

/// What a thread does until enough packets have been sent.
impl Model {
    fn work(&self, random: &mut Random, until: u64) {
        while self.counts.packets.load(Ordering::Relaxed) < until {
            if random.percent(12) {
                self.flood(random);
            } else {
                let entry = &self.entries[random.below(self.entries.len() as u64) as usize];
                self.step(entry, random);
            }
        }
    }

    /// A first packet that nobody answers.
    fn flood(&self, random: &mut Random) {
        let mut entry = entry(random.below(1 << 20) as u32);
        // Fewer of full-nat, or its ports would be used up.
        if entry.service.mode == Mode::FullNat && random.percent(80) {
            entry.service = &SERVICES[3];
        }
        let number = random.next() as u32;
        let address = if entry.client.is_ipv6() {
            IpAddr::V6(Ipv6Addr::from(
                (0x2001_0db8_00f1_u128 << 80) + u128::from(number),
            ))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(0xac10_0000 | number & 0xf_ffff))
        };
        entry.client.set_ip(address);
        let frame = entry.request(SYN, random.next() as u32);
        let backends = self.backends.read().expect("backends");
        if let Outcome::Sent(way) = self.request(&entry, &frame, &backends) {
            if entry.service.mode != Mode::L2 {
                self.take_over(&entry, way);
            }
        }
    }

    /// What comes next in a connection, unless another thread has it in hand.
    fn step(&self, entry: &Entry, random: &mut Random) {
        let Ok(state) = entry.state.try_read().map(|state| *state) else {
            return;
        };
        match state.life {
            Life::None => self.open(entry, random),
            Life::Over if random.percent(5) => self.late(entry, random),
            Life::Over => self.open(entry, random),
            Life::Opening { .. } => self.go_on(entry, random),
            Life::Open if random.percent(4) => self.close(entry, random),
            Life::Open => self.exchange(entry, random),
        }
    }

    fn open(&self, entry: &Entry, random: &mut Random) {
        let Ok(mut state) = entry.state.try_write() else {
            return;
        };
        if !matches!(state.life, Life::None | Life::Over) {
            return;
        }
        state.life = Life::None;
        state.sequence = state.sequence.wrapping_add(0x1357_9bdf);
        self.begin(entry, &mut state);
        drop(state);
        if random.percent(70) {
            self.go_on(entry, random);
            self.go_on(entry, random);
        }
    }

    /// The first packet, sent for the first time or again.
    fn begin(&self, entry: &Entry, state: &mut State) {
        let backends = self.backends.read().expect("backends");
        match self.request(entry, &entry.request(SYN, state.sequence), &backends) {
            Outcome::Sent(way) => {
                self.learn(entry, state, way, &backends);
                if state.life == Life::None {
                    state.life = Life::Opening { answered: false };
                }
                add(&self.counts.opened);
            }
            Outcome::Dropped => {
                state.life = Life::None;
                state.way = None;
                add(&self.counts.refused);
            }
        }
    }

    /// The next packet of the handshake.
    fn go_on(&self, entry: &Entry, random: &mut Random) {
        let Ok(mut state) = entry.state.try_write() else {
            return;
        };
        let (Life::Opening { answered }, Some(way)) = (state.life, state.way) else {
            return;
        };
        if random.percent(10) {
            return self.begin(entry, &mut state);
        }
        if answered || entry.service.mode == Mode::L2 {
            let backends = self.backends.read().expect("backends");
            let frame = entry.request(ACK, state.sequence.wrapping_add(1));
            match self.request(entry, &frame, &backends) {
                Outcome::Sent(now) => {
                    self.learn(entry, &mut state, now, &backends);
                    if now == way {
                        state.life = Life::Open;
                    }
                }
                Outcome::Dropped => state.life = Life::None,
            }
            return;
        }
        if !self.owns(entry, way) {
            state.life = Life::None;
            return;
        }
        let known = self.reply(entry, way, &entry.reply(way, SYN | ACK, state.sequence));
        if known {
            state.life = Life::Opening { answered: true };
            add(&self.counts.answered);
        } else {
            state.life = Life::None;
            add(&self.counts.forgotten);
        }
    }

    /// A packet in one of the directions, which other threads may do as well at the same time.
    fn exchange(&self, entry: &Entry, random: &mut Random) {
        let by_backend = entry.service.mode != Mode::L2 && random.percent(50);
        let forgotten = {
            let Ok(state) = entry.state.try_read() else {
                return;
            };
            let (Life::Open, Some(way)) = (state.life, state.way) else {
                return;
            };
            let backends = self.backends.read().expect("backends");
            let sent = self.now();
            let sequence = state.sequence.wrapping_add(1);
            let known = if by_backend {
                if !self.owns(entry, way) && !self.must_know(entry, &state, &backends) {
                    false
                } else {
                    self.reply(entry, way, &entry.reply(way, PSH | ACK, sequence))
                }
            } else {
                let frame = entry.request(PSH | ACK, sequence);
                match self.request(entry, &frame, &backends) {
                    Outcome::Sent(now) => {
                        if !self.owns(entry, now) {
                            self.own(entry, now, &backends);
                        }
                        now == way
                    }
                    Outcome::Dropped => false,
                }
            };
            // A datagram of the client makes it anew, if it was too old.
            if entry.protocol == Protocol::Udp && self.may_be_old(entry) {
                entry.is_live.store(false, Ordering::Relaxed);
            }
            if known {
                entry.used.store(sent, Ordering::Relaxed);
                return;
            }
            self.must_know(entry, &state, &backends)
        };
        if forgotten {
            let what = if by_backend { "a reply" } else { "a request" };
            self.lose(entry, &format!("{what} did not go its connection's way"));
        } else {
            add(&self.counts.forgotten);
        }
        // The client begins anew, whatever it was.
        if let Ok(mut state) = entry.state.write() {
            entry.is_live.store(false, Ordering::Relaxed);
            state.life = Life::None;
        }
    }

    /// By a reset of either side, or by both sides' FINs.
    fn close(&self, entry: &Entry, random: &mut Random) {
        let Ok(mut state) = entry.state.try_write() else {
            return;
        };
        let (Life::Open, Some(way)) = (state.life, state.way) else {
            return;
        };
        entry.is_live.store(false, Ordering::Relaxed);
        state.life = Life::Over;
        add(&self.counts.closed);
        let backends = self.backends.read().expect("backends");
        let sequence = state.sequence.wrapping_add(1);
        let client = |flags, sequence| {
            let outcome = self.request(entry, &entry.request(flags, sequence), &backends);
            // A reset makes no connection.
            let is_reset = entry.protocol == Protocol::Tcp && flags == RST;
            if let (Outcome::Sent(way), false) = (outcome, is_reset) {
                self.own(entry, way, &backends);
            }
        };
        let backend = |flags, sequence| {
            if entry.service.mode != Mode::L2 && self.owns(entry, way) {
                self.reply(entry, way, &entry.reply(way, flags, sequence));
            }
        };
        match random.below(4) {
            0 => client(RST, sequence),
            1 => backend(RST | ACK, sequence),
            2 => {
                client(FIN | ACK, sequence);
                backend(FIN | ACK, sequence);
                client(ACK, sequence.wrapping_add(1));
            }
            _ => {
                backend(FIN | ACK, sequence);
                client(FIN | ACK, sequence);
                backend(ACK, sequence.wrapping_add(1));
            }
        }
    }

    /// What is still on its way when a connection has ended.
    fn late(&self, entry: &Entry, random: &mut Random) {
        let Ok(mut state) = entry.state.try_write() else {
            return;
        };
        let (Life::Over, Some(way)) = (state.life, state.way) else {
            return;
        };
        let sequence = state.sequence.wrapping_add(1);
        if entry.service.mode != Mode::L2 && random.percent(50) {
            if self.owns(entry, way) {
                self.reply(entry, way, &entry.reply(way, ACK, sequence));
            }
            return;
        }
        let backends = self.backends.read().expect("backends");
        match self.request(entry, &entry.request(ACK, sequence), &backends) {
            // It may have made a connection.
            Outcome::Sent(way) => self.learn(entry, &mut state, way, &backends),
            Outcome::Dropped => {}
        }
        state.life = Life::Over;
    }

    /// All threads send the same packet of a connection at the same moment: to all of them it is the same one.
    fn race(&self, threads: usize, round: u32) {
        for number in 0..100_u32.div_ceil(one_in() as u32) {
            let entry = entry(1 << 19 | round << 8 | number);
            if entry.protocol == Protocol::Udp {
                continue;
            }
            let backends = self.backends.read().expect("backends");
            let at_once = |run: &(dyn Fn() -> Option<Way> + Sync)| {
                let ready = AtomicU32::new(0);
                let ways: Vec<Option<Way>> = thread::scope(|scope| {
                    let ready = &ready;
                    let threads: Vec<_> = (0..threads)
                        .map(|thread| {
                            scope.spawn(move || {
                                pin(thread);
                                ready.fetch_add(1, Ordering::SeqCst);
                                while ready.load(Ordering::SeqCst) < threads as u32 {
                                    thread::yield_now();
                                }
                                run()
                            })
                        })
                        .collect();
                    threads
                        .into_iter()
                        .map(|thread| thread.join().expect("a thread"))
                        .collect()
                });
                if ways.iter().any(|way| *way != ways[0]) {
                    self.fail(&entry, &format!("at the same time it went {ways:?}"));
                }
                ways[0]
            };
            let client = |flags, sequence| {
                let frame = entry.request(flags, sequence);
                at_once(&|| match self.request(&entry, &frame, &backends) {
                    Outcome::Sent(way) => Some(way),
                    Outcome::Dropped => None,
                })
            };
            let Some(way) = client(SYN, 7) else { continue };
            self.own(&entry, way, &backends);
            if entry.service.mode != Mode::L2 {
                let reply = entry.reply(way, SYN | ACK, 7);
                at_once(&|| {
                    let known = self.reply(&entry, way, &reply);
                    known
                        .then_some(way)
                        .or_else(|| self.fail(&entry, "a reply was not known"))
                });
            }
            for flags in [ACK, PSH | ACK, RST] {
                let then = client(flags, 8);
                if then != Some(way) {
                    self.fail(&entry, &format!("went {then:?} after {way:?}"));
                }
            }
            add(&self.counts.raced);
        }
    }
}

fn pin(thread: usize) {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("affinity");
    let cpus: Vec<usize> = (0..CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .collect();
    let mut only = CpuSet::new();
    only.set(cpus[thread % cpus.len()]).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &only).expect("a CPU");
}

/// How many of each kind the program has listed.
#[derive(Debug, Default)]
struct Listed {
    /// IPv4 and IPv6.
    established: [u32; 2],
    others: u32,
}

/// While nothing moves: what is listed is what the table says.
impl Model {
    fn compare(&self, lab: &Lab, view: &View, is_aged: bool) -> Listed {
        let connections = listed(view);
        let backends = self.backends.read().expect("backends");
        let mut listed = Listed::default();
        let mut by_flow: HashMap<Flow, &Connection> = HashMap::new();
        let mut sources: HashMap<Flow, Flow> = HashMap::new();
        let claims = claims(lab);
        for connection in &connections {
            let flow = connection.entry.flow;
            let context = || format!("XDPLB_MODEL_SEED={}: {connection:?}", self.seed);
            assert!(
                by_flow.insert(flow, connection).is_none(),
                "listed twice: {}",
                context()
            );
            let service = SERVICES.iter().find(|service| {
                flow.destination == (service.vip(flow.source.0.is_ipv6()).ip(), 80)
            });
            let service = service.unwrap_or_else(|| panic!("of no service: {}", context()));
            let is_established = connection.state == "established";
            if is_established {
                listed.established[usize::from(flow.source.0.is_ipv6())] += 1;
            } else {
                listed.others += 1;
            }
            if service.mode == Mode::L2 {
                continue;
            }
            let reply = connection.entry.becomes.reversed();
            if service.mode == Mode::FullNat {
                assert_eq!(
                    claims.get(&reply),
                    Some(&flow),
                    "who holds its source: {}",
                    context()
                );
            }
            if is_established && self.has_own_source(service) {
                let other = sources.insert(reply, flow);
                assert!(
                    other.is_none(),
                    "shares its source with {other:?}: {}",
                    context()
                );
            }
        }
        for entry in &self.entries {
            let mut state = entry.state.write().expect("no thread has panicked");
            let found = by_flow.get(&entry.flow()).copied();
            if found.is_some() && state.life == Life::None && state.way.is_none() {
                // Refused, at a time when a former connection was still there.
                continue;
            }
            let must_know = self.must_know(entry, &state, &backends) && state.life == Life::Open;
            let is_found = found.zip(state.way).is_some_and(|(found, way)| {
                is_established(entry, found) && goes(entry, found, way)
            });
            if must_know && !is_found {
                self.lose(entry, &format!("it is live, and listed is {found:?}"));
            }
            let way_stays = state.way.is_some_and(|way| is_same(&state, way, &backends));
            entry.is_live.store(
                is_found && way_stays && state.life == Life::Open,
                Ordering::Relaxed,
            );
            if is_aged && entry.protocol == Protocol::Udp {
                assert!(found.is_none(), "it has expired: {found:?}");
                entry.is_live.store(false, Ordering::Relaxed);
                state.life = Life::None;
            }
        }
        listed
    }
}

/// Listed in a way that it cannot give way to a half-open one.
fn is_established(entry: &Entry, found: &Connection) -> bool {
    let replied = u32::from(found.entry.flags) & abi::conn_flag::CONN_REPLIED.0 != 0;
    match entry.protocol {
        Protocol::Tcp => found.state == "established",
        Protocol::Udp => replied,
    }
}

fn goes(entry: &Entry, found: &Connection, way: Way) -> bool {
    let becomes = found.entry.becomes;
    entry.service.mode == Mode::L2
        || (becomes.source, becomes.destination)
            == (
                (way.seen.ip(), way.seen.port()),
                (way.backend.ip(), way.backend.port()),
            )
}

/// Who holds each full-nat source, by the flow of the replies.
fn claims(lab: &Lab) -> HashMap<Flow, Flow> {
    let narrow = lab.pairs("nat_ports").into_iter().map(|(key, value)| {
        let key: abi::flow4 = from_bytes(&key).expect("struct flow4");
        let claim: abi::claim4 = from_bytes(&value).expect("struct claim4");
        (key.into(), claim.owner.into())
    });
    let wide = lab.pairs("nat_ports6").into_iter().map(|(key, value)| {
        let key: abi::flow6 = from_bytes(&key).expect("struct flow6");
        let claim: abi::claim6 = from_bytes(&value).expect("struct claim6");
        (key.into(), claim.owner.into())
    });
    narrow.chain(wide).collect()
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text}: it is a number")),
    )
}

/// Rounds of packets on all CPUs with a comparison after each. So many of each family's connections.
fn run(entries: u32, has_room: bool) -> (Model, Listed) {
    let seed = number("XDPLB_MODEL_SEED").unwrap_or(20_261_130);
    let packets = number("XDPLB_MODEL_PACKETS").unwrap_or(400_000) / 2 / one_in() as u64;
    let mut lab = Lab::with_limits(&services(None), CONNECTIONS);
    lab.set_timeouts(|timeouts| {
        timeouts.tcp_opening = TIMEOUT;
        timeouts.tcp_half_closed = TIMEOUT;
        timeouts.tcp_closing = TIMEOUT;
        timeouts.udp = TIMEOUT;
    });
    let view = View::open(&lab.pin()).expect("a view");
    let model = Model::new(&lab, entries, has_room, seed);
    let threads = thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 8));
    let mut random = Random(seed);
    let mut listed = Listed::default();
    for round in 0..ROUNDS {
        let begun = model.counts.packets.load(Ordering::Relaxed);
        let until = begun + packets / u64::from(ROUNDS);
        let seeds: Vec<u64> = (0..threads).map(|_| random.next()).collect();
        let removed = remove_one(&mut random);
        if round == CROWDED {
            lab.limit_new_flows(20);
            model.is_apart.store(false, Ordering::Relaxed);
        }
        let done = &AtomicBool::new(false);
        let sweeper = lab.datapath.sweeper().expect("a sweeper");
        thread::scope(|scope| {
            let model = &model;
            let sweeps = scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    sweeper.sweep(&|_, _| true).expect("a sweep");
                    thread::sleep(Duration::from_millis(5));
                }
            });
            let workers: Vec<_> = seeds
                .into_iter()
                .enumerate()
                .map(|(thread, seed)| {
                    scope.spawn(move || {
                        pin(thread);
                        model.work(&mut Random(seed), until);
                    })
                })
                .collect();
            // Meanwhile, a backend goes and comes back.
            let half = begun.midpoint(until);
            let reached = |share: u64| {
                while model.counts.packets.load(Ordering::Relaxed) < share
                    && workers.iter().any(|worker| !worker.is_finished())
                {
                    thread::sleep(Duration::from_millis(1));
                }
            };
            model.set_presence(removed, Presence::Leaving);
            lab.reload(&services(Some(removed)));
            model.set_presence(removed, Presence::Gone);
            reached(half);
            model.set_presence(removed, Presence::There);
            lab.reload(&services(None));
            let results: Vec<_> = workers
                .into_iter()
                .map(thread::ScopedJoinHandle::join)
                .collect();
            done.store(true, Ordering::Relaxed);
            sweeps.join().expect("the sweeps");
            for result in results {
                if let Err(panic) = result {
                    std::panic::resume_unwind(panic);
                }
            }
        });
        let is_aged = round % 4 == 3;
        if is_aged {
            thread::sleep(TIMEOUT + TIMEOUT / 2);
        }
        let now = model.compare(&lab, &view, is_aged);
        // Before most go without an entry.
        if round < CROWDED {
            listed = now;
        }
        if has_room && round < CROWDED {
            model.race(threads, round);
        }
    }
    let counts = &model.counts;
    println!(
        "{} packets on {threads} threads: {} opened, {} answered, {} closed, {} refused, {} forgotten, {} lost, \
         {} raced; {listed:?}",
        counts.packets.load(Ordering::Relaxed),
        counts.opened.load(Ordering::Relaxed),
        counts.answered.load(Ordering::Relaxed),
        counts.closed.load(Ordering::Relaxed),
        counts.refused.load(Ordering::Relaxed),
        counts.forgotten.load(Ordering::Relaxed),
        counts.lost.load(Ordering::Relaxed),
        counts.raced.load(Ordering::Relaxed),
    );
    (model, listed)
}

fn remove_one(random: &mut Random) -> u8 {
    let service = &SERVICES[random.below(SERVICES.len() as u64) as usize];
    service.backends.start() + random.below(service.backends.len() as u64) as u8
}

impl Model {
    fn set_presence(&self, number: u8, presence: Presence) {
        let mut backends = self.backends.write().expect("backends");
        let backend = backends.get_mut(&number).expect("a backend");
        backend.presence = presence;
        // Packets went to it until it was gone.
        if presence != Presence::There {
            backend.incarnation += 1;
        }
    }
}

/// Every connection that there may be fits the tables three quarters full.
#[test]
fn no_live_connection_is_lost_where_there_is_room() {
    let (model, listed) = run(3 * CONNECTIONS / 2, true);
    assert_eq!(model.counts.lost.load(Ordering::Relaxed), 0);
    assert!(model.counts.raced.load(Ordering::Relaxed) > 0);
    let least = 100 / one_in() as u32;
    assert!(
        listed.established.iter().all(|&count| count > least),
        "{listed:?}"
    );
}

/// Twice as many as fit.
#[test]
fn what_does_not_fit_is_forgotten_and_no_more() {
    let (model, listed) = run(4 * CONNECTIONS, false);
    // Fewer packets do not fill the tables.
    if one_in() == 1 {
        assert!(model.counts.lost.load(Ordering::Relaxed) > 0);
        assert!(
            listed
                .established
                .iter()
                .all(|&count| count >= 3 * CONNECTIONS / 4),
            "{listed:?}"
        );
    }
}
