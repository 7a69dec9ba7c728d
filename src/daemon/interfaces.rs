//! The interfaces of the file: attaching to them, following them, and what leads out of them.
//!
//! An interface keeps its slot for as long as it is in the file, also while it is gone from the system.
//! `slots` decides which interface gets which slot.

use std::net::IpAddr;
use std::time::Instant;

use log::{info, warn};

use super::slots::{Held, SlotUse, Slots};
use super::Error;
use crate::attempts::Refused;
use crate::config::{Config, Forward, XdpMode, INTERFACE_LIMIT};
use crate::datapath::{Datapath, Interface};
use crate::neighbours::{usable_link, Link, Network, Resolution, Target};
use crate::state::Hop;

/// See the file's head.
pub struct Interfaces {
    slots: Slots,
}

impl Interfaces {
    /// Gives each interface a slot.
    ///
    /// # Errors
    /// When one does not exist, or is of a kind that cannot carry Ethernet frames.
    pub fn find(config: &Config, network: &Network, in_use: SlotUse) -> Result<Self, Error> {
        let mut interfaces = Interfaces {
            slots: Slots::new(in_use),
        };
        for name in &config.datapath.interfaces {
            interfaces.take(interface(name, config, network)?)?;
        }
        Ok(interfaces)
    }

    /// Fills all slots, then attaches to all: the first packet by the first interface may have to leave by
    /// the last. Says how it attached, for the log.
    ///
    /// # Errors
    /// When one refuses.
    pub fn attach_all(&self, datapath: &mut Datapath, mode: XdpMode) -> Result<String, Error> {
        for (slot, held) in self.slots.taken() {
            datapath.set_interface(slot, &held.interface)?;
        }
        let mut said = Vec::new();
        for (slot, held) in self.slots.taken() {
            let mode = datapath.attach(slot, mode)?;
            said.push(format!("{} ({mode})", held.interface.name));
        }
        Ok(said.join(", "))
    }

    /// Attaches to those that are not there yet, in the same order. If one fails, all are let go of.
    ///
    /// # Errors
    /// As [`Interfaces::find`] and [`Interfaces::attach_all`].
    pub fn add(
        &mut self,
        config: &Config,
        network: &Network,
        datapath: &mut Datapath,
        now: Instant,
    ) -> Result<(), Error> {
        let former = self.names();
        let names = config.datapath.interfaces.iter();
        let new = names
            .filter(|name| !former.contains(name))
            .map(|name| interface(name, config, network))
            .collect::<Result<Vec<_>, _>>()?;
        let added = self.try_add(new, config.datapath.xdp_mode, datapath);
        if added.is_err() {
            self.keep_only(&former, datapath, now);
        }
        added
    }

    fn try_add(
        &mut self,
        new: Vec<Interface>,
        mode: XdpMode,
        datapath: &mut Datapath,
    ) -> Result<(), Error> {
        let mut filled = Vec::new();
        for interface in new {
            let slot = self.take(interface.clone())?;
            datapath.set_interface(slot, &interface)?;
            filled.push((slot, interface.name));
        }
        for (slot, name) in filled {
            let mode = datapath.attach(slot, mode)?;
            info!("{name}: attached ({mode})");
        }
        Ok(())
    }

    /// Detaches from all others.
    pub fn keep_only(&mut self, names: &[String], datapath: &mut Datapath, now: Instant) {
        let others: Vec<u16> = self
            .slots
            .taken()
            .filter(|(_, held)| !names.contains(&held.interface.name))
            .map(|(slot, held)| {
                info!("{}: detached", held.interface.name);
                slot
            })
            .collect();
        datapath.detach(&others);
        for slot in others {
            self.slots.leave(slot, now);
        }
    }

    fn take(&mut self, interface: Interface) -> Result<u16, Error> {
        self.slots.take(interface).map_err(|held| {
            Error::Interface(format!(
                "at most {INTERFACE_LIMIT} interfaces, and {held} places are kept for connections over interfaces \
                 removed before: wait until those are over (see: xdplb conns), or restart xdplb"
            ))
        })
    }

    /// Their names, in slot order.
    pub fn names(&self) -> Vec<String> {
        self.slots
            .taken()
            .map(|(_, held)| held.interface.name.clone())
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
                    if self.taken().any(|(_, interface)| interface.name == *name) {
                        return format!("its route leaves by {name}, where XDP is not attached yet; see the log");
                    }
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
    /// under their name. Tries again what was refused, when it is time.
    pub fn follow(
        &mut self,
        config: &Config,
        network: &Network,
        datapath: &mut Datapath,
        now: Instant,
    ) {
        for (slot, held) in self.slots.taken_mut() {
            let name = &held.interface.name;
            let Some(link) = network.link_by_name(name) else {
                if held.interface.ifindex != 0 {
                    warn!("{name}: the interface has gone; xdplb attaches again when it is back");
                    datapath.clear_interface(slot);
                    held.interface.ifindex = 0;
                }
                held.refused = None;
                continue;
            };
            let found = of_link(link, config, network);
            if link.index != held.interface.ifindex {
                attach_again(slot, held, found, config.datapath.xdp_mode, datapath, now);
            } else if found != held.interface {
                if found.mac != held.interface.mac {
                    info!("{name}: its MAC address is now {}", found.mac);
                }
                if found.mtu != held.interface.mtu {
                    info!("{name}: its MTU is now {}", found.mtu);
                }
                datapath.update_interface(slot, &found);
                held.interface = found;
            }
        }
    }

    /// When [`Self::follow`] has something to do even if the network does not change.
    pub fn next_deadline(&self) -> Option<Instant> {
        let refused = self.slots.taken().filter_map(|(_, held)| held.refused);
        refused.map(Refused::again).min()
    }

    /// Those that have a slot, with it.
    pub fn taken(&self) -> impl Iterator<Item = (u16, &Interface)> {
        self.slots
            .taken()
            .map(|(slot, held)| (slot, &held.interface))
    }
}

/// Attaches to an interface that has come back, unless that was refused just now.
fn attach_again(
    slot: u16,
    held: &mut Held,
    found: Interface,
    mode: XdpMode,
    datapath: &mut Datapath,
    now: Instant,
) {
    if held
        .refused
        .is_some_and(|refused| refused.waits(found.ifindex, now))
    {
        return;
    }
    let attached = datapath
        .set_interface(slot, &found)
        .and_then(|()| datapath.attach(slot, mode));
    match attached {
        Ok(mode) => {
            info!("{}: attached again ({mode})", found.name);
            held.interface = found;
            held.refused = None;
        }
        Err(error) => {
            let refused = Refused::new(held.refused, found.ifindex, now);
            warn!("{error}; {refused}");
            datapath.clear_interface(slot);
            held.interface.ifindex = 0;
            held.refused = Some(refused);
        }
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
