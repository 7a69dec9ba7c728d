//! Making the maps equal to a plan: compares with what they hold and writes the difference.
//!
//! Owns the order of the writes, so that a packet in between sees the old plan or the new, or a mixture
//! that is as good: first what is pointed to, then what points to it; what goes, in reverse.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore, MapFlags};

use super::abi::{self, address_of, bytes_of, from_bytes, name_to, region, region_parts, words_of};
use super::clock::Clock;
use super::totals::Totals;
use super::{Datapath, Error, Tables};
use crate::config::{
    AdminState, Forward, HashBy, Limits, OnDown, OnDownByProtocol, Protocol, Refusal, Timeouts,
};
use crate::state::ports::PortPrefix;
use crate::state::{self, filter, Desired, Echo, Health, Vip, NAT_POOL_LIMIT};

/// What a file says that goes to the datapath as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// `[timeouts]`
    pub timeouts: Timeouts,
    /// `datapath.unknown_port`
    pub unknown_port: Refusal,
    /// `datapath.hash_seed`
    pub hash_seed: u64,
    /// Source ports of full-nat, inclusive: none that the host itself uses for outgoing connections.
    pub nat_ports: (u16, u16),
    /// `tunnel.gue_port`
    pub gue_port: u16,
}

/// Bits of a key of `vips` before the port: address, protocol, padding.
const BITS_BEFORE_PORT: u32 = 128 + 8 + 8;
/// How coarsely an entry's age is kept, as a part of a second: finer would write more often.
const REFRESHES_A_SECOND: u32 = 4;

impl Datapath {
    /// Makes the maps what `desired` and `settings` say, whatever they held. Does nothing where they
    /// do already.
    ///
    /// # Errors
    /// When a map refuses a write, or there is no room for a Maglev table. What was written until then
    /// stays: each step leaves the datapath working, and a second call goes on from there.
    pub fn apply(&mut self, desired: &Desired, settings: &Settings) -> Result<(), Error> {
        let room = self.skeleton.maps.vips.max_entries() as usize;
        if desired.vips.len() > room {
            return Err(Error::Bindings {
                needed: desired.vips.len(),
                room,
            });
        }
        self.write_settings(settings);
        // What protects a service is there before the service.
        let (tables, totals) = (&mut self.tables, &mut self.totals);
        self.policies.write(
            &desired.policies,
            self.clock,
            &mut tables.settings,
            &tables.grace,
        )?;
        self.firewall
            .write(desired.firewall.as_ref(), &tables.grace)?;
        if desired.firewall.is_some() {
            tables.admit(true, self.firewall.take_changed());
        }
        self.allowed.widen(desired)?;
        tables.widen_filter(desired);
        let sources = tables.write_sources(desired)?;
        let is_usable = |backend: &state::Backend| backend.usable;
        tables.write_backends(desired, is_usable, sources, totals)?;
        for (&id, service) in &desired.services {
            if tables.write_service(id, service, totals)? {
                self.allowed.note_change();
            }
        }
        self.write_vips(desired)?;
        let (tables, totals) = (&mut self.tables, &mut self.totals);
        tables.write_backends(desired, |backend| !is_usable(backend), sources, totals)?;
        tables.clear_unused(desired, totals)?;
        self.allowed.narrow(desired)?;
        tables.narrow_filter(desired, longest(&settings.timeouts));
        // Last: whoever is let in from here on is let in by the rules and prefixes that are there now.
        tables.admit(desired.firewall.is_some(), self.allowed.take_changed());
        self.firewall
            .clear(desired.firewall.as_ref(), &self.tables.grace)
    }

    fn write_settings(&mut self, settings: &Settings) {
        let clock: Clock = self.clock;
        let Timeouts {
            tcp_opening,
            tcp_established,
            tcp_half_closed,
            tcp_closing,
            udp,
            other,
        } = settings.timeouts;
        let mut timeout = [clock.jiffies_of(other); abi::conn_state::CONN_STATE_SLOTS.0 as usize];
        for (state, duration) in [
            (abi::conn_state::CONN_OPENING, tcp_opening),
            (abi::conn_state::CONN_ESTABLISHED, tcp_established),
            (abi::conn_state::CONN_HALF_CLOSED, tcp_half_closed),
            (abi::conn_state::CONN_CLOSING, tcp_closing),
            (abi::conn_state::CONN_CLOSED, tcp_closing),
            (abi::conn_state::CONN_UDP, udp),
        ] {
            timeout[state.0 as usize] = clock.jiffies_of(duration);
        }
        let shortest = timeout.iter().copied().min().unwrap_or(1);
        // Written once what they stand for is in force.
        let live = self.tables.settings.get(0).unwrap_or_default();
        let value = abi::settings {
            hash_seed: settings.hash_seed,
            nat_secret: self.nat_secret,
            timeout,
            // A quarter of the shortest timeout at most, or an entry could look idle that is not.
            refresh: (clock.hz / REFRESHES_A_SECOND).min(shortest / 4).max(1),
            unknown_port: refusal(settings.unknown_port).0,
            nat_port_first: settings.nat_ports.0,
            nat_port_last: settings.nat_ports.1,
            hz: clock.hz,
            clock_zero: clock.zero,
            gue_port: settings.gue_port.to_be(),
            pad: 0,
            new_flows: new_flows(&self.limits, self.cpus),
            admission: live.admission,
            firewall: live.firewall,
            policies: live.policies,
            source_sets: self.policies.sets(),
            metered: live.metered,
        };
        self.tables.settings.set(0, &value);
    }

    /// The trie has no whole to swap: what is new or changed goes in first, then what is gone goes out.
    fn write_vips(&mut self, desired: &Desired) -> Result<(), Error> {
        let map = &self.skeleton.maps.vips;
        let failed = |action| {
            move |error: libbpf_rs::Error| Error::Map {
                map: "vips".into(),
                action,
                source: io::Error::other(error),
            }
        };
        let mut live = BTreeMap::new();
        for key in map.keys() {
            let value = map.lookup(&key, MapFlags::ANY).map_err(failed("read"))?;
            live.insert(key, value);
        }
        for (vip, service) in &desired.vips {
            let key = bytes_of(&vip_key(vip)).to_vec();
            let value = abi::vip {
                service: service.unwrap_or(abi::xdplb_limit::NO_SERVICE.0),
                echo: match vip.ports {
                    None => desired
                        .echoes
                        .get(&vip.address)
                        .map_or(0, |echo| echo_of(*echo).0),
                    Some(_) => 0,
                },
            };
            if live.remove(&key).flatten().as_deref() != Some(bytes_of(&value)) {
                map.update(&key, bytes_of(&value), MapFlags::ANY)
                    .map_err(failed("write"))?;
            }
        }
        for key in live.keys() {
            map.delete(key).map_err(failed("delete from"))?;
        }
        Ok(())
    }
}

impl Tables {
    /// Has the firewall asked or not, and connections that have been let in judged anew if what is let in
    /// has changed: in one word, or a packet in between would be let in by the rules before and bear the
    /// stamp of the new ones. After the policies' bits, whose packets it has metered.
    fn admit(&mut self, firewall: bool, changed: bool) {
        let mut settings = self.settings.get(0).unwrap_or_default();
        let firewall = u32::from(firewall);
        if changed || settings.firewall != firewall {
            settings.admission = next_admission(settings.admission);
        }
        settings.firewall = firewall;
        settings.metered =
            u32::from(firewall == 1 || settings.policies.iter().any(|&bits| bits != 0));
        self.settings.set(0, &settings);
    }

    /// Writes those backends that `which` takes.
    fn write_backends(
        &mut self,
        desired: &Desired,
        which: impl Fn(&state::Backend) -> bool,
        sources: u32,
        totals: &mut Totals,
    ) -> Result<(), Error> {
        for (&id, backend) in desired
            .backends
            .iter()
            .filter(|(_, backend)| which(backend))
        {
            self.write_backend(id, backend, sources, totals)?;
        }
        Ok(())
    }

    fn widen_filter(&mut self, desired: &Desired) {
        if let Some(mut live) = self.filter.get(0) {
            for (word, bits) in live.words.iter_mut().zip(desired.filter.iter()) {
                *word |= bits;
            }
            self.filter.set(0, &live);
        }
    }

    /// Leaves the plan's addresses in the filter, and those of backends that are gone for as long as a
    /// connection may wait for what they have still to say.
    fn narrow_filter(&mut self, desired: &Desired, remembered: Duration) {
        self.retired.retain(|_, gone| gone.elapsed() < remembered);
        let mut words = filter::words(self.retired.keys().copied());
        for (word, bits) in words.iter_mut().zip(desired.filter.iter()) {
            *word |= bits;
        }
        self.filter.set(0, &abi::filter { words: *words });
    }

    /// Writes the pool of full-nat addresses to the half of the array that is not in use, unless it is
    /// the one in use; gives back where it is.
    fn write_sources(&mut self, desired: &Desired) -> Result<u32, Error> {
        let half = NAT_POOL_LIMIT as u32;
        let holds = |tables: &Tables, start: u32| {
            (start..).zip(&desired.nat_pool).all(|(index, &address)| {
                tables
                    .nat_pool
                    .get(index)
                    .is_some_and(|live| live.address == words_of(address))
            })
        };
        if holds(self, self.sources) {
            return Ok(self.sources);
        }
        if self.sources_released {
            self.grace.wait()?;
        }
        self.sources_released = true;
        self.sources = half - self.sources;
        for (index, &address) in (self.sources..).zip(&desired.nat_pool) {
            self.nat_pool.set(
                index,
                &abi::nat_address {
                    address: words_of(address),
                },
            );
        }
        Ok(self.sources)
    }

    fn write_backend(
        &mut self,
        id: u32,
        backend: &state::Backend,
        sources: u32,
        totals: &mut Totals,
    ) -> Result<(), Error> {
        let hop = backend.hop.map_or(
            abi::hop {
                mac: [0; 6],
                slot: abi::xdplb_limit::NO_SLOT.0 as u16,
            },
            |hop| abi::hop {
                mac: hop.mac.0,
                slot: hop.slot,
            },
        );
        let value = abi::backend {
            hop,
            generation: match backend.state {
                AdminState::Up | AdminState::Drain => backend.generation,
                AdminState::Down => 0,
            },
            port: backend.port.unwrap_or(0).to_be(),
            weight: backend.weight,
            address: words_of(backend.address),
            service: backend.service,
            forward: forward_mode(backend.forward).0 as u8,
            family: state::Family::of(backend.address).number(),
            state: match backend.state {
                AdminState::Up => abi::backend_state::BACKEND_UP,
                AdminState::Drain => abi::backend_state::BACKEND_DRAIN,
                AdminState::Down => abi::backend_state::BACKEND_DOWN,
            }
            .0 as u8,
            health: match backend.health {
                Health::Up => abi::backend_health::HEALTH_UP,
                Health::Unresolved => abi::backend_health::HEALTH_UNRESOLVED,
                Health::NoSource => abi::backend_health::HEALTH_NO_SOURCE,
            }
            .0 as u8,
            nat_pool: region(sources + backend.nat_pool.first, backend.nat_pool.count),
            outer_source: backend
                .outer
                .map_or([0; 4], |outer| words_of(outer.address())),
            outer_mask: backend.outer.map_or(0, |outer| outer.low_bits().to_be()),
            on_link: backend.hop.is_some_and(|hop| hop.on_link).into(),
            incarnation: backend.generation,
            usable: backend.usable.into(),
            rehash: rehash(backend.on_down),
            pad: 0,
            name: name_to(&backend.name),
        };
        let live = self.backends.get(id).unwrap_or_default();
        let place = |backend: &abi::backend| {
            (
                backend.service,
                backend.address,
                backend.port,
                backend.forward,
            )
        };
        let same = place(&live) == place(&value);
        if !same {
            if live.forward != 0 {
                totals.retire_backend(id, live.service)?;
            }
            totals.begin_backend(id)?;
            // Unusable before any of it changes, and until all of it is there.
            for whole in [&live, &value] {
                let unusable = abi::backend {
                    generation: 0,
                    usable: 0,
                    ..*whole
                };
                self.backends.set(id, &unusable);
            }
        } else if live.outer_source != value.outer_source {
            // Bits from the flow belong to the prefix that they were cut for.
            self.backends.set(
                id,
                &abi::backend {
                    outer_mask: 0,
                    ..live
                },
            );
        }
        self.backends.set(id, &value);
        Ok(())
    }

    /// Gives back whether the service has become restricted, or has ceased to be.
    fn write_service(
        &mut self,
        id: u32,
        service: &state::Service,
        totals: &mut Totals,
    ) -> Result<bool, Error> {
        let live = self.services.get(id).unwrap_or_default();
        let mut value = abi::service {
            table: live.table,
            hash: match service.hash {
                HashBy::FiveTuple => abi::hash_by::HASH_5_TUPLE,
                HashBy::SourceIp => abi::hash_by::HASH_SOURCE_IP,
                HashBy::SourceIpPort => abi::hash_by::HASH_SOURCE_IP_PORT,
            }
            .0,
            forward: forward_mode(service.forward).0,
            family: u32::from(service.family.number()),
            no_backend: refusal(service.no_backend).0,
            restricted: (!service.allow.is_empty()).into(),
            pad: 0,
            name: name_to(&service.name),
        };
        if live.family != value.family {
            // Not merely renamed: an id is free before it is another's.
            totals.begin_service(id);
        }
        if !self.holds_table(live.table, &service.table) {
            value.table = self.write_table(service)?;
        }
        self.services.set(id, &value);
        if value.table != live.table {
            self.release(live.table);
        }
        Ok(live.restricted != value.restricted)
    }

    fn holds_table(&self, region: u64, table: &[u32]) -> bool {
        let (offset, size) = region_parts(region);
        size as usize == table.len()
            && (offset..).zip(table).all(|(slot, &backend)| {
                self.maglev
                    .get(slot / 2)
                    .is_some_and(|pair| pair.backend[slot as usize % 2] == backend)
            })
    }

    /// Writes a table where no packet looks, and gives back its region.
    fn write_table(&mut self, service: &state::Service) -> Result<u64, Error> {
        let Ok(size @ 1..) = u32::try_from(service.table.len()) else {
            return Ok(0);
        };
        let offset = match self.regions.allocate(size) {
            None if self.regions.has_released() => {
                self.grace.wait()?;
                self.regions.reclaim();
                self.regions.allocate(size)
            }
            offset => offset,
        };
        let Some(offset) = offset else {
            return Err(Error::Regions {
                service: service.name.clone(),
            });
        };
        for (slot, &backend) in (offset..).zip(service.table.iter()) {
            // A pair's other half may belong to a neighbouring region: it is written as it was.
            if let Some(mut pair) = self.maglev.get(slot / 2) {
                pair.backend[slot as usize % 2] = backend;
                self.maglev.set(slot / 2, &pair);
            }
        }
        Ok(region(offset, size))
    }

    fn release(&mut self, table: u64) {
        let (offset, size) = region_parts(table);
        if size > 0 {
            self.regions.release(offset, size);
        }
    }

    /// Empties the ids that the plan does not use: services before the backends that their tables name.
    fn clear_unused(&mut self, desired: &Desired, totals: &mut Totals) -> Result<(), Error> {
        for id in (0..self.services.length()).filter(|id| !desired.services.contains_key(id)) {
            let live = self.services.get(id).unwrap_or_default();
            if self.services.set(id, &abi::service::default()) {
                self.release(live.table);
            }
        }
        for id in (0..self.backends.length()).filter(|id| !desired.backends.contains_key(id)) {
            let live = self.backends.get(id).unwrap_or_default();
            // Unusable before its next hop goes.
            self.backends.set(
                id,
                &abi::backend {
                    generation: 0,
                    ..live
                },
            );
            if self.backends.set(id, &abi::backend::default()) {
                self.retired
                    .insert(address_of(live.address), Instant::now());
                totals.retire_backend(id, live.service)?;
            }
        }
        Ok(())
    }
}

/// What follows on an admission: another one, and never 0, which stands for no rules.
fn next_admission(admission: u32) -> u32 {
    let step = 1 << abi::xdplb_limit::RULE_BITS.0;
    admission.wrapping_add(step).max(step)
}

/// How many entries for new flows each CPU may make in a second, of each kind. A flood of them pushes
/// entries out of the half-open table: it is to take two seconds for all of it, in which the backends'
/// answers take those of real clients out of there. A connection has two entries. A flood that arrives on
/// one CPU has only that one's share, so that more than a few are not counted: network cards rarely spread
/// packets over more queues.
fn new_flows(limits: &Limits, cpus: usize) -> u32 {
    const ENTRIES: u32 = 2;
    const SECONDS: u32 = 2;
    const MOST_CPUS: usize = 16;
    const LEAST: u32 = 100;
    let cpus = cpus.clamp(1, MOST_CPUS) as u32;
    (limits.connection_tables().opening / ENTRIES / SECONDS / cpus).max(LEAST)
}

/// How long an entry may go on without a packet, whatever its state.
fn longest(timeouts: &Timeouts) -> Duration {
    timeouts.each().into_iter().max().unwrap_or_default()
}

/// The protocols whose connections do not wait for a backend that is not usable, a bit for each
/// `enum protocol_class`.
fn rehash(on_down: OnDownByProtocol) -> u8 {
    [
        (Protocol::Tcp, abi::protocol_class::CLASS_TCP),
        (Protocol::Udp, abi::protocol_class::CLASS_UDP),
    ]
    .into_iter()
    .filter(|(protocol, _)| on_down.of(*protocol) == OnDown::Rehash)
    .fold(0, |bits, (_, class)| bits | 1 << class.0)
}

fn forward_mode(forward: Forward) -> abi::forward_mode {
    match forward {
        Forward::Nat => abi::forward_mode::FORWARD_NAT,
        Forward::FullNat => abi::forward_mode::FORWARD_FULL_NAT,
        Forward::L2 => abi::forward_mode::FORWARD_L2,
        Forward::Ipip => abi::forward_mode::FORWARD_IPIP,
        Forward::Gue => abi::forward_mode::FORWARD_GUE,
    }
}

fn refusal(refusal: Refusal) -> abi::refusal {
    match refusal {
        Refusal::Pass => abi::refusal::REFUSAL_PASS,
        Refusal::Drop => abi::refusal::REFUSAL_DROP,
        Refusal::Reject => abi::refusal::REFUSAL_REJECT,
    }
}

fn echo_of(echo: Echo) -> abi::echo {
    match echo {
        Echo::Pass => abi::echo::ECHO_PASS,
        Echo::Answer => abi::echo::ECHO_ANSWER,
        Echo::Drop => abi::echo::ECHO_DROP,
    }
}

/// The key that the datapath's trie has for a VIP or one of its port prefixes.
fn vip_key(vip: &Vip) -> abi::vip_key {
    let (protocol, port, bits) = match vip.ports {
        None => (0, 0, 128),
        Some((protocol, ports)) => (
            protocol.number(),
            ports.value(),
            BITS_BEFORE_PORT + u32::from(ports.length()),
        ),
    };
    abi::vip_key {
        prefixlen: bits,
        address: words_of(vip.address),
        protocol,
        pad: 0,
        port: port.to_be(),
    }
}

/// What a key of `vips` stands for: the address, and protocol and ports unless it is the VIP by itself.
pub(super) fn vip_of(key: &[u8]) -> Option<(IpAddr, Option<(Protocol, PortPrefix)>)> {
    let key: abi::vip_key = from_bytes(key)?;
    let address = address_of(key.address);
    let Some(length) = key.prefixlen.checked_sub(BITS_BEFORE_PORT) else {
        return Some((address, None));
    };
    let protocol = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|known| known.number() == key.protocol)?;
    Some((
        address,
        Some((
            protocol,
            PortPrefix::new(u16::from_be(key.port), u8::try_from(length).ok()?),
        )),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admission_is_never_that_of_no_rules() {
        let step = 1 << 17;
        assert_eq!(next_admission(0), step);
        assert_eq!(next_admission(step), 2 * step);
        assert_eq!(next_admission(u32::MAX - (step - 1)), step);
    }

    #[test]
    fn a_flood_takes_two_seconds_to_fill_the_table() {
        let limits = Limits::default();
        for (cpus, rate) in [
            (0, 125_000),
            (1, 125_000),
            (2, 62_500),
            (16, 7812),
            (512, 7812),
        ] {
            assert_eq!(new_flows(&limits, cpus), rate, "{cpus}");
        }
        let small = Limits {
            connections: 100,
            ..limits
        };
        assert_eq!(new_flows(&small, 2), 100);
    }
}
