//! The addresses that packets to backends come from: full-nat's pool, and the outer source of tunnels.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Range;

use super::{OwnAddress, PlanError, PoolSlice, NAT_POOL_LIMIT};
use crate::config::{Config, Family, Forward, Prefix};

/// Where packets for a backend may come from.
#[derive(Debug, Clone, Default)]
pub(super) struct SourceAddresses {
    /// The full-nat source pool: [`Addresses`], of which the backends of an interface have a slice.
    pool: Addresses,
    /// Outer sources that the file gives, by preference.
    given: Vec<Prefix>,
    /// Our own addresses, for tunnels without a given one.
    own: Addresses,
}

impl SourceAddresses {
    /// # Errors
    /// When full-nat has more addresses than the pool holds.
    pub fn new(config: &Config, own: &[OwnAddress]) -> Result<Self, PlanError> {
        let own = Addresses::own(config, own);
        let listed = &config.datapath.addresses;
        let full_nat = |forward| forward == Forward::FullNat;
        let pool = if !config.services.iter().any(|s| full_nat(s.forward)) {
            // Nothing sends from it: changes of addresses need not reach the map.
            Addresses::default()
        } else if listed.is_empty() {
            own.clone()
        } else {
            // Of no interface in particular, so that each has them all.
            Addresses::sorted(
                listed
                    .iter()
                    .map(|&address| (Family::of(address), 0, address)),
            )
        };
        if pool.0.len() > NAT_POOL_LIMIT {
            return Err(PlanError::NatPool {
                count: pool.0.len(),
            });
        }
        let listed = listed.iter().copied().map(Prefix::of);
        Ok(SourceAddresses {
            pool,
            given: config.tunnel.source.iter().copied().chain(listed).collect(),
            own,
        })
    }

    /// The full-nat source pool, in the order that ranges count in.
    pub fn pool(&self) -> Vec<IpAddr> {
        self.pool.0.iter().map(|(_, _, address)| *address).collect()
    }

    /// The source addresses for a full-nat backend of that family behind the interface slot `slot`.
    pub fn range(&self, family: Family, slot: u16) -> PoolSlice {
        let Range { start, end } = self.pool.nearest(family, slot);
        PoolSlice {
            first: start as u32,
            count: (end - start) as u32,
        }
    }

    /// The outer source towards a backend of that family behind the interface slot `slot`.
    pub fn outer(&self, family: Family, slot: u16) -> Option<Prefix> {
        let given = self.given.iter().copied();
        let own = &self.own.0[self.own.nearest(family, slot)];
        given
            .chain(own.iter().map(|(_, _, address)| Prefix::of(*address)))
            .find(|source| Family::of(source.address()) == family)
    }
}

/// Addresses of ours with the slot of their interface, in an order that has each set which a backend may
/// need in one piece.
#[derive(Debug, Clone, Default)]
struct Addresses(Vec<(Family, u16, IpAddr)>);

impl Addresses {
    /// A VIP may be one of our addresses too, but replies to it would come to whichever instance its
    /// route leads to. Only a host that has no other address sends from it.
    fn own(config: &Config, own: &[OwnAddress]) -> Self {
        let vips: BTreeSet<&IpAddr> = config
            .services
            .iter()
            .flat_map(|service| &service.vips)
            .collect();
        Addresses::sorted(Family::ALL.into_iter().flat_map(|family| {
            let (shared, ours): (Vec<&OwnAddress>, Vec<&OwnAddress>) = own
                .iter()
                .filter(|source| {
                    Family::of(source.address) == family && can_send_from(source.address)
                })
                .partition(|source| vips.contains(&source.address));
            let usable = if ours.is_empty() { shared } else { ours };
            usable
                .into_iter()
                .map(move |source| (family, source.slot, source.address))
        }))
    }

    fn sorted(entries: impl Iterator<Item = (Family, u16, IpAddr)>) -> Self {
        let entries: BTreeSet<_> = entries.collect();
        Addresses(entries.into_iter().collect())
    }

    /// Those of the interface slot `slot`, or else those of all interfaces.
    fn nearest(&self, family: Family, slot: u16) -> Range<usize> {
        let between = |from: (Family, u16), to: (Family, u16)| {
            let place = |entry: &(Family, u16, IpAddr)| (entry.0, entry.1);
            self.0.partition_point(|entry| place(entry) < from)
                ..self.0.partition_point(|entry| place(entry) <= to)
        };
        let own = between((family, slot), (family, slot));
        if own.is_empty() {
            between((family, 0), (family, u16::MAX))
        } else {
            own
        }
    }
}

/// Whether this address of ours can be reached from other machines.
fn can_send_from(address: IpAddr) -> bool {
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}
