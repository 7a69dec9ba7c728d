//! What a plan was made from, as far as the next one needs it: which place in the file each id stands for.
//!
//! It says nothing of what the maps are to hold, so that two plans are equal whatever their origins.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::own_addresses::SourceAddresses;
use super::OwnAddress;

/// The origin of a plan. One that was not made by [`super::plan()`] has none.
#[derive(Clone, Default)]
pub struct Origin(Option<Arc<Places>>);

struct Places {
    own_addresses: Vec<OwnAddress>,
    sources: SourceAddresses,
    /// Sorted by address.
    backends: Vec<Place>,
    /// By id of the service.
    services: BTreeMap<u32, Membership>,
}

/// Where a backend of the plan stands in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub address: IpAddr,
    /// Its id.
    pub id: u32,
    /// Position of its service in the file.
    pub service: usize,
    /// Its position in that service.
    pub backend: usize,
}

/// One address family of a service.
#[derive(Debug, Clone)]
pub(super) struct Membership {
    /// Position in the file.
    pub service: usize,
    /// Slots of its table, if it has one.
    pub size: u32,
    /// Ids of its backends, ascending.
    pub backends: Vec<u32>,
}

impl Origin {
    pub(super) fn new(
        own_addresses: Vec<OwnAddress>,
        sources: SourceAddresses,
        mut backends: Vec<Place>,
        services: BTreeMap<u32, Membership>,
    ) -> Self {
        backends.sort_unstable_by_key(|place| place.address);
        Origin(Some(Arc::new(Places {
            own_addresses,
            sources,
            backends,
            services,
        })))
    }

    /// Where packets may come from, if `own_addresses` are those that it was worked out from.
    pub(super) fn sources(&self, own_addresses: &[OwnAddress]) -> Option<&SourceAddresses> {
        let places = self.0.as_ref()?;
        (places.own_addresses == own_addresses).then_some(&places.sources)
    }

    /// The backends at an address.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = Place> + '_ {
        let all = self.0.as_ref().map_or(&[][..], |places| &places.backends);
        let first = all.partition_point(|place| place.address < address);
        let from = all[first..].iter().copied();
        from.take_while(move |place| place.address == address)
    }

    /// The service of that id.
    pub(super) fn service(&self, id: u32) -> Option<&Membership> {
        self.0.as_ref()?.services.get(&id)
    }
}

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Origin {}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Origin")
    }
}
