//! A loaded datapath in a network namespace of its own, fed with frames by BPF_PROG_TEST_RUN.
//!
//! Owns the set-up that all tests share, the comparison of frames, and the rule that every packet is
//! counted exactly once, which is checked for each packet that any test sends.

pub mod cases;
pub mod cells;
pub mod dialog;
mod elements;
pub mod frame;
pub mod ip;
pub mod knock;
pub mod live;
pub mod pool;
pub mod runner;
pub mod table;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapHandle, ProgramInput};
use nix::net::if_::if_nametoindex;
use nix::sched::{unshare, CloneFlags};
use xdplb::config::blocklist::Contents;
use xdplb::config::{self, Config, Limits, MacAddress, Timeouts};
use xdplb::datapath::abi::{self, from_bytes, Flow};
use xdplb::datapath::connections;
use xdplb::datapath::pins::PinDir;
use xdplb::datapath::reasons::{self, REASONS};
use xdplb::datapath::view::Connection;
use xdplb::datapath::{Interface, Settings, View};
use xdplb::state::{self, Desired, Hop, Needs, World};

pub use crate::frames::{assert_same, hex};
use pool::Lent;

/// Slots of the interfaces; their names are [`NAMES`].
pub const CLIENTS: u16 = 0;
pub const BACKENDS: u16 = 1;
/// A second way to clients.
pub const OTHER: u16 = 2;
/// An interface of the host that XDP is not attached to.
pub const FOREIGN: u16 = 3;

const NAMES: [&str; 4] = ["clients", "backends", "other", "foreign"];

/// The last hop of the clients' packets.
pub const ROUTER: MacAddress = MacAddress([0x02, 0xc1, 0, 0, 0, 0x01]);
pub const OTHER_ROUTER: MacAddress = MacAddress([0x02, 0xc1, 0, 0, 0, 0x02]);

/// The ports that full-nat sends from, unless a test says otherwise.
pub const NAT_PORTS: (u16, u16) = (20000, 32767);

/// Our own address on an interface.
pub fn own_mac(slot: u16) -> MacAddress {
    MacAddress([0x02, 0x1b, 0, 0, 0, slot as u8])
}

/// Likewise, where ICMP errors come from.
pub fn own_ipv4(slot: u16) -> Ipv4Addr {
    Ipv4Addr::from([10, 0, 0, 200 + slot as u8])
}

pub fn own_ipv6(slot: u16) -> Ipv6Addr {
    Ipv6Addr::from([0xfd00, 0, 0, 0, 0, 0, 0, 0x200 + slot])
}

/// A backend's address on the wire, unless a test moves it.
pub fn backend_mac(address: IpAddr) -> MacAddress {
    let last = match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    MacAddress([0x02, 0xbe, 0, 0, 0, last])
}

pub fn at(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

pub fn ip(text: &str) -> IpAddr {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Dropped, for this reason.
    Drop(&'static str),
    /// To the host's stack, for this reason.
    Pass(&'static str),
    /// Back through the interface that it came by.
    Tx,
    /// Out through another.
    Redirect,
    /// Back as it came, having become an answer, for this reason.
    Answer(&'static str),
}

/// A packet after the program.
#[derive(Debug, Clone)]
pub struct Sent {
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
}

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// "half-open" or "proven"
    pub stage: &'static str,
    pub flow: Flow,
    pub becomes: Flow,
    pub state: &'static str,
    pub is_reply: bool,
    pub backend: u32,
    /// Of the backend that it was made for.
    pub generation: u32,
}

/// What is counted. Everything that a packet can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
    pub connections: u64,
}

/// The datapath under test.
pub struct Lab {
    pub datapath: Lent,
    /// Those of its maps that every packet is counted in.
    maps: Counts,
    pub desired: Desired,
    pub settings: Settings,
    /// Kernel's indices of the interfaces, by slot.
    ifindex: [u32; NAMES.len()],
    /// Next hops that differ from the usual; `None`: unresolved.
    pub hops: BTreeMap<IpAddr, Option<Hop>>,
    /// What the plan in force was made of.
    config: Option<Config>,
    /// Keys of `[datapath]` beside the interfaces.
    pub datapath_keys: String,
    /// What is in the files that `firewall.blocklists` names.
    pub blocklists: Contents,
    /// Entries for new flows that each CPU makes in a second, of each kind.
    new_flows: u32,
}

/// Where packets are counted.
struct Counts {
    counters: MapHandle,
    traffic: MapHandle,
}

impl Lab {
    /// With these services, in the form of the configuration file.
    pub fn new(services: &str) -> Lab {
        Lab::with_limits(services, 4096)
    }

    pub fn with_limits(services: &str, connections: u32) -> Lab {
        Lab::over(services, Lent::take(&Lab::limits(connections)))
    }

    /// With these services, over maps with room for what `needs` says.
    pub fn with_needs(services: &str, limits: &Limits, needs: &Needs) -> Lab {
        Lab::over(services, Lent::load(limits, needs))
    }

    fn over(services: &str, mut datapath: Lent) -> Lab {
        let ifindex = namespace();
        for slot in [CLIENTS, BACKENDS, OTHER] {
            datapath
                .set_interface(slot, &interface(slot, &ifindex))
                .expect("an interface's slot");
        }
        let map = |name| datapath.map(name).expect("a handle").expect("a map");
        let maps = Counts {
            counters: map("counters"),
            traffic: map("traffic"),
        };
        let mut lab = Lab {
            datapath,
            maps,
            desired: Desired::default(),
            settings: Settings {
                timeouts: Timeouts::default(),
                unknown_port: config::Refusal::Pass,
                hash_seed: 0,
                nat_ports: NAT_PORTS,
                gue_port: 6080,
            },
            ifindex,
            hops: BTreeMap::new(),
            config: None,
            datapath_keys: r#"addresses = ["10.0.0.100", "fd00::100"]"#.into(),
            blocklists: Contents::new(),
            // Tables are small here: without this, a test's own pace would be a flood.
            new_flows: u32::MAX,
        };
        lab.reload(services);
        lab
    }

    /// `[limits]`, with so many connections.
    pub fn limits(connections: u32) -> Limits {
        Limits {
            services: 32,
            backends: 64,
            connections,
            firewall_rules: 2048,
            sources: 1024,
        }
    }

    /// The interface in `slot`, as the datapath knows it in the beginning.
    pub fn interface(&self, slot: u16) -> Interface {
        interface(slot, &self.ifindex)
    }

    /// Sets the MTU of every interface.
    pub fn set_mtu(&mut self, mtu: u32) {
        for slot in [CLIENTS, BACKENDS, OTHER] {
            let interface = Interface {
                mtu,
                ..self.interface(slot)
            };
            self.datapath.update_interface(slot, &interface);
        }
    }

    /// As many answers as in the beginning, as if a second had gone by.
    pub fn refill_answers(&self) {
        self.refill("answers", 0);
    }

    /// Puts other services in force, as a reload of the file does. Whatever else the file has may follow
    /// them.
    pub fn reload(&mut self, services: &str) {
        self.plan(services);
        self.apply();
    }

    /// Makes the plan for other services, without putting it in force.
    pub fn plan(&mut self, services: &str) {
        let limits = self.datapath.limits();
        let text = format!(
            "[datapath]\ninterfaces = [\"clients\", \"backends\", \"other\"]\n{}\n[limits]\nservices = {}\n\
             backends = {}\nfirewall_rules = 2048\nsources = 1024\n{services}",
            self.datapath_keys, limits.services, limits.backends
        );
        let config = config::parse(&text, Path::new("lb.toml"))
            .unwrap_or_else(|error| panic!("{error}"))
            .config;
        self.settings.unknown_port = config.datapath.unknown_port;
        self.settings.hash_seed = config.datapath.hash_seed;
        self.settings.gue_port = config.tunnel.gue_port;
        let desired = self.planned(|world| state::plan(&self.desired, &config, world));
        assert_eq!(desired.deferred, 0, "a test with more ids than limits");
        self.config = Some(config);
        self.desired = desired;
    }

    fn planned(
        &self,
        plan: impl FnOnce(&World<'_>) -> Result<Desired, state::PlanError>,
    ) -> Desired {
        let hop = |backend: &config::Backend| {
            self.hops
                .get(&backend.address)
                .copied()
                .unwrap_or(Some(Hop {
                    mac: backend_mac(backend.address),
                    slot: BACKENDS,
                    on_link: true,
                }))
        };
        plan(&World {
            blocklists: &self.blocklists,
            hop: &hop,
            own_addresses: &[],
        })
        .expect("a plan")
    }

    /// The network finds another way to the backends at an address, or none any more.
    pub fn set_way(&mut self, address: &str, way: Option<Hop>) {
        let address = ip(address);
        self.hops.insert(address, way);
        let config = self.config.as_ref().expect("a file");
        let changed = BTreeSet::from([address]);
        let desired = self.planned(|world| state::replan(&self.desired, config, world, &changed));
        self.desired = desired;
        self.datapath
            .follow(&self.desired, &self.settings)
            .expect("follow");
    }

    /// What is in a file that `firewall.blocklists` names, from the next reload on.
    pub fn set_blocklist(&mut self, path: &str, prefixes: &[&str]) {
        let prefixes = prefixes.iter().map(|text| {
            let prefix = text.parse();
            prefix.unwrap_or_else(|error| panic!("{text} {error}"))
        });
        self.blocklists.insert(path.into(), prefixes.collect());
    }

    /// Writes the plan and settings to the maps.
    pub fn apply(&mut self) {
        self.datapath
            .apply(&self.desired, &self.settings)
            .expect("apply");
        self.limit_new_flows(self.new_flows);
    }

    /// Entries for new flows that each CPU makes in a second, of each kind, beginning with this one.
    pub fn limit_new_flows(&mut self, a_second: u32) {
        self.new_flows = a_second;
        self.set_element(
            "settings",
            0,
            &abi::settings {
                new_flows: a_second,
                ..self.live()
            },
        );
        for kind in 0..self.map("new_flows").max_entries() {
            self.refill("new_flows", kind);
        }
    }

    fn refill(&self, map: &str, index: u32) {
        let cpus = libbpf_rs::num_possible_cpus().expect("the number of CPUs");
        // struct allowance: when it was refilled, and how many are left.
        let values = vec![vec![0; 16]; cpus];
        self.map(map)
            .update_percpu(&index.to_ne_bytes(), &values, MapFlags::ANY)
            .expect("allowances");
    }

    pub fn set_timeouts(&mut self, change: impl FnOnce(&mut Timeouts)) {
        change(&mut self.settings.timeouts);
        self.apply();
    }

    /// Runs the program over one frame that comes in by the interface in `slot`.
    pub fn send(&self, slot: u16, frame: &[u8]) -> Sent {
        let (counts, forwarded) = (self.counts(), self.all_forwarded());
        let (code, bytes) = self.run(slot, frame);
        let after = self.counts();
        let counted: Vec<(&'static str, u64)> = (REASONS.iter().zip(after.iter().zip(&counts)))
            .filter(|(_, (after, before))| after != before)
            .map(|(reason, (after, before))| (reason.name, after - before))
            .collect();
        let forwarded = self.all_forwarded() - forwarded;
        let verdict = match (code, counted.as_slice(), forwarded) {
            (1, [(reason, 1)], 0) => Verdict::Drop(reason),
            (2, [(reason, 1)], 0) => Verdict::Pass(reason),
            (3, [], 1) => Verdict::Tx,
            (4, [], 1) => Verdict::Redirect,
            // Answers leave by the devmap, the one interface as well as the other.
            (4, [(reason, 1)], 0) => Verdict::Answer(reason),
            _ => panic!(
                "verdict {code}, counted as {counted:?} and {forwarded} times as forwarded:\n{}",
                hex(frame)
            ),
        };
        if let Verdict::Pass(_) = verdict {
            assert_same("passed on, but changed", &bytes, frame);
        }
        if let Verdict::Drop(name) | Verdict::Pass(name) | Verdict::Answer(name) = verdict {
            let reason = REASONS.iter().find(|reason| reason.name == name);
            let listed = reason.map(|reason| reason.verdict);
            let met = match verdict {
                Verdict::Drop(_) => reasons::Verdict::Drop,
                Verdict::Pass(_) => reasons::Verdict::Pass,
                _ => reasons::Verdict::Answer,
            };
            assert_eq!(listed, Some(met), "{name}");
        }
        Sent { verdict, bytes }
    }

    /// The program's verdict and the frame after it; nothing is checked.
    pub fn run(&self, slot: u16, frame: &[u8]) -> (u32, Vec<u8>) {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let words = [
            0,
            frame.len() as u32,
            0,
            self.ifindex[usize::from(slot)],
            0,
            0,
        ];
        let mut context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        // The kernel says how much it wrote by the length of what it gives back.
        let mut out = vec![0; frame.len() + 256];
        let output = self
            .datapath
            .program()
            .test_run(ProgramInput {
                context_in: Some(&mut context),
                data_in: Some(frame),
                data_out: Some(&mut out),
                ..Default::default()
            })
            .unwrap_or_else(|error| {
                panic!("BPF_PROG_TEST_RUN: {error:#}; it needs CAP_BPF and CAP_NET_ADMIN, or root")
            });
        let code = output.return_value;
        let length = output.data.map_or(0, |data| data.len());
        out.truncate(length);
        (code, out)
    }

    /// How many packets each reason has met.
    pub fn reasons(&self) -> BTreeMap<&'static str, u64> {
        let names = REASONS.iter().map(|reason| reason.name);
        names.zip(self.counts()).collect()
    }

    /// Likewise, in the order of [`REASONS`].
    fn counts(&self) -> Vec<u64> {
        let counters = &self.maps.counters;
        let cpus = elements::first(counters, REASONS.len() as u32);
        let of_reason = |element: &[u8]| {
            let cpus = element.chunks_exact(size_of::<abi::counter>());
            let packets =
                cpus.map(|cpu| from_bytes::<abi::counter>(cpu).expect("a counter").packets);
            packets.sum()
        };
        let each = cpus.chunks_exact(elements::stride(counters));
        each.map(of_reason).collect()
    }

    /// What went to the backend of that id, and came back.
    pub fn traffic(&self, id: u32) -> Traffic {
        let mut sum = Traffic::default();
        let values = self
            .map("traffic")
            .lookup_percpu(&id.to_ne_bytes(), MapFlags::ANY)
            .expect("traffic")
            .expect("an element for each backend");
        for bytes in values {
            let cpu: abi::traffic = from_bytes(&bytes).expect("struct traffic");
            for exchange in &cpu.by {
                sum.packets_in += exchange.packets_in;
                sum.bytes_in += exchange.bytes_in;
                sum.packets_out += exchange.packets_out;
                sum.bytes_out += exchange.bytes_out;
            }
            sum.connections += cpu.opened;
        }
        sum
    }

    /// How many packets went to backends or came back.
    fn all_forwarded(&self) -> u64 {
        // Ids are given out from 0; those of backends that are gone may still be counted for.
        let last = self.desired.backends.keys().max().copied().unwrap_or(0);
        let cpus = elements::first(&self.maps.traffic, last.max(15) + 1);
        let packets = cpus.chunks_exact(size_of::<abi::traffic>()).map(|cpu| {
            let cpu: abi::traffic = from_bytes(cpu).expect("struct traffic");
            let exchanges = cpu.by.iter();
            exchanges
                .map(|exchange| exchange.packets_in + exchange.packets_out)
                .sum::<u64>()
        });
        packets.sum()
    }

    /// The id of the backend with that name.
    pub fn backend_id(&self, name: &str) -> u32 {
        let mut ids = self.desired.backends.iter();
        let found = ids.find(|(_, backend)| backend.name == name);
        *found
            .unwrap_or_else(|| panic!("no backend {name} in the plan"))
            .0
    }

    /// Every connection, in each of the directions that are seen.
    pub fn entries(&self) -> Vec<Entry> {
        let map = |name: &str| Ok(self.map(name));
        let all = connections::all(map).expect("the connections");
        let directions = all.iter().flat_map(|entry| {
            let reply = (!entry.is_direct()).then(|| direction(entry, true));
            [Some(direction(entry, false)), reply]
        });
        directions.flatten().collect()
    }

    /// The connection that packets of this flow find.
    pub fn entry(&self, flow: &Flow) -> Option<Entry> {
        let found: Vec<Entry> = self
            .entries()
            .into_iter()
            .filter(|entry| entry.flow == *flow)
            .collect();
        assert!(found.len() < 2, "two connections of one flow: {found:?}");
        found.first().copied()
    }

    /// What time does within a moment: the CPUs' own copies of entries no longer count.
    pub fn forget_copies(&self) {
        let map = self.map("epoch");
        let key = 0_u32.to_ne_bytes();
        let bytes = map
            .lookup(&key, MapFlags::ANY)
            .expect("lookup")
            .expect("the one element");
        let mut epoch: abi::epoch = from_bytes(&bytes).expect("struct epoch");
        epoch.number += 1;
        map.update(&key, abi::bytes_of(&epoch), MapFlags::ANY)
            .expect("update");
    }

    /// How many full-nat ports are held, of both families.
    pub fn claims(&self) -> usize {
        self.pairs("nat_ports").len() + self.pairs("nat_ports6").len()
    }

    /// One sweep; services that have lost a port lose its connections, as the daemon does it.
    pub fn sweep(&self) -> xdplb::datapath::sweep::Swept {
        let sweeper = self.datapath.sweeper().expect("a sweeper");
        let still_bound = |client: &Flow, backend: u32| {
            let (vip, port) = client.destination;
            let service = self.desired.still_bound(vip, client.protocol, port);
            service.is_some_and(|service| {
                let backend = self.desired.backends.get(&backend);
                backend.is_none_or(|backend| backend.service == service)
            })
        };
        sweeper.sweep(&still_bound).expect("a sweep")
    }

    /// Pins the maps, for as long as the lab is there, and gives the directory.
    pub fn pin(&mut self) -> PathBuf {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("xdplb-test-{}-{serial}", std::process::id());
        let path = Path::new("/sys/fs/bpf").join(name);
        let pins = PinDir::open(&path).expect("a pin directory; it needs a bpffs and root");
        self.datapath.pin(pins).expect("pins");
        self.datapath.keep();
        path
    }

    pub fn map(&self, name: &str) -> libbpf_rs::MapHandle {
        let map = self.datapath.map(name).expect("a handle to a map");
        map.unwrap_or_else(|| panic!("no map {name}"))
    }

    /// All keys and values of a map.
    pub fn pairs(&self, name: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let map = self.map(name);
        map.keys()
            .filter_map(|key| {
                let value = map.lookup(&key, MapFlags::ANY).expect("lookup")?;
                Some((key, value))
            })
            .collect()
    }
}

/// A connection, as one of its directions sees it.
fn direction(of: &connections::Entry, is_reply: bool) -> Entry {
    use abi::conn_state;
    Entry {
        stage: if of.proven { "proven" } else { "half-open" },
        flow: if is_reply { of.reply_flow() } else { of.flow },
        becomes: if is_reply {
            of.flow.reversed()
        } else {
            of.becomes
        },
        state: match conn_state(of.state.into()) {
            conn_state::CONN_OPENING => "opening",
            conn_state::CONN_ESTABLISHED => "established",
            conn_state::CONN_HALF_CLOSED => "half-closed",
            conn_state::CONN_CLOSING => "closing",
            conn_state::CONN_CLOSED => "closed",
            conn_state::CONN_UDP => "udp",
            other => panic!("a connection in state {}", other.0),
        },
        is_reply,
        backend: of.backend,
        generation: of.generation,
    }
}

fn interface(slot: u16, ifindex: &[u32; NAMES.len()]) -> Interface {
    Interface {
        ifindex: ifindex[usize::from(slot)],
        name: NAMES[usize::from(slot)].into(),
        mac: own_mac(slot),
        mtu: 1500,
        ipv4: Some(own_ipv4(slot)),
        ipv6: Some(own_ipv6(slot)),
    }
}

thread_local! {
    /// The interfaces of the namespace that this thread is in, once it has one.
    static NAMESPACE: OnceCell<[u32; NAMES.len()]> = const { OnceCell::new() };
}

/// Gives the thread a network namespace of its own, with the interfaces, and their indices. It goes with
/// the thread: nothing has to be removed. All of a thread's datapaths share it, since the devices of a
/// namespace that nobody is in are gone.
fn namespace() -> [u32; NAMES.len()] {
    NAMESPACE.with(|namespace| *namespace.get_or_init(new_namespace))
}

fn new_namespace() -> [u32; NAMES.len()] {
    unshare(CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| {
        panic!(
            "these tests make a network namespace: run them as root (CAP_SYS_ADMIN, CAP_NET_ADMIN and \
             CAP_BPF): {error}"
        )
    });
    for pair in NAMES.chunks_exact(2) {
        let status = Command::new("ip")
            .args([
                "link", "add", pair[0], "type", "veth", "peer", "name", pair[1],
            ])
            .status()
            .expect("these tests need iproute2's `ip`: apt-get install iproute2");
        assert!(
            status.success(),
            "ip link add {pair:?}: veth interfaces are needed (CONFIG_VETH)"
        );
    }
    NAMES.map(|name| if_nametoindex(name).expect("an interface that was just made"))
}

/// Every connection that commands see.
pub fn listed(view: &View) -> Vec<Connection> {
    let mut listed = Vec::new();
    view.for_each_connection(|connection| {
        listed.push(connection.clone());
        Ok::<(), xdplb::datapath::Error>(())
    })
    .expect("the connections");
    listed
}

/// Waits until more than this time has gone by, by the clock that entries age by.
pub fn pause(duration: Duration) {
    // Jiffies round down; the slowest clock has a hundred a second.
    std::thread::sleep(duration + Duration::from_millis(25));
}
