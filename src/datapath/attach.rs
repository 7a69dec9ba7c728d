//! The interfaces that the datapath is attached to, and the slots that it knows them by.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use libbpf_rs::{MapCore, MapFlags};
use log::warn;

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

/// XDP on one interface; dropping it detaches.
pub(super) struct Attached {
    interface: Interface,
    _link: OwnedFd,
}

impl Datapath {
    /// Attaches to an interface and gives it slot `slot` (0..SLOT_LIMIT, free).
    ///
    /// # Errors
    /// When the kernel refuses, the interface has another XDP program, or the slot cannot be set; the
    /// interface is then as before.
    pub fn attach(
        &mut self,
        slot: u16,
        interface: &Interface,
        mode: XdpMode,
    ) -> Result<Mode, Error> {
        let program = self.skeleton.progs.xdp_lb.as_fd();
        let (link, mode) = link::attach(program, &interface.name, interface.ifindex, mode)?;
        self.set_interface(slot, interface)?;
        self.attached.insert(
            slot,
            Attached {
                interface: interface.clone(),
                _link: link,
            },
        );
        Ok(mode)
    }

    /// Makes an interface known under slot `slot` without attaching to it.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn set_interface(&mut self, slot: u16, interface: &Interface) -> Result<(), Error> {
        let key = u32::from(slot).to_ne_bytes();
        let ifindex = interface.ifindex.to_ne_bytes();
        let maps = &self.skeleton.maps;
        let update = |map: &libbpf_rs::MapMut<'_>, key: &[u8], value: &[u8]| {
            map.update(key, value, MapFlags::ANY)
                .map_err(|error| Error::Map {
                    map: map.name().to_string_lossy().into_owned(),
                    action: "write",
                    source: io::Error::other(error),
                })
        };
        update(&maps.tx_ports, &key, &ifindex)?;
        update(&maps.interface_slots, &ifindex, &key)?;
        self.update_interface(slot, interface);
        Ok(())
    }

    /// Follows a change of MAC address, MTU or addresses of the interface in slot `slot`. Its index has
    /// not changed.
    pub fn update_interface(&mut self, slot: u16, interface: &Interface) {
        let tables = &mut self.tables;
        tables.interfaces.set(u32::from(slot), &interface.element());
        if let Some(attached) = self.attached.get_mut(&slot) {
            attached.interface = interface.clone();
        }
    }

    /// Detaches from the interface in slot `slot` and frees the slot.
    pub fn detach(&mut self, slot: u16) {
        let Some(attached) = self.attached.remove(&slot) else {
            return;
        };
        self.tables
            .interfaces
            .set(u32::from(slot), &abi::interface::default());
        let maps = &self.skeleton.maps;
        for (map, key) in [
            (&maps.tx_ports, u32::from(slot)),
            (&maps.interface_slots, attached.interface.ifindex),
        ] {
            if let Err(error) = map.delete(&key.to_ne_bytes()) {
                warn!(
                    "{}: slot {slot} not freed: {error}",
                    attached.interface.name
                );
            }
        }
    }

    /// The interfaces that are attached, with their slots.
    pub fn attached(&self) -> impl Iterator<Item = (u16, &Interface)> {
        self.attached
            .iter()
            .map(|(&slot, attached)| (slot, &attached.interface))
    }
}
