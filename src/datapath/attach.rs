//! The interfaces that the datapath is attached to, and the slots that it knows them by.

use std::io;
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
}

/// XDP on one interface; dropping it detaches.
pub(super) struct Attached {
    interface: Interface,
    _link: OwnedFd,
}

impl Datapath {
    /// Attaches to an interface and gives it slot `port` (0..PORT_LIMIT, free).
    ///
    /// # Errors
    /// When the kernel refuses, the interface has another XDP program, or the slot cannot be set; the
    /// interface is then as before.
    pub fn attach(
        &mut self,
        port: u16,
        interface: &Interface,
        mode: XdpMode,
    ) -> Result<Mode, Error> {
        let (link, mode) = link::attach(self.skeleton.progs.xdp_lb.as_fd(), interface, mode)?;
        self.set_interface(port, interface)?;
        self.attached.insert(
            port,
            Attached {
                interface: interface.clone(),
                _link: link,
            },
        );
        Ok(mode)
    }

    /// Makes an interface known under slot `port` without attaching to it.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn set_interface(&mut self, port: u16, interface: &Interface) -> Result<(), Error> {
        let key = u32::from(port).to_ne_bytes();
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
        update(&maps.port_index, &ifindex, &key)?;
        let value = abi::interface {
            mac: interface.mac.0,
            pad: 0,
            ifindex: interface.ifindex,
            mtu: 1500,
            address4: 0,
            pad2: 0,
            address6: [0; 4],
            name: abi::name_to(&interface.name),
        };
        self.tables.interfaces.set(u32::from(port), &value);
        Ok(())
    }

    /// Follows a change of the interface's own MAC address.
    pub fn set_interface_mac(&mut self, port: u16, mac: MacAddress) {
        if let Some(mut value) = self.tables.interfaces.get(u32::from(port)) {
            value.mac = mac.0;
            self.tables.interfaces.set(u32::from(port), &value);
        }
        if let Some(attached) = self.attached.get_mut(&port) {
            attached.interface.mac = mac;
        }
    }

    /// Detaches from the interface in slot `port` and frees the slot.
    pub fn detach(&mut self, port: u16) {
        let Some(attached) = self.attached.remove(&port) else {
            return;
        };
        self.tables
            .interfaces
            .set(u32::from(port), &abi::interface::default());
        let maps = &self.skeleton.maps;
        for (map, key) in [
            (&maps.tx_ports, u32::from(port)),
            (&maps.port_index, attached.interface.ifindex),
        ] {
            if let Err(error) = map.delete(&key.to_ne_bytes()) {
                warn!(
                    "{}: slot {port} not freed: {error}",
                    attached.interface.name
                );
            }
        }
    }

    /// The interfaces that are attached, with their slots.
    pub fn attached(&self) -> impl Iterator<Item = (u16, &Interface)> {
        self.attached
            .iter()
            .map(|(&port, attached)| (port, &attached.interface))
    }
}
