//! The interfaces of the file, the slots that the datapath knows them by, and what leads out of them.
//!
//! An interface keeps its slot for as long as it is in the file, also while it is gone from the system.

use std::fs;
use std::net::IpAddr;

use log::{info, warn};

use super::Error;
use crate::config::{Config, Forward, XdpMode, INTERFACE_LIMIT};
use crate::datapath::{Datapath, Interface};
use crate::neighbours::{usable_link, Link, Network, Resolution, Target};
use crate::state::Hop;

/// Where the kernel says which ports outgoing connections of this host use (ip-sysctl).
const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Below are well-known ports.
const FIRST_PORT: u16 = 1024;

/// Slots by position; `None`: free.
pub struct Interfaces {
    slots: Vec<Option<Interface>>,
}

impl Interfaces {
    /// Gives each interface a slot.
    ///
    /// # Errors
    /// When one does not exist, or is of a kind that cannot carry Ethernet frames.
    pub fn find(config: &Config, network: &Network) -> Result<Self, Error> {
        let slots = config
            .datapath
            .interfaces
            .iter()
            .map(|name| interface(name, config, network).map(Some))
            .collect::<Result<_, _>>()?;
        Ok(Interfaces { slots })
    }

    /// Attaches to all; says how, for the log.
    ///
    /// # Errors
    /// When one refuses.
    pub fn attach_all(&self, datapath: &mut Datapath, mode: XdpMode) -> Result<String, Error> {
        let mut said = Vec::new();
        for (slot, interface) in self.taken() {
            let mode = datapath.attach(slot, interface, mode)?;
            said.push(format!("{} ({})", interface.name, mode));
        }
        Ok(said.join(", "))
    }

    /// Attaches to those that are not there yet. If one fails, those before it are let go of.
    ///
    /// # Errors
    /// As [`Interfaces::find`] and [`Interfaces::attach_all`].
    pub fn add(
        &mut self,
        config: &Config,
        network: &Network,
        datapath: &mut Datapath,
    ) -> Result<(), Error> {
        let former = self.names();
        let names = config.datapath.interfaces.iter();
        for name in names.filter(|name| !former.contains(name)) {
            let added = interface(name, config, network).and_then(|interface| {
                let slot = self.free_slot()?;
                let mode = datapath.attach(slot, &interface, config.datapath.xdp_mode)?;
                info!("{name}: attached ({})", mode);
                self.slots[usize::from(slot)] = Some(interface);
                Ok(())
            });
            if let Err(error) = added {
                self.keep_only(&former, datapath);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Detaches from all others.
    pub fn keep_only(&mut self, names: &[String], datapath: &mut Datapath) {
        for (slot, taken) in (0..).zip(&mut self.slots) {
            if let Some(interface) = taken.take_if(|interface| !names.contains(&interface.name)) {
                datapath.detach(slot);
                info!("{}: detached", interface.name);
            }
        }
    }

    /// Their names, in slot order.
    pub fn names(&self) -> Vec<String> {
        self.taken()
            .map(|(_, interface)| interface.name.clone())
            .collect()
    }

    /// The slot of an interface by the kernel's index.
    pub fn slot(&self, ifindex: u32) -> Option<u16> {
        self.taken()
            .find(|(_, interface)| interface.ifindex == ifindex)
            .map(|(slot, _)| slot)
    }

    /// Where frames for `target` go.
    ///
    /// # Errors
    /// The reason why it cannot be reached, for the operator.
    pub fn hop(&self, network: &Network, target: &Target) -> Result<Hop, String> {
        match network.resolve(target) {
            Resolution::Unresolved { reason } => Err(reason),
            Resolution::Resolved {
                mac,
                ifindex,
                next_hop,
            } => {
                let slot = self.slot(ifindex).ok_or_else(|| {
                    let name = network.links().get(&ifindex).map_or("?", |link| &link.name);
                    format!("its route leaves by {name}, which is not in datapath.interfaces; add it there")
                })?;
                Ok(Hop {
                    mac,
                    slot,
                    // A MAC address from the file is the backend's own.
                    on_link: next_hop == target.address || target.mac.is_some(),
                })
            }
        }
    }

    /// Why packets of that mode cannot reach `target`, for the operator; `None` if they can.
    pub fn obstacle(&self, network: &Network, forward: Forward, target: &Target) -> Option<String> {
        match (self.hop(network, target), network.resolve(target)) {
            (Err(reason), _) | (Ok(_), Resolution::Unresolved { reason }) => Some(reason),
            (Ok(hop), _) if hop.reaches(forward) => None,
            (Ok(_), Resolution::Resolved { next_hop, .. }) => Some(format!(
                "an {forward} backend must be on the same network as the balancer, its route goes by \
                 way of {next_hop}; use ipip or gue"
            )),
        }
    }

    /// Follows links: new MAC addresses, MTUs and own addresses, and interfaces that went and came back
    /// under their name.
    pub fn follow(&mut self, config: &Config, network: &Network, datapath: &mut Datapath) {
        for (slot, taken) in (0..).zip(&mut self.slots) {
            let Some(known) = taken else { continue };
            let Some(link) = network.link_by_name(&known.name) else {
                if known.ifindex != 0 {
                    warn!(
                        "{}: the interface has gone; xdplb attaches again when it is back",
                        known.name
                    );
                    datapath.detach(slot);
                    known.ifindex = 0;
                }
                continue;
            };
            let found = of_link(link, config, network);
            if link.index != known.ifindex {
                datapath.detach(slot);
                known.ifindex = 0;
                match datapath.attach(slot, &found, config.datapath.xdp_mode) {
                    Ok(mode) => {
                        info!("{}: attached again ({})", found.name, mode);
                        *known = found;
                    }
                    Err(error) => warn!("{error}"),
                }
            } else if found != *known {
                if found.mac != known.mac {
                    info!("{}: its MAC address is now {}", found.name, found.mac);
                }
                if found.mtu != known.mtu {
                    info!("{}: its MTU is now {}", found.name, found.mtu);
                }
                datapath.update_interface(slot, &found);
                *known = found;
            }
        }
    }

    /// Those that have a slot, with it.
    pub fn taken(&self) -> impl Iterator<Item = (u16, &Interface)> {
        (0..)
            .zip(&self.slots)
            .filter_map(|(slot, taken)| Some((slot, taken.as_ref()?)))
    }

    fn free_slot(&mut self) -> Result<u16, Error> {
        let free = self
            .slots
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.slots.len());
        if free >= INTERFACE_LIMIT {
            return Err(Error::Interface(format!(
                "at most {INTERFACE_LIMIT} interfaces, with those that a reload replaces; remove one first"
            )));
        }
        if free == self.slots.len() {
            self.slots.push(None);
        }
        Ok(free as u16)
    }
}

fn interface(name: &str, config: &Config, network: &Network) -> Result<Interface, Error> {
    let link = usable_link(name, network.links()).map_err(Error::Interface)?;
    Ok(of_link(link, config, network))
}

fn of_link(link: &Link, config: &Config, network: &Network) -> Interface {
    let is_vip = |address: &IpAddr| {
        let mut services = config.services.iter();
        services.any(|service| service.vips.contains(address))
    };
    let mut own: Vec<IpAddr> = network
        .addresses()
        .filter(|(ifindex, _)| *ifindex == link.index)
        .map(|(_, address)| address)
        .collect();
    // VIPs last: a reply to one may arrive at another instance.
    own.sort_by_cached_key(is_vip);
    Interface {
        ifindex: link.index,
        name: link.name.clone(),
        mac: link.mac,
        mtu: link.mtu,
        ipv4: own.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        }),
        ipv6: own.iter().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        }),
    }
}

/// The source ports that full-nat may use: the larger of the two ranges beside the one from which the
/// host's own connections get theirs, so that the two never meet.
pub fn nat_ports() -> (u16, u16) {
    let (first, last) = fs::read_to_string(LOCAL_PORTS)
        .ok()
        .and_then(|text| {
            let mut numbers = text.split_whitespace().map(str::parse::<u16>);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
        })
        // The kernel's default.
        .unwrap_or((32768, 60999));
    beside(first, last)
}

fn beside(first: u16, last: u16) -> (u16, u16) {
    let below = first.saturating_sub(FIRST_PORT);
    let above = u16::MAX - last;
    match (below, above) {
        // The host uses every slot: sharing some is better than none.
        (0, 0) => (FIRST_PORT, u16::MAX),
        _ if below >= above => (FIRST_PORT, first - 1),
        _ => (last + 1, u16::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nat_ports_lie_beside_the_hosts() {
        assert_eq!(beside(32768, 60999), (1024, 32767));
        assert_eq!(beside(1024, 30000), (30001, 65535));
        assert_eq!(beside(1024, 65535), (1024, 65535));
        assert_eq!(beside(0, 65535), (1024, 65535));
        assert_eq!(beside(1025, 65535), (1024, 1024));
    }
}
