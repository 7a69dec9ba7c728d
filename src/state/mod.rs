//! The desired state: what the datapath's maps are to hold, as plain values.
//!
//! Owns ids, generations, Maglev tables, port prefixes, source addresses, the firewall's lists, the slots of
//! policies and the address filter, worked out by [`plan()`] from the configuration, the plan before and
//! facts of the world, and by [`replan()`] where only the network has changed. What two plans have in common
//! they share: it is the same allocation in both, so that finding the difference is comparing pointers.
//! Touches neither the network nor the kernel nor libbpf: facts come in as values, and comparing the
//! result with the live maps is the datapath's part.

mod backends;
mod by_id;
pub mod changes;
mod error;
pub mod filter;
pub mod firewall;
pub mod maglev;
mod needs;
mod origin;
mod own_addresses;
mod plan;
mod policies;
pub mod ports;
pub mod regions;
mod replan;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::blocklist::Contents;
use crate::config::{
    self, AdminState, Forward, HashBy, MacAddress, OnDownByProtocol, Prefix, Protocol, Refusal,
};

pub use crate::config::Family;

pub use by_id::{ById, Change};
pub use error::PlanError;
pub use needs::{FamilyNeeds, Needs};
pub use origin::Origin;
pub use plan::{plan, plan_of_file};
use ports::PortPrefix;
pub use replan::replan;

/// Most addresses in the full-nat source pool, `NAT_POOL_LIMIT` of xdp_lb.h.
pub const NAT_POOL_LIMIT: usize = 4096;

/// The facts outside the file that a plan needs.
pub struct World<'a> {
    /// The next hop towards a backend. `None`: unresolved.
    pub hop: &'a dyn Fn(&config::Backend) -> Option<Hop>,
    /// The interfaces' own addresses, from which full-nat and tunnels send when the file names none.
    pub own_addresses: &'a [OwnAddress],
    /// The contents of the blocklists, by the path in the file.
    pub blocklists: &'a Contents,
}

/// Where frames for a backend go, `struct hop` of xdp_lb.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// Destination address of the frame.
    pub mac: MacAddress,
    /// Slot of the interface that it leaves by.
    pub slot: u16,
    /// Whether the frame comes to the backend itself, not to a router before it.
    pub on_link: bool,
}

impl Hop {
    /// Whether packets can reach the backend this way: without a header for the way there, a router
    /// would send them to where their destination says, which is back here.
    pub fn reaches(self, forward: Forward) -> bool {
        self.on_link || forward != Forward::L2
    }
}

/// An address of one of our interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnAddress {
    /// The address.
    pub address: IpAddr,
    /// Slot of the interface that has it.
    pub slot: u16,
}

/// Everything that the maps are to hold. [`Desired::default`] is that of an empty datapath, where no
/// generation has been given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// By id, the index into `services`.
    pub services: ById<Service>,
    /// By id, the index into `backends`.
    pub backends: ById<Backend>,
    /// The service of each VIP and port prefix; `None` for a VIP by itself.
    pub vips: Arc<BTreeMap<Vip, Option<u32>>>,
    /// The fate of a ping, for each VIP.
    pub echoes: Arc<BTreeMap<IpAddr, Echo>>,
    /// The firewall; `None`: none is configured, or one that lets everything in.
    pub firewall: Option<Arc<firewall::Ruleset>>,
    /// `[[dos]]` policies, by protocol and slot, 0..`POLICY_LIMIT`: one of a name stays in its slot.
    pub policies: BTreeMap<(config::PolicyProtocol, u8), config::Policy>,
    /// The full-nat source pool, by position. Empty when no service is full-nat.
    pub nat_pool: Vec<IpAddr>,
    /// The address filter: VIPs and backends.
    pub filter: Box<filter::Words>,
    /// The seed of the tables, `datapath.hash_seed`.
    pub seed: u64,
    /// The generation that the next new backend gets. A plan that is rebuilt from live maps has
    /// to set it above every generation that a connection may still remember, those of removed backends
    /// included.
    pub next_generation: u32,
    /// Services and backends left out because the only free ids are those that this plan has just
    /// freed. When this is above 0, a second plan, made once this one is in force, has them all.
    pub deferred: usize,
    /// Room that the file needs in the maps, for what is deferred too.
    pub needs: Needs,
    /// Which place in the file each id stands for.
    pub origin: Origin,
}

/// One address family of one configured service, `struct service` of xdp_lb.h.
#[derive(Debug, Clone, Eq)]
pub struct Service {
    /// As in the file; both families of a service have the same.
    pub name: String,
    /// Of its VIPs; of its backends too, but with a tunnel.
    pub family: Family,
    /// How packets reach the backends.
    pub forward: Forward,
    /// The part of the packet that chooses the slot.
    pub hash: HashBy,
    /// The fate of new connections while the table is empty.
    pub no_backend: Refusal,
    /// Source prefixes that may reach it; empty: all. Of either family: those of the other do not matter.
    pub allow: Vec<Prefix>,
    /// The backends that take new connections, in order of ids: whose table it is.
    pub candidates: Arc<[maglev::Candidate]>,
    /// The Maglev table: the id of a backend in each slot. Empty: no backend takes new connections.
    /// The same allocation as in the plan before when nothing that it depends on has changed.
    pub table: Arc<[u32]>,
}

/// Tables that are the same allocation are not looked into: in two plans that follow each other nearly all
/// are.
impl PartialEq for Service {
    fn eq(&self, other: &Self) -> bool {
        fn same<T: PartialEq>(one: &Arc<[T]>, other: &Arc<[T]>) -> bool {
            Arc::ptr_eq(one, other) || one == other
        }
        let Service {
            name,
            family,
            forward,
            hash,
            no_backend,
            allow,
            candidates,
            table,
        } = other;
        let settings = (&self.family, &self.forward, &self.hash, &self.no_backend);
        settings == (family, forward, hash, no_backend)
            && self.name == *name
            && self.allow == *allow
            && same(&self.candidates, candidates)
            && same(&self.table, table)
    }
}

/// One backend of one service, `struct backend` of xdp_lb.h.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Id of its service.
    pub service: u32,
    /// As in the file.
    pub name: String,
    /// Where packets go.
    pub address: IpAddr,
    /// Host order. `None`: the packet's own.
    pub port: Option<u16>,
    /// 0..=1000; 0: no new connections.
    pub weight: u16,
    /// That of its service.
    pub forward: Forward,
    /// The state that the operator has set.
    pub state: AdminState,
    /// Whether it can be reached.
    pub health: Health,
    /// Where its frames go. `None`: unresolved.
    pub hop: Option<Hop>,
    /// Tells it from earlier owners of this id. Never 0.
    pub generation: u32,
    /// Whether new connections may get it: the operator has not put it down, and its health is up. The
    /// established ones of one that is not wait for it or choose anew, by `on_down`; those of one that
    /// is put down choose anew.
    pub usable: bool,
    /// That of its service.
    pub on_down: OnDownByProtocol,
    /// Full-nat: where in the source pool it may send from.
    pub nat_pool: PoolSlice,
    /// Tunnels: the source of the outer header.
    pub outer: Option<Prefix>,
}

/// Whether a backend could be used, apart from the state that the operator has set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Up,
    /// No route to it, or no neighbour answers.
    Unresolved,
    /// Full-nat or a tunnel, but no address of its family to send from.
    NoSource,
}

/// The fate of a ping for a VIP, `enum echo` of xdp_lb.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    /// To the host's stack, regardless of the backends.
    Pass,
    /// Answered: a backend of the VIP can be chosen.
    Answer,
    /// Dropped: none can.
    Drop,
}

/// A slice of [`Desired::nat_pool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolSlice {
    /// Position of the first address.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

/// Key of the map `vips`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vip {
    /// The virtual address.
    pub address: IpAddr,
    /// `None`: the address by itself.
    pub ports: Option<(Protocol, PortPrefix)>,
}

impl Default for Desired {
    fn default() -> Self {
        Desired {
            services: ById::default(),
            backends: ById::default(),
            vips: Arc::default(),
            echoes: Arc::default(),
            firewall: None,
            policies: BTreeMap::new(),
            nat_pool: Vec::new(),
            filter: filter::words([]),
            seed: 0,
            next_generation: 1,
            deferred: 0,
            needs: Needs::default(),
            origin: Origin::default(),
        }
    }
}

impl Desired {
    /// The service that a packet to this VIP, IP protocol number and port (host order) belongs to: the
    /// one with the longest matching prefix, as in the map.
    pub fn still_bound(&self, vip: IpAddr, protocol: u8, port: u16) -> Option<u32> {
        let protocol = [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .find(|known| known.number() == protocol)?;
        self.longest_match(vip, protocol, PortPrefix::new(port, 16))
    }

    /// The service of the longest prefix that contains `ports`.
    fn longest_match(&self, address: IpAddr, protocol: Protocol, ports: PortPrefix) -> Option<u32> {
        (0..=ports.length())
            .rev()
            .find_map(|length| {
                let prefix = PortPrefix::new(ports.value(), length);
                self.vips
                    .get(&Vip {
                        address,
                        ports: Some((protocol, prefix)),
                    })
                    .copied()
            })
            .flatten()
    }
}

/// Whether some port of a VIP that belonged to a service in `previous` belongs to another or to none
/// in `next`: connections made under the old binding then have to be looked for, with
/// [`Desired::still_bound`]. May be true without need where a range was only cut differently, never
/// false where there is need.
pub fn bindings_changed(previous: &Desired, next: &Desired) -> bool {
    if Arc::ptr_eq(&previous.vips, &next.vips) {
        return false;
    }
    let lost = previous
        .vips
        .iter()
        .any(|(vip, service)| service.is_some() && next.vips.get(vip) != Some(service));
    // A prefix that is new in `next` may lie within a wider one that both have.
    let taken_over = || {
        next.vips.iter().any(|(vip, service)| {
            let before = vip
                .ports
                .and_then(|(protocol, ports)| previous.longest_match(vip.address, protocol, ports));
            before.is_some() && before != *service
        })
    };
    lost || taken_over()
}
