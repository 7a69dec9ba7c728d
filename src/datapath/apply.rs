//! Making the maps equal to a plan: compares with what they hold and writes the difference.
//!
//! Owns the order of the writes, so that a packet in between sees the old plan or the new, or a mixture
//! that is as good: first the element that is pointed to, then the pointer; deletions in reverse.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libbpf_rs::MapCore;

use super::abi::{self, address_of, name_to, region, words_of};
use super::clock::Clock;
use super::totals::Totals;
use super::{vips, Datapath, Error, Tables};
use crate::config::{
    AdminState, Forward, HashBy, Limits, OnDown, OnDownByProtocol, Protocol, Refusal, Timeouts,
};
use crate::state::{self, filter, ById, Desired, Health, Service, NAT_POOL_LIMIT};

/// Settings that go from the file to the datapath as they are.
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

/// How coarsely an entry's age is kept, as a part of a second: finer would write more often.
const REFRESHES_A_SECOND: u32 = 4;

impl Datapath {
    /// Makes the maps what `desired` and `settings` say, whatever they hold: everything is compared with the
    /// maps themselves, what has drifted is mended, and where nothing differs nothing is written.
    ///
    /// # Errors
    /// When a map refuses a write, or there is no room for a Maglev table. What was written until then
    /// stays: each step leaves the datapath working, and a second call goes on from there.
    pub fn apply(&mut self, desired: &Desired, settings: &Settings) -> Result<(), Error> {
        self.in_force = None;
        self.follow(desired, settings)
    }

    /// The same where the maps hold the plan that was put in force last, as they do when only the network
    /// has changed: only what differs between the two plans is looked at. If that plan did not get into the
    /// maps as a whole, everything is.
    ///
    /// # Errors
    /// As [`Datapath::apply`].
    pub fn follow(&mut self, desired: &Desired, settings: &Settings) -> Result<(), Error> {
        vips::check_room(&self.skeleton.maps.vips, desired)?;
        self.make_room(&desired.needs)?;
        let former = self.in_force.take();
        match self.write(desired, settings, former.as_ref()) {
            Err(Error::Regions { .. }) if self.make_regions(&desired.needs)? => {
                self.write(desired, settings, None)?;
            }
            written => written?,
        }
        self.in_force = Some(desired.clone());
        Ok(())
    }

    /// Writes what differs from `former`, which the maps hold; or from the maps if that is `None`.
    fn write(
        &mut self,
        desired: &Desired,
        settings: &Settings,
        former: Option<&Desired>,
    ) -> Result<(), Error> {
        self.write_settings(settings);
        // Rules and permitted sources are in place before the services that they protect.
        let (tables, totals) = (&mut self.tables, &mut self.totals);
        self.policies.write(
            &desired.policies,
            self.clock,
            &mut tables.settings,
            &tables.grace,
        )?;
        if former.is_none() {
            self.firewall.distrust();
            self.allowed.distrust();
        }
        self.firewall
            .write(desired.firewall.as_ref(), &tables.grace)?;
        if desired.firewall.is_some() {
            tables.admit(true, self.firewall.take_changed())?;
        }
        tables.widen_filter(desired);
        let moved = tables.write_sources(desired)?;
        let services = Difference::of(
            former.map(|former| &former.services),
            &desired.services,
            tables.services.length(),
        );
        let allow_changed = allow_changed(former, &services);
        if allow_changed {
            self.allowed.widen(desired)?;
        }
        let backends = Difference::of(
            former.filter(|_| !moved).map(|former| &former.backends),
            &desired.backends,
            tables.backends.length(),
        );
        let (usable, unusable): (Vec<_>, Vec<_>) = backends
            .written
            .iter()
            .partition(|(_, backend)| backend.usable);
        for (id, backend) in usable {
            tables.write_backend(id, backend, totals)?;
        }
        for (id, service) in services.written {
            let known = former.and_then(|former| former.services.get(&id));
            if tables.write_service(id, service, known, totals)? {
                self.allowed.note_change();
            }
        }
        vips::write(&self.skeleton.maps.vips, desired, former)?;
        for (id, backend) in unusable {
            tables.write_backend(id, backend, totals)?;
        }
        // Services before the backends that their tables name.
        for id in services.gone {
            tables.clear_service(id);
        }
        for id in backends.gone {
            tables.clear_backend(id, totals)?;
        }
        if allow_changed {
            self.allowed.narrow(desired)?;
        }
        tables.narrow_filter(desired, longest(&settings.timeouts));
        // Last: sources that are permitted from here on are so by the rules and prefixes that are there now.
        tables.admit(desired.firewall.is_some(), self.allowed.take_changed())?;
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
        // Written once the rules that they stand for are in force.
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
            sets4: MapCore::max_entries(&self.skeleton.maps.connections),
            sets6: MapCore::max_entries(&self.skeleton.maps.connections6),
            metered: live.metered,
        };
        self.tables.settings.set(0, &value);
    }
}

/// Which elements of an array have to be written, and which emptied.
struct Difference<'a, T> {
    /// Ids with what they stand for.
    written: Vec<(u32, &'a Arc<T>)>,
    /// Ids that stand for nothing.
    gone: Vec<u32>,
}

impl<'a, T> Difference<'a, T> {
    /// Of what the array is to hold from what it holds. If that is not known, each element is one or the
    /// other.
    fn of(former: Option<&'a ById<T>>, desired: &'a ById<T>, length: u32) -> Self {
        let mut difference = Difference {
            written: Vec::new(),
            gone: Vec::new(),
        };
        let Some(former) = former else {
            difference.written = desired.iter().map(|(id, value)| (*id, value)).collect();
            difference.gone = desired.free(length).collect();
            return difference;
        };
        for change in former.changes_to(desired) {
            match change.after {
                Some(value) => difference.written.push((change.id, value)),
                None => difference.gone.push(change.id),
            }
        }
        difference
    }
}

/// Whether another set of sources may reach some service.
fn allow_changed(former: Option<&Desired>, services: &Difference<'_, Service>) -> bool {
    let Some(former) = former else {
        return true;
    };
    let before = |id| {
        former
            .services
            .get(id)
            .map_or(&[][..], |service| &service.allow)
    };
    let mut written = services.written.iter();
    written.any(|(id, service)| *before(id) != *service.allow)
        || services.gone.iter().any(|id| !before(id).is_empty())
}

impl Tables {
    /// Has the firewall asked or not, and connections that have been let in judged anew if what is let in
    /// has changed: in one word, or a packet in between would be let in by the rules before and bear the
    /// stamp of the new ones. After the policies' bits, whose packets it has metered.
    fn admit(&mut self, firewall: bool, changed: bool) -> Result<(), Error> {
        self.stamp_due |= changed;
        if self.stamp_due {
            // A packet that sees the new stamp has to see the new rules (see `array`).
            self.grace.wait()?;
        }
        let mut settings = self.settings.get(0).unwrap_or_default();
        let firewall = u32::from(firewall);
        if self.stamp_due || settings.firewall != firewall {
            settings.admission = next_admission(settings.admission);
        }
        settings.firewall = firewall;
        settings.metered =
            u32::from(firewall == 1 || settings.policies.iter().any(|&bits| bits != 0));
        self.settings.set(0, &settings);
        self.stamp_due = false;
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
    /// connection may wait for their last packets.
    fn narrow_filter(&mut self, desired: &Desired, remembered: Duration) {
        self.retired.retain(|_, gone| gone.elapsed() < remembered);
        let mut words = filter::words(self.retired.keys().copied());
        for (word, bits) in words.iter_mut().zip(desired.filter.iter()) {
            *word |= bits;
        }
        self.filter.set(0, &abi::filter { words: *words });
    }

    /// Writes the pool of full-nat addresses to the half of the array that is not in use, unless it is
    /// the one in use; says whether it has moved.
    fn write_sources(&mut self, desired: &Desired) -> Result<bool, Error> {
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
            return Ok(false);
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
        Ok(true)
    }

    fn write_backend(
        &mut self,
        id: u32,
        backend: &state::Backend,
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
            nat_pool: region(
                self.sources + backend.nat_pool.first,
                backend.nat_pool.count,
            ),
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
            // Unusable before any of it changes, and until all of it is there. Without an incarnation, no
            // connection's end is counted for it while its counts change hands.
            if live.forward != 0 {
                self.backends.set(
                    id,
                    &abi::backend {
                        generation: 0,
                        incarnation: 0,
                        usable: 0,
                        ..live
                    },
                );
                totals.retire_backend(id, live.service)?;
            }
            totals.begin_backend(id)?;
            self.backends.set(
                id,
                &abi::backend {
                    generation: 0,
                    usable: 0,
                    ..value
                },
            );
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

    /// Writes a service, of which the array holds `known` if that is not `None`. Gives back whether it has
    /// become restricted, or has ceased to be.
    fn write_service(
        &mut self,
        id: u32,
        service: &state::Service,
        known: Option<&Arc<state::Service>>,
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
        let same = known.is_some_and(|known| Arc::ptr_eq(&known.table, &service.table));
        if !same && !self.maglev.holds(live.table, &service.table) {
            value.table = self
                .maglev
                .write(&service.name, &service.table, &self.grace)?;
        }
        self.services.set(id, &value);
        if value.table != live.table {
            self.maglev.release(live.table);
        }
        Ok(live.restricted != value.restricted)
    }

    /// Frees the id of a service.
    fn clear_service(&mut self, id: u32) {
        let live = self.services.get(id).unwrap_or_default();
        if self.services.set(id, &abi::service::default()) {
            self.maglev.release(live.table);
        }
    }

    /// Frees the id of a backend.
    fn clear_backend(&mut self, id: u32, totals: &mut Totals) -> Result<(), Error> {
        let live = self.backends.get(id).unwrap_or_default();
        if abi::bytes_of(&live) == abi::bytes_of(&abi::backend::default()) {
            return Ok(());
        }
        // Unusable before its next hop goes. Not to the first interface: a packet may be past the look at the
        // generation.
        let nowhere = abi::hop {
            mac: [0; 6],
            slot: abi::xdplb_limit::NO_SLOT.0 as u16,
        };
        self.backends.set(
            id,
            &abi::backend {
                generation: 0,
                usable: 0,
                ..live
            },
        );
        let gone = abi::backend {
            hop: nowhere,
            ..Default::default()
        };
        if self.backends.set(id, &gone) {
            self.retired
                .insert(address_of(live.address), Instant::now());
            totals.retire_backend(id, live.service)?;
        }
        Ok(())
    }
}

/// The number of the next admission: another one, and never 0, which stands for no rules.
fn next_admission(admission: u32) -> u32 {
    let step = 1 << abi::xdplb_limit::RULE_BITS.0;
    admission.wrapping_add(step).max(step)
}

/// How many new flows each CPU may record in a second, of each kind. A flood of them pushes half-open
/// connections out of the table: it is to take four seconds for all of it, in which the backends' answers
/// take those of real clients out of danger. A flood that arrives on one CPU has only that one's share, so
/// that more than a few are not counted: network cards rarely spread packets over more queues.
fn new_flows(limits: &Limits, cpus: usize) -> u32 {
    const SECONDS: u32 = 4;
    const MOST_CPUS: usize = 16;
    const LEAST: u32 = 100;
    let cpus = cpus.clamp(1, MOST_CPUS) as u32;
    (limits.connections / SECONDS / cpus).max(LEAST)
}

/// How long an entry may go on without a packet in any state.
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
    fn a_flood_takes_four_seconds_to_fill_the_table() {
        let limits = Limits::default();
        for (cpus, rate) in [
            (0, 250_000),
            (1, 250_000),
            (2, 125_000),
            (16, 15_625),
            (512, 15_625),
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
