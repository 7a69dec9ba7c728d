//! Tells the operator of backends that cannot be used, and why.
//!
//! Owns what has been said already.

use std::collections::BTreeSet;
use std::net::IpAddr;

use log::{info, warn};

use super::interfaces::Interfaces;
use super::target;
use crate::config::{Config, Family, Forward};
use crate::neighbours::Network;
use crate::state::{Desired, Health};

/// Addresses of backends that cannot be used, each with the reasons that were logged.
#[derive(Default)]
pub struct Faults(BTreeSet<(IpAddr, String)>);

impl Faults {
    /// Logs what has become unusable or usable since the last time. `changed` has the addresses of the
    /// backends that may have; `None`: all may.
    pub fn check(
        &mut self,
        config: &Config,
        desired: &Desired,
        network: &Network,
        interfaces: &Interfaces,
        changed: Option<&BTreeSet<IpAddr>>,
    ) {
        let concerns = |address: &IpAddr| changed.is_none_or(|changed| changed.contains(address));
        let mut found = find(config, desired, network, interfaces, concerns);
        let known = self.0.iter().filter(|(address, _)| !concerns(address));
        found.extend(known.cloned());
        for (address, reason) in found.difference(&self.0) {
            warn!("backend {address} counts as down: {reason}");
        }
        let unusable: BTreeSet<IpAddr> = found.iter().map(|(address, _)| *address).collect();
        let known: BTreeSet<IpAddr> = self.0.iter().map(|(address, _)| *address).collect();
        let mended: BTreeSet<&IpAddr> = known.difference(&unusable).collect();
        if !mended.is_empty() {
            let configured = config.services.iter().flat_map(|service| &service.backends);
            let configured: BTreeSet<IpAddr> = configured.map(|backend| backend.address).collect();
            for address in mended
                .into_iter()
                .filter(|address| configured.contains(address))
            {
                info!("backend {address} is resolved");
            }
        }
        self.0 = found;
    }
}

/// Why backends that the file may have up count as down.
fn find(
    config: &Config,
    desired: &Desired,
    network: &Network,
    interfaces: &Interfaces,
    concerns: impl Fn(&IpAddr) -> bool,
) -> BTreeSet<(IpAddr, String)> {
    let unreachable = config.services.iter().flat_map(|service| {
        let backends = service.backends.iter();
        let backends = backends.filter(|backend| concerns(&backend.address));
        backends.filter_map(|backend| {
            let obstacle = interfaces.obstacle(network, service.forward, &target(backend))?;
            Some((backend.address, obstacle))
        })
    });
    let without_source = desired
        .backends
        .values()
        .filter(|backend| backend.health == Health::NoSource && concerns(&backend.address))
        .map(|backend| {
            let (address, forward) = (backend.address, backend.forward);
            (address, no_source(forward, Family::of(address)))
        });
    unreachable.chain(without_source).collect()
}

fn no_source(forward: Forward, family: Family) -> String {
    let keys = if forward.is_tunnel() {
        "tunnel.source or datapath.addresses"
    } else {
        "datapath.addresses"
    };
    format!(
        "{forward} has no {family} address of this host to send from; write one into {keys}, or give \
         one to an interface of datapath.interfaces"
    )
}
