//! The datapath as the rest of the program sees it: load, attach, fill, look, sweep.
//!
//! The only part that knows libbpf. What the maps are to hold comes from [`crate::state`] as plain
//! values; the layouts are in `include/xdp_lb.h`.

pub mod abi;
mod allowed;
mod apply;
mod array;
mod attach;
mod batch;
pub mod clock;
pub mod connections;
mod ends;
mod error;
mod firewall;
mod grace;
mod grow;
pub(crate) mod link;
pub(crate) mod load;
mod maglev;
pub mod memory;
mod percpu;
pub mod pins;
mod policies;
pub mod reasons;
mod sizes;
pub mod sweep;
mod syscall;
mod totals;
mod trie;
pub mod view;
mod vips;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::sync::{Mutex, Weak};
use std::time::Instant;

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{MapCore, MapHandle, OpenObject, ProgramMut};

use crate::config::{self, Limits};
use crate::nat_ports;
use crate::state::{self, Desired, Needs};
pub use apply::Settings;
use array::Array;
pub use attach::Interface;
use clock::Clock;
pub use error::Error;
use grace::Grace;
pub use grow::{lock, SharedSweeper};
pub use link::Mode;
use pins::PinDir;
pub use view::View;

#[allow(
    missing_docs,
    non_camel_case_types,
    dead_code,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/xdp_lb.skel.rs"));
}

use skeleton::{OpenXdpLbSkel, XdpLbSkel, XdpLbSkelBuilder};

/// The loaded datapath. Dropping it detaches it from all interfaces and removes its pins.
pub struct Datapath {
    // Before the links and pins, so that it goes last: fields are dropped in order.
    interfaces: BTreeMap<u16, attach::Known>,
    pins: Option<PinDir>,
    tables: Tables,
    firewall: firewall::FirewallMaps,
    allowed: allowed::Allowed,
    policies: policies::Policies,
    totals: totals::Totals,
    /// The plan that the maps hold as a whole. `None`: that is not known.
    in_force: Option<Desired>,
    limits: Limits,
    /// Those that there could be, as the per-CPU maps count them.
    cpus: usize,
    clock: Clock,
    /// The hash state by which full-nat draws source ports.
    nat_secret: u64,
    /// Those who sweep these maps.
    sweepers: Vec<Weak<Mutex<sweep::Sweeper>>>,
    skeleton: XdpLbSkel<'static>,
}

/// The arrays that are written through memory, and the state of their use.
struct Tables {
    settings: Array<abi::settings>,
    filter: Array<abi::filter>,
    services: Array<abi::service>,
    backends: Array<abi::backend>,
    maglev: maglev::MaglevTables,
    nat_pool: Array<abi::nat_address>,
    interfaces: Array<abi::interface>,
    /// Where in `nat_pool` the pool in use begins.
    sources: u32,
    /// Packets may still be on their way through the other half of it.
    sources_released: bool,
    /// What is let in has changed, and the stamp of connections does not say so yet.
    stamp_due: bool,
    grace: Grace,
    /// Addresses of backends that the plans no longer have, and since when.
    retired: BTreeMap<IpAddr, Instant>,
}

// The rest of the program has the same limits as the datapath was compiled with.
const _: () = {
    use abi::xdplb_limit as limit;
    assert!(config::INTERFACE_LIMIT == limit::SLOT_LIMIT.0 as usize);
    assert!(config::ADDRESS_LIMIT == limit::NAT_POOL_LIMIT.0 as usize);
    assert!(nat_ports::HOLD.as_secs() == limit::PORT_HOLD_SECONDS.0 as u64);
    assert!(config::NAME_LIMIT + 1 == limit::NAME_LENGTH.0 as usize);
    assert!(state::NAT_POOL_LIMIT == limit::NAT_POOL_LIMIT.0 as usize);
    assert!(state::filter::WORDS == limit::FILTER_WORDS.0 as usize);
    assert!(config::POLICY_LIMIT == limit::POLICY_LIMIT.0 as usize);
    assert!(state::firewall::PREFIX_LIMIT == limit::PREFIX_LIMIT.0 as usize);
    assert!(state::firewall::LEVEL_LIMIT == limit::LEVEL_LIMIT.0 as usize);
    assert!(state::firewall::DEFAULT_ID == limit::DEFAULT_RULE.0);
};

/// The datapath's object, not loaded yet, with its maps as large as they have to be. Needs no privileges.
fn open_sized<'a>(
    object: &'a mut MaybeUninit<OpenObject>,
    limits: &Limits,
    needs: &Needs,
) -> Result<OpenXdpLbSkel<'a>, Error> {
    let mut open = XdpLbSkelBuilder::default()
        .open(object)
        .map_err(load::refused)?;
    let sizes = sizes::sizes(limits, needs, 0);
    for mut map in open.open_object_mut().maps_mut() {
        if let Some(size) = sizes.iter().find(|size| map.name() == size.map) {
            map.set_max_entries(size.created).map_err(load::refused)?;
        }
    }
    Ok(open)
}

/// The programs and their maps in the kernel, whatever the maps hold. A load takes a second, nearly all of
/// it the verifier's.
pub struct Loaded {
    limits: Limits,
    skeleton: XdpLbSkel<'static>,
}

impl Loaded {
    /// Creates the maps, with room for any file within `limits`, and loads the programs.
    ///
    /// # Errors
    /// When the kernel refuses, with its message.
    pub fn load(limits: &Limits) -> Result<Self, Error> {
        Self::load_for(limits, &Needs::everything(limits))
    }

    /// Creates the maps, with room for what `needs` says, and loads the programs.
    ///
    /// # Errors
    /// As [`Loaded::load`].
    pub fn load_for(limits: &Limits, needs: &Needs) -> Result<Self, Error> {
        load::begin();
        // The skeleton borrows from its object for as long as it lives, which is as long as we do: a few
        // bytes for each load.
        let object = Box::leak(Box::new(MaybeUninit::uninit()));
        let skeleton = open_sized(object, limits, needs)?
            .load()
            .map_err(load::refused)?;
        Ok(Loaded {
            limits: *limits,
            skeleton,
        })
    }

    /// Second handles to all maps.
    ///
    /// # Errors
    /// When the kernel refuses to duplicate one.
    pub fn maps(&self) -> Result<Vec<MapHandle>, Error> {
        let maps = self.skeleton.object().maps();
        maps.map(|map| duplicate(&map)).collect()
    }
}

impl Datapath {
    /// Creates the maps, with room for any file within `limits`, and loads the programs. Nothing is attached or
    /// pinned yet.
    ///
    /// # Errors
    /// When the kernel refuses, with its message.
    pub fn load(limits: &Limits) -> Result<Self, Error> {
        Self::over(Loaded::load(limits)?)
    }

    /// The same with room for what `needs` says. A plan that needs more has the maps made larger.
    ///
    /// # Errors
    /// As [`Datapath::load`].
    pub fn load_for(limits: &Limits, needs: &Needs) -> Result<Self, Error> {
        Self::over(Loaded::load_for(limits, needs)?)
    }

    /// Over programs that are loaded already, and maps that are as a load leaves them.
    ///
    /// # Errors
    /// When a map is not of the shape that is known here, or cannot be mapped into memory.
    pub fn over(loaded: Loaded) -> Result<Self, Error> {
        let Loaded { limits, skeleton } = loaded;
        let maps = &skeleton.maps;
        let tables = Tables {
            settings: Array::map(&maps.settings)?,
            filter: Array::map(&maps.filter)?,
            services: Array::map(&maps.services)?,
            backends: Array::map(&maps.backends)?,
            maglev: maglev::MaglevTables::new(Array::map(&maps.maglev)?),
            nat_pool: Array::map(&maps.nat_pool)?,
            interfaces: Array::map(&maps.interfaces)?,
            sources: 0,
            sources_released: false,
            stamp_due: false,
            grace: Grace::new()?,
            retired: BTreeMap::new(),
        };
        let map = |name: &str| handle(&skeleton, name);
        let (firewall, allowed) = (
            firewall::FirewallMaps::new(map)?,
            allowed::Allowed::new(map("allowed_sources")?),
        );
        let (policies, totals) = (policies::Policies::new(map)?, totals::Totals::new(map)?);
        let cpus = libbpf_rs::num_possible_cpus().map_err(load::refused)?;
        let clock = Clock::read(&skeleton.progs.clock)?;
        Ok(Datapath {
            interfaces: BTreeMap::new(),
            pins: None,
            tables,
            firewall,
            allowed,
            policies,
            totals,
            in_force: None,
            limits,
            cpus,
            clock,
            // Keyed from the system's random numbers, for each new one.
            nat_secret: RandomState::new().build_hasher().finish(),
            sweepers: Vec::new(),
            skeleton,
        })
    }

    /// Detaches it and gives back the programs and maps, with what the maps hold by now. Pins are removed,
    /// but libbpf would not make them a second time.
    pub fn into_loaded(self) -> Loaded {
        Loaded {
            limits: self.limits,
            skeleton: self.skeleton,
        }
    }

    /// Pins every map under `pins`, which then belongs to this datapath.
    ///
    /// # Errors
    /// When a pin cannot be made; those made before it are removed.
    pub fn pin(&mut self, pins: PinDir) -> Result<(), Error> {
        self.pins.insert(pins).pin_maps(self.skeleton.object_mut())
    }

    /// The datapath's clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Reads the clock again, and has `settings` say so: others go on from there.
    ///
    /// # Errors
    /// When the kernel refuses; what was known of it stays.
    pub fn read_clock(&mut self) -> Result<(), Error> {
        self.clock = Clock::read(&self.skeleton.progs.clock)?;
        let settings = &mut self.tables.settings;
        if let Some(live) = settings.get(0).filter(|live| live.hz != 0) {
            let value = abi::settings {
                clock_zero: self.clock.zero,
                ..live
            };
            settings.set(0, &value);
        }
        Ok(())
    }

    /// The packet program, for running it over packets.
    pub fn program(&self) -> &ProgramMut<'static> {
        &self.skeleton.progs.xdp_lb
    }

    /// How many packets full-nat found no source port for, since the load.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn ports_exhausted(&self) -> Result<u64, Error> {
        view::read_counter(&self.skeleton.maps.counters, abi::reason::REASON_NO_PORT.0)
    }

    /// A second handle to a map, by name; `None` if there is no such map.
    ///
    /// # Errors
    /// When the kernel refuses to duplicate it.
    pub fn map(&self, name: &str) -> Result<Option<MapHandle>, Error> {
        find_map(&self.skeleton, name)
    }
}

fn find_map(skeleton: &XdpLbSkel<'_>, name: &str) -> Result<Option<MapHandle>, Error> {
    let mut maps = skeleton.object().maps();
    maps.find(|map| map.name() == name)
        .map(|map| duplicate(&map))
        .transpose()
}

fn duplicate(map: &libbpf_rs::Map<'_>) -> Result<MapHandle, Error> {
    MapHandle::try_from(map).map_err(|error| Error::map(map, "open", io::Error::other(error)))
}

/// A handle to a map that has to be there.
fn handle(skeleton: &XdpLbSkel<'_>, name: &str) -> Result<MapHandle, Error> {
    find_map(skeleton, name)?.ok_or_else(|| Error::Layout { map: name.into() })
}
