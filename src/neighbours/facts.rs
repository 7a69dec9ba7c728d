//! The kernel's links, addresses and neighbours as plain tables.
//!
//! Owns the tables of links, own addresses and neighbours, and how an event changes them. Routes are
//! not kept: an event about one only says which addresses it concerns. Knows no netlink message, no
//! socket and no clock, and nothing of targets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use nix::libc;

use crate::config::MacAddress;
use crate::prefix::Prefix;

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

    /// Whether the MAC address was set by the operator or by another program, so that we must not probe it.
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
    /// Routes changed, or what chooses between them.
    Routes(Concerned),
}

/// The addresses whose route a change may have altered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Concerned {
    /// Those in a prefix of which a route of this table came, went or changed.
    Prefix { table: u32, prefix: Prefix },
    /// All: a rule or a next-hop object changed, and any route may be behind it.
    All,
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

/// The kind of facts that an event changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Touched {
    Nothing,
    /// This link; what it was before, if it was there.
    Link(u32, Option<Link>),
    /// An own address of this interface.
    Address {
        ifindex: u32,
        /// Whether it is one that others can be given, or was.
        visible: bool,
        /// Whether it is no longer ours.
        gone: bool,
    },
    Neighbour(NextHop),
    Routes(Concerned),
}

/// The tables. Those that are handed out are shared: see [`super::Network`].
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub links: Arc<BTreeMap<u32, Link>>,
    /// Own addresses that are fit as a source for others.
    pub addresses: Arc<BTreeSet<(u32, IpAddr)>>,
    /// All own addresses.
    pub local: BTreeSet<(u32, IpAddr)>,
    pub neighbours: HashMap<NextHop, Entry>,
}

impl Facts {
    /// Applies one event and says which kind of facts it changed. Applying an event twice changes nothing the
    /// second time, so a dump and the events around it may overlap.
    pub fn apply(&mut self, event: Event) -> Touched {
        match event {
            Event::Link(news) => self.apply_link(news),
            Event::LinkGone(index) => {
                if !self.links.contains_key(&index) {
                    return Touched::Nothing;
                }
                let former = Arc::make_mut(&mut self.links).remove(&index);
                if self.addresses.iter().any(|&(ifindex, _)| ifindex == index) {
                    Arc::make_mut(&mut self.addresses).retain(|&(ifindex, _)| ifindex != index);
                }
                self.local.retain(|&(ifindex, _)| ifindex != index);
                // The kernel reports its neighbours as gone one by one, before it.
                Touched::Link(index, former)
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
                Touched::Address {
                    ifindex,
                    visible: self.set_usable(ifindex, address, usable),
                    gone: false,
                }
            }
            Event::AddressGone { ifindex, address } => {
                let gone = self.local.remove(&(ifindex, address));
                Touched::Address {
                    ifindex,
                    visible: self.set_usable(ifindex, address, false),
                    gone,
                }
            }
            Event::Routes(concerned) => Touched::Routes(concerned),
        }
    }

    /// True if that is news.
    fn set_usable(&mut self, ifindex: u32, address: IpAddr, usable: bool) -> bool {
        let key = (ifindex, address);
        if self.addresses.contains(&key) == usable {
            return false;
        }
        let addresses = Arc::make_mut(&mut self.addresses);
        if usable {
            addresses.insert(key)
        } else {
            addresses.remove(&key)
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
        let former = Arc::make_mut(&mut self.links).insert(news.index, link);
        Touched::Link(news.index, former)
    }

    /// How to name a link in a sentence.
    pub fn link_name(&self, ifindex: u32) -> String {
        match self.links.get(&ifindex) {
            Some(link) => link.name.clone(),
            None => format!("interface number {ifindex}"),
        }
    }
}

/// The link that has this name now.
pub(super) fn by_name<'a>(links: &'a BTreeMap<u32, Link>, name: &str) -> Option<&'a Link> {
    links.values().find(|link| link.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let former = facts.links[&1].clone();
        assert_eq!(
            facts.apply(Event::Link(link(1, "wan"))),
            Touched::Link(1, Some(former))
        );
        assert_eq!(by_name(&facts.links, "wan").unwrap().index, 1);
        assert!(by_name(&facts.links, "eth0").is_none());
    }

    #[test]
    fn a_link_takes_its_addresses_with_it() {
        let mut facts = facts();
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        facts.apply(Event::Address {
            ifindex: 1,
            address,
            usable: true,
        });
        let former = facts.links[&1].clone();
        assert_eq!(
            facts.apply(Event::LinkGone(1)),
            Touched::Link(1, Some(former))
        );
        assert!(facts.addresses.is_empty());
        assert!(facts.local.is_empty());
        assert_eq!(facts.apply(Event::LinkGone(1)), Touched::Nothing);
    }

    #[test]
    fn an_address_that_becomes_unusable_is_forgotten() {
        let mut facts = facts();
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        let mut apply = |event| match facts.apply(event) {
            Touched::Address { visible, gone, .. } => (visible, gone),
            other => panic!("{other:?}"),
        };
        let news = |usable| Event::Address {
            ifindex: 1,
            address,
            usable,
        };
        assert_eq!(apply(news(false)), (false, false), "tentative");
        assert_eq!(apply(news(true)), (true, false));
        assert_eq!(apply(news(true)), (false, false));
        assert_eq!(apply(news(false)), (true, false), "deprecated");
        let gone = Event::AddressGone {
            ifindex: 1,
            address,
        };
        assert_eq!(apply(gone.clone()), (false, true), "was still ours");
        assert_eq!(apply(gone), (false, false));
        assert!(facts.addresses.is_empty() && facts.local.is_empty());
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
}
