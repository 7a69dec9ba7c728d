//! How a target is reached: its way, and the MAC address that frames go to.
//!
//! Owns the pure decisions over what the kernel said: which way a route answer leads, what a target
//! resolves to, and the words for the operator where it does not.

use std::io;
use std::net::IpAddr;

use nix::libc;

use super::facts::{by_name, Facts, NextHop, State};
use super::probe::Probes;
use crate::config::MacAddress;
use crate::prefix::Prefix;

/// An address to resolve: a backend's, with the overrides of its configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The backend's address.
    pub address: IpAddr,
    /// Reach it over this interface only, even if the routes lead elsewhere.
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
        /// The host with that MAC address: the gateway, or the target itself.
        next_hop: IpAddr,
    },
    /// They cannot.
    Unresolved {
        /// Why, and what to do about it, for the operator to read.
        reason: String,
    },
}

/// The way that a packet to a target takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    pub ifindex: u32,
    /// `None`: the target is on the link itself. Not always of the target's family (RFC 5549).
    pub gateway: Option<IpAddr>,
}

impl Path {
    /// The next hop, whose MAC address is needed.
    pub fn hop(&self, target: &Target) -> NextHop {
        NextHop {
            ifindex: self.ifindex,
            address: self.gateway.unwrap_or(target.address),
        }
    }
}

/// The kernel's answer to the question for the route to an address.
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
        /// Of the route itself only where that was asked for.
        matched: Matched,
    },
}

/// Which route decides over an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Matched {
    pub table: u32,
    /// Of its prefix, in bits.
    pub length: u8,
}

impl Matched {
    /// Whether a change of that prefix in that table, which covers the address, leaves the decision as it
    /// is: within a table the longest prefix decides. What another table has may come before.
    pub fn withstands(self, table: u32, prefix: &Prefix) -> bool {
        self.table == table && self.length > prefix.length()
    }
}

/// The path of a target as far as it is known before the kernel is asked for its route.
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
    match by_name(&facts.links, name) {
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
                // The error of an IPv4 blackhole route.
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

/// The resolution of a target, given its path and the MAC addresses in force.
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

/// Why a target does not resolve that has just been added.
pub(super) fn not_looked_up(target: &Target) -> String {
    format!("the route to {} has not been looked up yet", target.address)
}

fn try_resolve(
    facts: &Facts,
    probes: &Probes,
    target: &Target,
    path: Option<&Result<Path, String>>,
) -> Result<Resolution, String> {
    let path = match path {
        Some(path) => path.as_ref().map_err(Clone::clone)?,
        None => return Err(not_looked_up(target)),
    };
    let hop = path.hop(target);
    let name = facts.link_name(hop.ifindex);
    match facts.links.get(&hop.ifindex) {
        None => return Err(format!("{name}, which leads to {}, does not exist any more", target.address)),
        Some(link) if !link.enabled => return Err(disabled(&name)),
        Some(link) if !link.up => {
            return Err(format!(
                "{name} has no carrier; look at its cable or its peer"
            ))
        }
        Some(link) if !link.ethernet => {
            return Err(format!(
                "{name}, which leads to {}, is not an Ethernet interface; route to the backend over one",
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
    use super::super::facts::{Entry, Event, LinkNews};
    use super::*;
    use std::time::Instant;

    const MATCHED: Matched = Matched {
        table: 254,
        length: 24,
    };

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
            matched: MATCHED,
        }
    }

    fn reason(resolution: Resolution) -> String {
        match resolution {
            Resolution::Unresolved { reason } => reason,
            Resolution::Resolved { .. } => panic!("resolved: {resolution:?}"),
        }
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
            matched: MATCHED,
        };
        assert!(path(&t, &with_error).unwrap_err().contains("no route"));
        let tunnel = RouteAnswer::Found {
            kind: libc::RTN_UNICAST,
            oif: Some(1),
            gateway: None,
            encapsulates: true,
            error: 0,
            matched: MATCHED,
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
        probes.watch(hop, &facts, Instant::now());
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
        assert!(reason(resolve(&facts, &probes, &t, Some(&way)))
            .contains("is not an Ethernet interface"));
        facts.apply(Event::LinkGone(1));
        assert!(
            reason(resolve(&facts, &probes, &t, Some(&way))).contains("does not exist any more")
        );
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
