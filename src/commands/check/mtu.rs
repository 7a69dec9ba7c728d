//! Whether this host's interfaces have room for the headers of tunnels.

use crate::config::{Backend, Config, Family, Service};
use crate::mtu::{self, Way};
use crate::neighbours::Neighbours;

/// The MTUs of these interfaces, in their order. None at all where this host lacks one of them, since
/// the file is another host's then, or where it cannot be asked.
pub(super) fn of_interfaces(interfaces: &[String]) -> Vec<u32> {
    let Ok(network) = Neighbours::open() else {
        return Vec::new();
    };
    let network = network.network();
    let mtu = |name: &String| network.link_by_name(name).map(|link| link.mtu);
    let mtus: Option<Vec<u32>> = interfaces.iter().map(mtu).collect();
    mtus.unwrap_or_default()
}

/// Warnings about interfaces that are too narrow for a tunnel; `mtus` are theirs, or none. Which of them
/// leads to a backend is known only where xdplb runs, so it warns only if even the widest is too narrow.
pub(super) fn warnings(config: &Config, mtus: &[u32]) -> impl Iterator<Item = String> {
    let interfaces = || config.datapath.interfaces.iter().zip(mtus.iter().copied());
    let way = |service: &Service, inner, backend: &Backend| {
        let (interface, mtu) = interfaces()
            .filter(|(name, _)| {
                backend
                    .interface
                    .as_ref()
                    .is_none_or(|given| given == *name)
            })
            .max_by_key(|(_, mtu)| *mtu)?;
        Some(Way {
            interface,
            mtu,
            forward: service.forward,
            outer: Family::of(backend.address),
            inner,
        })
    };
    let ways = config.services.iter().flat_map(|service| {
        service.families().flat_map(move |inner| {
            service
                .backends_for(inner)
                .filter_map(move |backend| way(service, inner, backend))
        })
    });
    let shortages = mtu::shortages(mtus.iter().copied(), ways);
    shortages.into_iter().map(|shortage| shortage.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_hosts_mtus() {
        let lo = "lo".to_owned();
        assert_eq!(of_interfaces(std::slice::from_ref(&lo)).len(), 1);
        assert!(of_interfaces(&[lo, "xdplb-none".to_owned()]).is_empty());
    }
}
