//! XDP on interfaces: attaching in the mode that was asked for, and the slots that the datapath knows
//! interfaces by.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{MapCore, MapFlags};
use log::warn;
use nix::errno::Errno;

use super::abi;
use super::{Datapath, Error};
use crate::config::{MacAddress, XdpMode};

/// How the kernel runs the program on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before a packet buffer is made.
    Native,
    /// In the stack. Works on any interface, several times slower.
    Generic,
}

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
        let (link, mode) = self.link(interface, mode)?;
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
        self.update_interface(port, interface);
        Ok(())
    }

    /// Follows a change of what the interface in slot `port` has: MAC address, MTU, addresses. Its index
    /// is what it was.
    pub fn update_interface(&mut self, port: u16, interface: &Interface) {
        let tables = &mut self.tables;
        tables.interfaces.set(u32::from(port), &interface.element());
        if let Some(attached) = self.attached.get_mut(&port) {
            attached.interface = interface.clone();
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

    fn link(&self, interface: &Interface, mode: XdpMode) -> Result<(OwnedFd, Mode), Error> {
        let failed = |error: &io::Error, mode: Mode| Error::Attach {
            interface: interface.name.clone(),
            reason: explain(interface, error, mode),
        };
        if mode == XdpMode::Generic {
            return self
                .create_link(interface.ifindex, Mode::Generic)
                .map(|link| (link, Mode::Generic))
                .map_err(|error| failed(&error, Mode::Generic));
        }
        match self.create_link(interface.ifindex, Mode::Native) {
            Ok(link) => Ok((link, Mode::Native)),
            Err(error) if mode == XdpMode::Auto && lacks_native(&error) => {
                warn!(
                    "{}: no native XDP here ({error}); using generic XDP, which is several times slower",
                    interface.name
                );
                self.create_link(interface.ifindex, Mode::Generic)
                    .map(|link| (link, Mode::Generic))
                    .map_err(|error| failed(&error, Mode::Generic))
            }
            Err(error) => Err(failed(&error, Mode::Native)),
        }
    }

    /// A link rather than a netlink attachment: it goes with the process, and nobody replaces it.
    fn create_link(&self, ifindex: u32, mode: Mode) -> io::Result<OwnedFd> {
        let options = libbpf_sys::bpf_link_create_opts {
            sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
            flags: match mode {
                Mode::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
                Mode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
            },
            ..Default::default()
        };
        let program = self.skeleton.progs.xdp_lb.as_fd().as_raw_fd();
        let target = i32::try_from(ifindex).map_err(io::Error::other)?;
        // SAFETY: the program's descriptor is open, and `options` is initialised and outlives the call.
        let fd =
            unsafe { libbpf_sys::bpf_link_create(program, target, libbpf_sys::BPF_XDP, &options) };
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd));
        }
        // SAFETY: a new descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

/// Whether the driver has no native XDP, or not for this interface as it is set up.
fn lacks_native(error: &io::Error) -> bool {
    matches!(
        errno(error),
        Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ERANGE
    )
}

fn explain(interface: &Interface, error: &io::Error, mode: Mode) -> String {
    let name = &interface.name;
    let remedy = match errno(error) {
        Errno::EBUSY | Errno::EEXIST => format!(
            "it has another XDP program{}; stop the program that attached it, or: ip link set dev {name} xdp off",
            other_program(interface.ifindex)
        ),
        Errno::ENODEV => "the interface has gone; see: ip link".into(),
        Errno::EPERM => "xdplb needs CAP_NET_ADMIN and CAP_BPF, or root".into(),
        _ if mode == Mode::Native => format!(
            "the driver refuses native XDP as the interface is set up (MTU, queues, LRO; a bond or VLAN may need it on \
             the device below); see dmesg and `ethtool -i {name}`, or set datapath.xdp_mode = \"generic\""
        ),
        _ => "see dmesg".into(),
    };
    format!("{error}: {remedy}")
}

/// Id and name of the XDP program that is there, if that can be learnt.
fn other_program(ifindex: u32) -> String {
    let mut id = 0;
    let Ok(target) = i32::try_from(ifindex) else {
        return String::new();
    };
    // SAFETY: `id` is valid for the call, which writes it.
    if unsafe { libbpf_sys::bpf_xdp_query_id(target, 0, &mut id) } != 0 || id == 0 {
        return String::new();
    }
    let name = ProgInfoIter::default()
        .find(|info| info.id == id)
        .map(|info| info.name.to_string_lossy().into_owned());
    match name {
        Some(name) if !name.is_empty() => format!(", {name} (id {id})"),
        _ => format!(" (id {id})"),
    }
}
