//! The interfaces that the datapath is attached to, and the slots that it knows them by.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libbpf_rs::{MapCore, MapFlags};
use log::{debug, warn};

use super::abi;
use super::link::{self, Mode};
use super::{Datapath, Error};
use crate::config::{MacAddress, XdpMode};

/// An interface as the datapath needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Kernel's index.
    pub ifindex: u32,
    /// Name, for people.
    pub name: String,
    /// Source address of the frames that leave by it.
    pub mac: MacAddress,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    /// An address of ours there, for ICMP errors to come from.
    pub ipv4: Option<Ipv4Addr>,
    /// Likewise.
    pub ipv6: Option<Ipv6Addr>,
}

impl Interface {
    fn element(&self) -> abi::interface {
        abi::interface {
            mac: self.mac.0,
            pad: 0,
            ifindex: self.ifindex,
            mtu: self.mtu,
            address4: self
                .ipv4
                .map_or(0, |address| abi::words_of(address.into())[3]),
            pad2: 0,
            address6: self
                .ipv6
                .map_or([0; 4], |address| abi::words_of(address.into())),
            name: abi::name_to(&self.name),
        }
    }
}

/// The interface of one slot.
pub(super) struct Known {
    interface: Interface,
    /// XDP on it; dropping it detaches.
    link: Option<OwnedFd>,
}

/// Lets all interfaces that run the program `before` run `after`, one after the other.
///
/// # Errors
/// When the kernel refuses one; all run `before` then.
pub(super) fn exchange(
    interfaces: &BTreeMap<u16, Known>,
    before: BorrowedFd<'_>,
    after: BorrowedFd<'_>,
) -> Result<(), Error> {
    let attached = || {
        let known = interfaces.values();
        known.filter_map(|known| Some((&known.interface.name, known.link.as_ref()?)))
    };
    for (position, (name, link)) in attached().enumerate() {
        if let Err(error) = link::update(link.as_fd(), after) {
            for (name, link) in attached().take(position) {
                if let Err(error) = link::update(link.as_fd(), before) {
                    warn!("{name}: cannot go back to the program before: {error}");
                }
            }
            return Err(Error::Attach {
                interface: name.clone(),
                reason: format!("{error}: the driver refuses another program; see dmesg"),
            });
        }
    }
    Ok(())
}

impl Datapath {
    /// Makes an interface known under slot `slot` (0..SLOT_LIMIT): packets can leave by it, and those that
    /// come by it find it. Before [`Self::attach`], for all interfaces, so that no packet meets a slot
    /// that is still empty.
    ///
    /// # Errors
    /// When a map cannot be written; the slot is then empty.
    pub fn set_interface(&mut self, slot: u16, interface: &Interface) -> Result<(), Error> {
        let former = self
            .interfaces
            .get(&slot)
            .map(|known| known.interface.ifindex);
        if former.is_some_and(|former| former != interface.ifindex) {
            self.clear_interface(slot);
        }
        self.interfaces
            .entry(slot)
            .or_insert_with(|| Known {
                interface: interface.clone(),
                link: None,
            })
            .interface = interface.clone();
        self.tables
            .interfaces
            .set(u32::from(slot), &interface.element());
        let written = self.write_interface(slot, interface);
        if written.is_err() {
            self.clear_interface(slot);
        }
        written
    }

    fn write_interface(&self, slot: u16, interface: &Interface) -> Result<(), Error> {
        let key = u32::from(slot).to_ne_bytes();
        let ifindex = interface.ifindex.to_ne_bytes();
        let maps = &self.skeleton.maps;
        let update = |map: &libbpf_rs::MapMut<'_>, key: &[u8], value: &[u8]| {
            map.update(key, value, MapFlags::ANY)
                .map_err(|error| Error::map(map, "write", io::Error::other(error)))
        };
        update(&maps.tx_ports, &key, &ifindex)?;
        update(&maps.interface_slots, &ifindex, &key)
    }

    /// Attaches to the interface in slot `slot`, which has to be set.
    ///
    /// # Errors
    /// When the kernel refuses, or the interface has another XDP program; it is then as before.
    pub fn attach(&mut self, slot: u16, mode: XdpMode) -> Result<Mode, Error> {
        let program = self.skeleton.progs.xdp_lb.as_fd();
        let known = self
            .interfaces
            .get_mut(&slot)
            .ok_or_else(|| Error::Attach {
                interface: format!("slot {slot}"),
                reason: "no interface has that slot".into(),
            })?;
        let (name, ifindex) = (&known.interface.name, known.interface.ifindex);
        let (link, mode) = link::attach(program, name, ifindex, mode)?;
        known.link = Some(link);
        Ok(mode)
    }

    /// Follows a change of MAC address, MTU or addresses of the interface in slot `slot`. Its index has
    /// not changed.
    pub fn update_interface(&mut self, slot: u16, interface: &Interface) {
        self.tables
            .interfaces
            .set(u32::from(slot), &interface.element());
        if let Some(known) = self.interfaces.get_mut(&slot) {
            known.interface = interface.clone();
        }
    }

    /// Detaches from the interfaces in these slots, and empties the slots once every packet is through that
    /// came by them before: it looks there for its way.
    pub fn detach(&mut self, slots: &[u16]) {
        for slot in slots {
            if let Some(known) = self.interfaces.get_mut(slot) {
                known.link = None;
            }
        }
        if slots.is_empty() {
            return;
        }
        if let Err(error) = self.tables.grace.wait() {
            warn!("{error}: packets that are just on their way by an interface that leaves may be lost");
        }
        for &slot in slots {
            self.clear_interface(slot);
        }
    }

    /// Empties slot `slot`, and detaches from its interface if that has not been done.
    pub fn clear_interface(&mut self, slot: u16) {
        let Some(known) = self.interfaces.remove(&slot) else {
            return;
        };
        drop(known.link);
        self.tables
            .interfaces
            .set(u32::from(slot), &abi::interface::default());
        let maps = &self.skeleton.maps;
        // The kernel takes an interface that is gone out of tx_ports by itself. What is not there is not
        // to be taken out.
        let _ = maps.tx_ports.delete(&u32::from(slot).to_ne_bytes());
        let ifindex = known.interface.ifindex.to_ne_bytes();
        if let Err(error) = maps.interface_slots.delete(&ifindex) {
            debug!("{}: slot {slot}: {error}", known.interface.name);
        }
    }
}
