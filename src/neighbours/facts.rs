//! What the kernel has told us, as plain tables, and what follows from it.
//!
//! Owns the tables of links, own addresses and neighbours, how an event changes them, and the pure
//! decisions over them: which way a route answer leads and what a target resolves to. Knows no
//! netlink message, no socket and no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::net::IpAddr;

use nix::libc;

use super::probe::Probes;
use crate::config::MacAddress;

/// A network interface, as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it, unique within the network namespace.
    pub index: u32,
    /// The name it has now; it can be renamed.
    pub name: String,
    /// Its own address; all zero where it has none of six bytes.
    pub mac: MacAddress,
    /// Whether it carries Ethernet frames (`ARPHRD_ETHER`).
    pub ethernet: bool,
    /// Whether the administrator enabled it (`IFF_UP`).
    pub enabled: bool,
    /// Whether frames can leave: enabled and with carrier (`IFF_UP` and `IFF_LOWER_UP`).
    pub up: bool,
    /// Largest payload of a frame, in bytes.
    pub mtu: u32,
}

/// What has to be reached: a backend's address, with what its configuration overrides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The backend's address.
    pub address: IpAddr,
    /// Look for it on this interface only, whatever the routes say.
    pub interface: Option<String>,
    /// Send to this address and ask no neighbour.
    pub mac: Option<MacAddress>,
}

/// Whether, and how, a target can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// Frames for the target can be sent.
    Resolved {
        /// Destination address of the frames.
        mac: MacAddress,
        /// The interface they leave by.
        ifindex: u32,
        /// Whose MAC address that is: the gateway, or the target itself.
        next_hop: IpAddr,
    },
    /// They cannot.
    Unresolved {
        /// Why, and what to do about it, for the operator to read.
        reason: String,
    },
}

/// The kernel's opinion of a neighbour (`NUD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Being asked for, no answer yet, or not known at all.
    Incomplete,
    /// Confirmed lately.
    Reachable,
    /// Known, not confirmed lately.
    Stale,
    /// Known, in use, about to be confirmed.
    Delay,
    /// Known, being confirmed now.
    Probe,
    /// Did not answer.
    Failed,
    /// Needs no resolution on this interface.
    NoArp,
    /// Set by the administrator.
    Permanent,
}

impl State {
    /// From the bit in `ndm_state`. What is unknown counts as not resolved.
    pub(super) fn from_bits(bits: u16) -> State {
        match bits {
            libc::NUD_REACHABLE => State::Reachable,
            libc::NUD_STALE => State::Stale,
            libc::NUD_DELAY => State::Delay,
            libc::NUD_PROBE => State::Probe,
            libc::NUD_FAILED => State::Failed,
            libc::NUD_NOARP => State::NoArp,
            libc::NUD_PERMANENT => State::Permanent,
            _ => State::Incomplete,
        }
    }

    /// Whether the entry's MAC address may be used in this state.
    fn is_valid(self) -> bool {
        !matches!(self, State::Incomplete | State::Failed)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Incomplete => "incomplete",
            State::Reachable => "reachable",
            State::Stale => "stale",
            State::Delay => "delay",
            State::Probe => "probe",
            State::Failed => "failed",
            State::NoArp => "noarp",
            State::Permanent => "permanent",
        })
    }
}

/// The key of a neighbour. A link-local address means something only together with its interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NextHop {
    pub ifindex: u32,
    pub address: IpAddr,
}

/// An entry of the kernel's neighbour table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub state: State,
    pub mac: Option<MacAddress>,
    /// A routing daemon put it there (`NTF_EXT_LEARNED`) or asked the kernel to keep it fresh
    /// (`NTF_EXT_MANAGED`). Writing to it would take these marks off, so it is only read.
    pub owned: bool,
}

impl Entry {
    /// The address to send to, if the entry has one that is worth sending to.
    pub fn usable_mac(&self) -> Option<MacAddress> {
        // An interface without ARP (dummy, loopback) lists all zeroes; a group address would
        // deliver each packet to everybody.
        self.mac
            .filter(|mac| self.state.is_valid() && mac.0 != [0; 6] && mac.0[0] & 1 == 0)
    }

    /// Whether somebody else answers for the entry's truth, so that we must not probe it.
    pub fn settled(&self) -> bool {
        self.owned || matches!(self.state, State::Permanent | State::NoArp)
    }
}

/// One thing that the kernel said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// A link exists; `None` for what the message left out.
    Link(LinkNews),
    LinkGone(u32),
    Neighbour(NextHop, Entry),
    NeighbourGone(NextHop),
    /// An own address, and whether it is fit as a source.
    Address {
        ifindex: u32,
        address: IpAddr,
        usable: bool,
    },
    AddressGone {
        ifindex: u32,
        address: IpAddr,
    },
    /// Some route, rule or next-hop object changed.
    Routes,
}

/// A link message. Some kinds (wireless events) carry only a part of the attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkNews {
    pub index: u32,
    pub ethernet: bool,
    pub enabled: bool,
    pub lower_up: bool,
    pub name: Option<String>,
    pub mac: Option<MacAddress>,
    pub mtu: Option<u32>,
}

/// What an event touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touched {
    Nothing,
    /// This link.
    Link(u32),
    /// The own addresses of this interface that others can be given.
    Addresses(u32),
    /// Another own address of this interface, perhaps the link-local one that ND asks from.
    OtherAddress(u32),
    Neighbour(NextHop),
    Routes,
}

/// The tables.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub links: BTreeMap<u32, Link>,
    /// Own addresses that are fit as a source for others.
    pub addresses: BTreeSet<(u32, IpAddr)>,
    /// All own addresses.
    pub local: BTreeSet<(u32, IpAddr)>,
    pub neighbours: HashMap<NextHop, Entry>,
}

impl Facts {
    /// Takes in one event and says what it changed. Applying an event twice changes nothing the
    /// second time, so a dump and the events around it may overlap.
    pub fn apply(&mut self, event: Event) -> Touched {
        match event {
            Event::Link(news) => self.apply_link(news),
            Event::LinkGone(index) => {
                if self.links.remove(&index).is_none() {
                    return Touched::Nothing;
                }
                self.addresses.retain(|&(ifindex, _)| ifindex != index);
                self.local.retain(|&(ifindex, _)| ifindex != index);
                self.neighbours.retain(|hop, _| hop.ifindex != index);
                Touched::Link(index)
            }
            Event::Neighbour(hop, entry) => {
                if self.neighbours.insert(hop, entry) == Some(entry) {
                    return Touched::Nothing;
                }
                Touched::Neighbour(hop)
            }
            Event::NeighbourGone(hop) => match self.neighbours.remove(&hop) {
                Some(_) => Touched::Neighbour(hop),
                None => Touched::Nothing,
            },
            Event::Address {
                ifindex,
                address,
                usable,
            } => {
                self.local.insert((ifindex, address));
                let changed = if usable {
                    self.addresses.insert((ifindex, address))
                } else {
                    self.addresses.remove(&(ifindex, address))
                };
                touched_address(ifindex, changed)
            }
            Event::AddressGone { ifindex, address } => {
                self.local.remove(&(ifindex, address));
                touched_address(ifindex, self.addresses.remove(&(ifindex, address)))
            }
            Event::Routes => Touched::Routes,
        }
    }

    fn apply_link(&mut self, news: LinkNews) -> Touched {
        let former = self.links.get(&news.index);
        let link = Link {
            index: news.index,
            name: news
                .name
                .or_else(|| former.map(|f| f.name.clone()))
                .unwrap_or_default(),
            mac: news
                .mac
                .or_else(|| former.map(|f| f.mac))
                .unwrap_or_default(),
            ethernet: news.ethernet,
            enabled: news.enabled,
            up: news.enabled && news.lower_up,
            mtu: news
                .mtu
                .or_else(|| former.map(|f| f.mtu))
                .unwrap_or_default(),
        };
        if former == Some(&link) {
            return Touched::Nothing;
        }
        self.links.insert(news.index, link);
        Touched::Link(news.index)
    }

    /// The link that has this name now.
    pub fn link_by_name(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// How to name a link in a sentence.
    fn link_name(&self, ifindex: u32) -> String {
        match self.links.get(&ifindex) {
            Some(link) => link.name.clone(),
            None => format!("interface number {ifindex}"),
        }
    }
}

fn touched_address(ifindex: u32, changed: bool) -> Touched {
    if changed {
        Touched::Addresses(ifindex)
    } else {
        Touched::OtherAddress(ifindex)
    }
}

/// The way that a packet to a target takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    pub ifindex: u32,
    /// `None`: the target is on the link itself. Not always of the target's family (RFC 5549).
    pub gateway: Option<IpAddr>,
}

impl Path {
    /// Whose MAC address is needed.
    pub fn hop(&self, target: &Target) -> NextHop {
        NextHop {
            ifindex: self.ifindex,
            address: self.gateway.unwrap_or(target.address),
        }
    }
}

/// What the kernel answered when asked for the route to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RouteAnswer {
    /// The error that a packet would meet, as a positive errno.
    Refused(i32),
    Found {
        /// `RTN_*`
        kind: u8,
        oif: Option<u32>,
        gateway: Option<IpAddr>,
        /// The route puts something around the packet (`RTA_ENCAP`).
        encapsulates: bool,
        /// An error that the route itself stands for, as a positive errno (IPv6).
        error: i32,
    },
}

/// What can be said of a target before the kernel is asked for its route.
pub(super) enum Lookup {
    /// Nothing left to ask.
    Known(Result<Path, String>),
    /// Ask, on this interface if one is given.
    Ask(Option<u32>),
}

/// Whether a target's overrides already decide its way.
pub(super) fn lookup(facts: &Facts, target: &Target) -> Lookup {
    let Some(name) = &target.interface else {
        return Lookup::Ask(None);
    };
    match facts.link_by_name(name) {
        None => Lookup::Known(Err(format!(
            "interface {name} does not exist; create it, or correct the backend's `interface`"
        ))),
        // The kernel knows no route over a dead link; the link is what the operator has to hear of.
        Some(link) if !link.enabled => Lookup::Known(Err(disabled(name))),
        Some(link) if target.mac.is_some() => Lookup::Known(Ok(Path {
            ifindex: link.index,
            gateway: None,
        })),
        Some(link) => Lookup::Ask(Some(link.index)),
    }
}

fn disabled(name: &str) -> String {
    format!("{name} is down; enable it: ip link set {name} up")
}

/// The way that a route answer means, or why there is none.
pub(super) fn path(target: &Target, answer: &RouteAnswer) -> Result<Path, String> {
    let address = target.address;
    let place = match &target.interface {
        Some(name) => format!("{address} on {name}"),
        None => address.to_string(),
    };
    let no_route = || {
        format!("no route to {place}; add one, or give the backend an `interface` that leads to it")
    };
    match *answer {
        RouteAnswer::Refused(errno)
        | RouteAnswer::Found {
            error: errno @ 1.., ..
        } => {
            Err(match errno {
                libc::ENETUNREACH | libc::ESRCH | libc::EAGAIN => no_route(),
                libc::EHOSTUNREACH => format!("the route to {place} says unreachable"),
                libc::EACCES => format!("the route to {place} says prohibit"),
                // What a blackhole route of IPv4 answers.
                libc::EINVAL => format!("the route to {place} says blackhole"),
                other => {
                    format!(
                        "no route to {place}: {}",
                        io::Error::from_raw_os_error(other)
                    )
                }
            })
        }
        RouteAnswer::Found {
            kind,
            oif,
            gateway,
            encapsulates,
            ..
        } => match kind {
            libc::RTN_UNICAST if encapsulates => Err(format!(
                "the route to {place} encapsulates, which XDP cannot do for it; use a plain route, \
                 or `forward = \"ipip\"` or `\"gue\"`"
            )),
            libc::RTN_UNICAST => oif
                .map(|ifindex| Path { ifindex, gateway })
                .ok_or_else(no_route),
            libc::RTN_LOCAL => Err(format!(
                "{address} is an address of this machine; a backend has to be another one"
            )),
            libc::RTN_BROADCAST => Err(format!("{address} is a broadcast address")),
            libc::RTN_MULTICAST => Err(format!("{address} is a multicast address")),
            libc::RTN_ANYCAST => Err(format!("{address} is an anycast address of this machine")),
            libc::RTN_UNREACHABLE => Err(format!("the route to {place} says unreachable")),
            libc::RTN_BLACKHOLE => Err(format!("the route to {place} says blackhole")),
            libc::RTN_PROHIBIT => Err(format!("the route to {place} says prohibit")),
            _ => Err(no_route()),
        },
    }
}

/// What a target resolves to, given its way and the MAC addresses in force.
pub(super) fn resolve(
    facts: &Facts,
    probes: &Probes,
    target: &Target,
    path: Option<&Result<Path, String>>,
) -> Resolution {
    match try_resolve(facts, probes, target, path) {
        Ok(resolved) => resolved,
        Err(reason) => Resolution::Unresolved { reason },
    }
}

fn try_resolve(
    facts: &Facts,
    probes: &Probes,
    target: &Target,
    path: Option<&Result<Path, String>>,
) -> Result<Resolution, String> {
    let path = match path {
        Some(path) => path.as_ref().map_err(Clone::clone)?,
        None => {
            return Err(format!(
                "the route to {} has not been looked up yet",
                target.address
            ))
        }
    };
    let hop = path.hop(target);
    let name = facts.link_name(hop.ifindex);
    match facts.links.get(&hop.ifindex) {
        None => return Err(format!("{name}, the way to {}, is gone", target.address)),
        Some(link) if !link.enabled => return Err(disabled(&name)),
        Some(link) if !link.up => {
            return Err(format!(
                "{name} has no carrier; look at its cable or its peer"
            ))
        }
        Some(link) if !link.ethernet => {
            return Err(format!(
                "{name}, the way to {}, is no Ethernet interface; route to the backend over one",
                target.address
            ))
        }
        Some(_) => {}
    }
    if let Some(mac) = target.mac {
        return Ok(Resolution::Resolved {
            mac,
            ifindex: hop.ifindex,
            next_hop: hop.address,
        });
    }
    if let Some(mac) = probes.in_force(&hop) {
        return Ok(Resolution::Resolved {
            mac,
            ifindex: hop.ifindex,
            next_hop: hop.address,
        });
    }
    let protocol = match hop.address {
        IpAddr::V4(_) => "ARP",
        IpAddr::V6(_) => "neighbour discovery",
    };
    let who = if hop.address == target.address {
        format!("{} on {name}", hop.address)
    } else {
        format!(
            "{} on {name}, the gateway to {},",
            hop.address, target.address
        )
    };
    Err(match probes.refusal(&hop) {
        Some(libc::EPERM) => format!(
            "{who} is not known and cannot be asked for: that needs CAP_NET_ADMIN; run as root or \
             grant it (AmbientCapabilities=CAP_NET_ADMIN)"
        ),
        Some(libc::ENOBUFS) => format!(
            "{who} is not known and the kernel's neighbour table is full; raise \
             net.{}.neigh.default.gc_thresh3",
            if hop.address.is_ipv4() {
                "ipv4"
            } else {
                "ipv6"
            }
        ),
        Some(errno) => format!(
            "{who} is not known and the kernel would not ask for it: {}",
            io::Error::from_raw_os_error(errno)
        ),
        None => {
            match facts.neighbours.get(&hop).map(|entry| entry.state) {
                Some(State::NoArp) => {
                    format!("{who} has no MAC address, {name} does no {protocol}; give the backend a `mac`")
                }
                Some(State::Failed) => {
                    format!("{who} does not answer {protocol}; is it up and on this link?")
                }
                _ => format!("{who} has not answered {protocol} yet"),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn link(index: u32, name: &str) -> LinkNews {
        LinkNews {
            index,
            ethernet: true,
            enabled: true,
            lower_up: true,
            name: Some(name.into()),
            mac: Some(MacAddress([2, 0, 0, 0, 0, index as u8])),
            mtu: Some(1500),
        }
    }

    fn facts() -> Facts {
        let mut facts = Facts::default();
        facts.apply(Event::Link(link(1, "eth0")));
        facts.apply(Event::Link(link(2, "eth1")));
        facts
    }

    fn target(address: &str) -> Target {
        Target {
            address: address.parse().unwrap(),
            interface: None,
            mac: None,
        }
    }

    fn found(kind: u8, oif: u32, gateway: Option<&str>) -> RouteAnswer {
        RouteAnswer::Found {
            kind,
            oif: Some(oif),
            gateway: gateway.map(|g| g.parse().unwrap()),
            encapsulates: false,
            error: 0,
        }
    }

    fn reason(resolution: Resolution) -> String {
        match resolution {
            Resolution::Unresolved { reason } => reason,
            Resolution::Resolved { .. } => panic!("resolved: {resolution:?}"),
        }
    }

    #[test]
    fn a_link_message_without_all_attributes_keeps_what_was_known() {
        let mut facts = facts();
        let partial = LinkNews {
            name: None,
            mac: None,
            mtu: None,
            ..link(1, "")
        };
        assert_eq!(facts.apply(Event::Link(partial)), Touched::Nothing);
        assert_eq!(facts.links[&1].name, "eth0");
        assert_eq!(facts.links[&1].mtu, 1500);
    }

    #[test]
    fn a_renamed_link_is_found_by_its_new_name_only() {
        let mut facts = facts();
        assert_eq!(facts.apply(Event::Link(link(1, "wan"))), Touched::Link(1));
        assert_eq!(facts.link_by_name("wan").unwrap().index, 1);
        assert!(facts.link_by_name("eth0").is_none());
    }

    #[test]
    fn a_link_takes_its_addresses_and_neighbours_with_it() {
        let mut facts = facts();
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        facts.apply(Event::Address {
            ifindex: 1,
            address,
            usable: true,
        });
        let hop = NextHop {
            ifindex: 1,
            address,
        };
        facts.apply(Event::Neighbour(
            hop,
            Entry {
                state: State::Stale,
                mac: None,
                owned: false,
            },
        ));
        assert_eq!(facts.apply(Event::LinkGone(1)), Touched::Link(1));
        assert!(facts.addresses.is_empty());
        assert!(facts.local.is_empty());
        assert!(facts.neighbours.is_empty());
        assert_eq!(facts.apply(Event::LinkGone(1)), Touched::Nothing);
    }

    #[test]
    fn an_address_that_becomes_unusable_is_forgotten() {
        let mut facts = facts();
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        let news = |usable| Event::Address {
            ifindex: 1,
            address,
            usable,
        };
        assert_eq!(
            facts.apply(news(false)),
            Touched::OtherAddress(1),
            "tentative"
        );
        assert_eq!(facts.apply(news(true)), Touched::Addresses(1));
        assert_eq!(facts.apply(news(true)), Touched::OtherAddress(1));
        assert_eq!(
            facts.apply(news(false)),
            Touched::Addresses(1),
            "deprecated"
        );
        assert!(facts.addresses.is_empty());
        assert_eq!(facts.local, BTreeSet::from([(1, address)]), "still ours");
        facts.apply(Event::AddressGone {
            ifindex: 1,
            address,
        });
        assert!(facts.local.is_empty());
    }

    #[test]
    fn a_mac_that_names_nobody_or_everybody_is_not_used() {
        let entry = |mac, state| Entry {
            state,
            mac: Some(MacAddress(mac)),
            owned: false,
        };
        let good = [2, 0, 0, 0, 0, 9];
        for state in [
            State::Reachable,
            State::Stale,
            State::Delay,
            State::Probe,
            State::Permanent,
        ] {
            assert_eq!(entry(good, state).usable_mac(), Some(MacAddress(good)));
        }
        assert_eq!(entry(good, State::Failed).usable_mac(), None);
        assert_eq!(entry(good, State::Incomplete).usable_mac(), None);
        assert_eq!(entry([0; 6], State::NoArp).usable_mac(), None);
        assert_eq!(entry([0xff; 6], State::Permanent).usable_mac(), None);
    }

    #[test]
    fn route_answers_name_their_obstacle() {
        let t = target("10.0.5.2");
        assert_eq!(
            path(&t, &found(libc::RTN_UNICAST, 2, Some("10.0.0.254"))),
            Ok(Path {
                ifindex: 2,
                gateway: Some("10.0.0.254".parse().unwrap())
            })
        );
        for (answer, words) in [
            (
                RouteAnswer::Refused(libc::ENETUNREACH),
                "no route to 10.0.5.2",
            ),
            (RouteAnswer::Refused(libc::EHOSTUNREACH), "unreachable"),
            (RouteAnswer::Refused(libc::EINVAL), "blackhole"),
            (RouteAnswer::Refused(libc::EACCES), "prohibit"),
            (found(libc::RTN_LOCAL, 1, None), "address of this machine"),
            (found(libc::RTN_BLACKHOLE, 1, None), "blackhole"),
            (found(libc::RTN_UNREACHABLE, 1, None), "unreachable"),
            (found(libc::RTN_BROADCAST, 1, None), "broadcast"),
        ] {
            let reason = path(&t, &answer).unwrap_err();
            assert!(reason.contains(words), "{answer:?}: {reason}");
        }
        let with_error = RouteAnswer::Found {
            kind: libc::RTN_UNICAST,
            oif: Some(1),
            gateway: None,
            encapsulates: false,
            error: libc::ENETUNREACH,
        };
        assert!(path(&t, &with_error).unwrap_err().contains("no route"));
        let tunnel = RouteAnswer::Found {
            kind: libc::RTN_UNICAST,
            oif: Some(1),
            gateway: None,
            encapsulates: true,
            error: 0,
        };
        assert!(path(&t, &tunnel).unwrap_err().contains("encapsulates"));
    }

    #[test]
    fn overrides_decide_before_the_kernel_is_asked() {
        let facts = facts();
        let mac = MacAddress([2, 0, 0, 0, 0, 7]);
        let both = Target {
            interface: Some("eth1".into()),
            mac: Some(mac),
            ..target("10.0.5.2")
        };
        let Lookup::Known(path) = lookup(&facts, &both) else {
            panic!("asked")
        };
        assert_eq!(
            path,
            Ok(Path {
                ifindex: 2,
                gateway: None
            })
        );
        assert_eq!(
            resolve(&facts, &Probes::default(), &both, Some(&path)),
            Resolution::Resolved {
                mac,
                ifindex: 2,
                next_hop: both.address
            }
        );
        let absent = Target {
            interface: Some("eth7".into()),
            ..target("10.0.5.2")
        };
        let Lookup::Known(Err(reason)) = lookup(&facts, &absent) else {
            panic!("asked")
        };
        assert!(reason.contains("eth7 does not exist"), "{reason}");
        assert!(matches!(
            lookup(&facts, &target("10.0.5.2")),
            Lookup::Ask(None)
        ));
    }

    #[test]
    fn a_dead_link_is_the_reason_whatever_the_neighbour_says() {
        let mut facts = facts();
        let t = target("10.0.0.2");
        let way = Ok(Path {
            ifindex: 1,
            gateway: None,
        });
        let hop = NextHop {
            ifindex: 1,
            address: t.address,
        };
        let mac = MacAddress([2, 0, 0, 0, 0, 9]);
        facts.apply(Event::Neighbour(
            hop,
            Entry {
                state: State::Reachable,
                mac: Some(mac),
                owned: false,
            },
        ));
        let mut probes = Probes::default();
        probes.watch([hop], &facts, Instant::now());
        assert_eq!(
            resolve(&facts, &probes, &t, Some(&way)),
            Resolution::Resolved {
                mac,
                ifindex: 1,
                next_hop: t.address
            }
        );
        facts.apply(Event::Link(LinkNews {
            lower_up: false,
            ..link(1, "eth0")
        }));
        assert!(reason(resolve(&facts, &probes, &t, Some(&way))).contains("eth0 has no carrier"));
        facts.apply(Event::Link(LinkNews {
            enabled: false,
            ..link(1, "eth0")
        }));
        assert!(reason(resolve(&facts, &probes, &t, Some(&way))).contains("eth0 is down"));
        facts.apply(Event::Link(LinkNews {
            ethernet: false,
            ..link(1, "tun0")
        }));
        assert!(reason(resolve(&facts, &probes, &t, Some(&way))).contains("no Ethernet"));
        facts.apply(Event::LinkGone(1));
        assert!(reason(resolve(&facts, &probes, &t, Some(&way))).contains("gone"));
    }

    #[test]
    fn silence_names_the_gateway_and_the_protocol() {
        let mut facts = facts();
        let t = target("10.9.0.2");
        let gateway: IpAddr = "10.0.0.254".parse().unwrap();
        let way = Ok(Path {
            ifindex: 1,
            gateway: Some(gateway),
        });
        let hop = NextHop {
            ifindex: 1,
            address: gateway,
        };
        let probes = Probes::default();
        assert_eq!(
            reason(resolve(&facts, &probes, &t, Some(&way))),
            "10.0.0.254 on eth0, the gateway to 10.9.0.2, has not answered ARP yet"
        );
        facts.apply(Event::Neighbour(
            hop,
            Entry {
                state: State::Failed,
                mac: None,
                owned: false,
            },
        ));
        let text = reason(resolve(&facts, &probes, &t, Some(&way)));
        assert!(text.contains("does not answer ARP"), "{text}");
    }
}
