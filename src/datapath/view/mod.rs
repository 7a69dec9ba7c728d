//! Looking at a datapath through its pins, from another process, for the commands.
//!
//! Reads only, but for [`View::unblock`]. Everything comes from the maps, and so shows the state that packets
//! meet, not the file.

mod firewall;
mod police;
mod traffic;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::abi::{
    self, address_of, backend_health, backend_state, conn_state, forward_mode, from_bytes, hash_by,
    name_from,
};
use super::array::Array;
use super::clock::Clock;
use super::connections::{self, Entry};
use super::reasons::{Reason, REASONS};
use super::vips::vip_of;
use super::{percpu, Error};
use crate::config::{AdminState, Forward, HashBy, PortRange, Protocol};
use crate::state::ports;

pub use firewall::{Rule, RuleKind};
pub use police::{Blocked, Policy};
pub use traffic::{Class, Exchange, Traffic};

/// A datapath's pinned maps.
pub struct View {
    directory: PathBuf,
}

/// A service, one address family of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name in the file.
    pub name: String,
    /// How packets reach the backends.
    pub forward: Forward,
    /// The part of the packet that chooses the slot.
    pub hash: HashBy,
    /// The VIPs, each with its ports by protocol.
    pub vips: BTreeMap<IpAddr, BTreeMap<Protocol, Vec<PortRange>>>,
    /// The totals of backends that it no longer has.
    pub past: Traffic,
    /// By id.
    pub backends: BTreeMap<u32, Backend>,
}

/// A backend of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its name in the file.
    pub name: String,
    /// Where packets go.
    pub address: IpAddr,
    /// `None`: the packet's own.
    pub port: Option<u16>,
    /// 0..=1000
    pub weight: u16,
    /// The state that the operator has set.
    pub state: AdminState,
    /// Whether it can be reached: "up", "down", "unresolved", "no-source".
    pub health: &'static str,
    /// Its totals, since the id was given out.
    pub traffic: Traffic,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The entry.
    pub entry: Entry,
    /// In words.
    pub state: &'static str,
    /// Until the entry is too old; zero if it is.
    pub expires: Duration,
}

impl View {
    /// The datapath whose maps are pinned in `directory`.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let view = View {
            directory: directory.into(),
        };
        view.map("settings")?;
        Ok(view)
    }

    /// The services by id, with their VIPs, backends and traffic.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn services(&self) -> Result<BTreeMap<u32, Service>, Error> {
        let mut services: BTreeMap<u32, Service> = BTreeMap::new();
        let past: Array<abi::traffic> = Array::map_read_only(&self.map("past")?)?;
        let array: Array<abi::service> = Array::map_read_only(&self.map("services")?)?;
        for id in 0..array.length() {
            let Some(service) = array.get(id).filter(|service| service.family != 0) else {
                continue;
            };
            services.insert(
                id,
                Service {
                    name: name_from(&service.name),
                    forward: forward_of(service.forward),
                    hash: hash_of(service.hash),
                    vips: BTreeMap::new(),
                    past: past.get(id).unwrap_or_default().into(),
                    backends: BTreeMap::new(),
                },
            );
        }
        self.read_vips(&mut services)?;
        self.read_backends(&mut services)?;
        Ok(services)
    }

    fn read_vips(&self, services: &mut BTreeMap<u32, Service>) -> Result<(), Error> {
        let mut prefixes: BTreeMap<(u32, IpAddr, Protocol), Vec<ports::PortPrefix>> =
            BTreeMap::new();
        let map = self.map("vips")?;
        for key in map.keys() {
            let Some(value) = map
                .lookup(&key, MapFlags::ANY)
                .map_err(|error| read_error("vips", error))?
            else {
                continue;
            };
            if let (Some((vip, Some((protocol, ports)))), Some(abi::vip { service, .. })) =
                (vip_of(&key), from_bytes(&value))
            {
                prefixes
                    .entry((service, vip, protocol))
                    .or_default()
                    .push(ports);
            }
        }
        for ((id, vip, protocol), prefixes) in prefixes {
            if let Some(service) = services.get_mut(&id) {
                service
                    .vips
                    .entry(vip)
                    .or_default()
                    .insert(protocol, ports::merge(prefixes));
            }
        }
        Ok(())
    }

    fn read_backends(&self, services: &mut BTreeMap<u32, Service>) -> Result<(), Error> {
        let traffic = self.map("traffic")?;
        let expired: Array<abi::expiries> = Array::map_read_only(&self.map("expired")?)?;
        let array: Array<abi::backend> = Array::map_read_only(&self.map("backends")?)?;
        for id in 0..array.length() {
            let Some(backend) = array.get(id).filter(|backend| backend.forward != 0) else {
                continue;
            };
            let Some(service) = services.get_mut(&backend.service) else {
                continue;
            };
            service.backends.insert(
                id,
                Backend {
                    name: name_from(&backend.name),
                    address: address_of(backend.address),
                    port: Some(u16::from_be(backend.port)).filter(|&port| port != 0),
                    weight: backend.weight,
                    state: state_of(backend.state),
                    health: health_of(backend.health),
                    traffic: traffic::of_backend(&traffic, expired.get(id), id)?,
                },
            );
        }
        Ok(())
    }

    /// Calls `visit` with every connection that is not too old, with the time it has left, until `visit` has an
    /// error. They come in the order of the tables, one after the other: none of them is kept here.
    ///
    /// # Errors
    /// When a table cannot be read, or that of `visit`.
    pub fn for_each_connection<E: From<Error>>(
        &self,
        mut visit: impl FnMut(&Connection) -> Result<(), E>,
    ) -> Result<(), E> {
        let settings = self.settings()?;
        let Some(clock) = Clock::from_settings(&settings) else {
            return Ok(());
        };
        let map = |name: &str| self.map(name);
        connections::for_each(map, settings.nat_secret, |entry| {
            // Read anew: a reader may be slow.
            let idle = clock.now().wrapping_sub(entry.last_seen).cast_signed();
            let timeout = settings.timeout[usize::from(entry.state) % settings.timeout.len()];
            let Some(left) = timeout.checked_sub(idle.max(0).cast_unsigned()) else {
                return Ok(());
            };
            visit(&Connection {
                entry,
                state: state_name(&entry),
                expires: clock.duration_of(left.into()),
            })
        })
    }

    /// How many packets each reason has met, in the order of the list.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn drops(&self) -> Result<Vec<(&'static Reason, u64)>, Error> {
        let map = self.map("counters")?;
        REASONS
            .iter()
            .enumerate()
            .map(|(index, reason)| Ok((reason, read_counter(&map, index as u32)?)))
            .collect()
    }

    fn settings(&self) -> Result<abi::settings, Error> {
        let settings = Array::map_read_only(&self.map("settings")?)?;
        Ok(settings.get(0).unwrap_or_default())
    }

    fn map(&self, name: &str) -> Result<MapHandle, Error> {
        let path = self.directory.join(name);
        if let Err(error) = path.symlink_metadata() {
            let reason = match error.kind() {
                io::ErrorKind::NotFound => {
                    "no xdplb runs with this pin directory; start one, or name its \
                                            datapath.pin_dir with --pin-dir"
                        .into()
                }
                io::ErrorKind::PermissionDenied => "permission denied: run it as root".into(),
                _ => error.to_string(),
            };
            return Err(Error::Pins {
                path: self.directory.clone(),
                reason,
            });
        }
        MapHandle::from_pinned_path(&path).map_err(|error| Error::Pins {
            path,
            reason: format!("cannot open the map: {error}; run it as root, or with CAP_BPF"),
        })
    }
}

fn read_error(map: &str, error: libbpf_rs::Error) -> Error {
    Error::Map {
        map: map.into(),
        action: "read",
        source: io::Error::other(error),
    }
}

/// The sum over all CPUs of one counter.
pub(super) fn read_counter(map: &impl MapCore, index: u32) -> Result<u64, Error> {
    let counters = percpu::read::<abi::counter>(map, index)?;
    Ok(counters.iter().map(|cpu| cpu.packets).sum())
}

fn forward_of(value: u32) -> Forward {
    match forward_mode(value) {
        forward_mode::FORWARD_FULL_NAT => Forward::FullNat,
        forward_mode::FORWARD_L2 => Forward::L2,
        forward_mode::FORWARD_IPIP => Forward::Ipip,
        forward_mode::FORWARD_GUE => Forward::Gue,
        _ => Forward::Nat,
    }
}

fn hash_of(value: u32) -> HashBy {
    match hash_by(value) {
        hash_by::HASH_SOURCE_IP => HashBy::SourceIp,
        hash_by::HASH_SOURCE_IP_PORT => HashBy::SourceIpPort,
        _ => HashBy::FiveTuple,
    }
}

fn state_of(value: u8) -> AdminState {
    match backend_state(value.into()) {
        backend_state::BACKEND_UP => AdminState::Up,
        backend_state::BACKEND_DRAIN => AdminState::Drain,
        _ => AdminState::Down,
    }
}

fn health_of(value: u8) -> &'static str {
    match backend_health(value.into()) {
        backend_health::HEALTH_UP => "up",
        backend_health::HEALTH_UNRESOLVED => "unresolved",
        backend_health::HEALTH_NO_SOURCE => "no-source",
        _ => "down",
    }
}

fn state_name(entry: &Entry) -> &'static str {
    match conn_state(entry.state.into()) {
        conn_state::CONN_OPENING => "opening",
        conn_state::CONN_ESTABLISHED => "established",
        conn_state::CONN_HALF_CLOSED => "half-closed",
        conn_state::CONN_CLOSING => "closing",
        conn_state::CONN_CLOSED => "closed",
        conn_state::CONN_UDP => "udp",
        _ => "other",
    }
}
