//! Writing `vips`: which service a VIP and port belong to, and what becomes of a ping.
//!
//! Owns the trie's keys and the order: it has no whole to swap, so what is new or changed goes in first, then
//! what is gone goes out.

use std::collections::HashMap;
use std::net::IpAddr;

use libbpf_rs::MapCore;

use super::abi::{self, address_of, bytes_of, from_bytes, words_of};
use super::trie::Changes;
use super::{batch, Error};
use crate::config::Protocol;
use crate::state::changes::changes;
use crate::state::ports::PortPrefix;
use crate::state::{Desired, Echo, Vip};

/// Bits of a key before the port: address, protocol, padding.
const BITS_BEFORE_PORT: u32 = 128 + 8 + 8;

type Key = [u8; size_of::<abi::vip_key>()];
type Difference = Changes<abi::vip_key, abi::vip>;

/// # Errors
/// When `desired` has more bindings than the trie has room for.
pub(super) fn check_room(map: &impl MapCore, desired: &Desired) -> Result<(), Error> {
    let (needed, room) = (desired.vips.len(), map.max_entries() as usize);
    if needed > room {
        return Err(Error::Bindings { needed, room });
    }
    Ok(())
}

/// Makes the trie what `desired` says. With the plan that it holds in `former` only what differs between the
/// two is looked at; else all that it holds is read.
///
/// # Errors
/// When there is no room for the new beside the old, or the kernel refuses a write; the trie is as it was.
pub(super) fn write(
    map: &impl MapCore,
    desired: &Desired,
    former: Option<&Desired>,
) -> Result<(), Error> {
    let (changes, held) = match former {
        Some(former) => (of_plans(former, desired), former.vips.len()),
        None => of_trie(map, desired)?,
    };
    changes.make(map, held)
}

fn of_plans(former: &Desired, desired: &Desired) -> Difference {
    let mut difference = Difference::default();
    for change in changes(&former.vips, &desired.vips, Option::eq) {
        let value = |plan, service: &Option<u32>| vip_value(plan, change.key, *service);
        let before = change.before.map(|service| value(former, service));
        let after = change.after.map(|service| value(desired, service));
        let key = vip_key(change.key);
        match (before, after) {
            (_, Some(after)) => difference.put(key, before, after),
            (Some(before), None) => difference.remove(key, before),
            (None, None) => {}
        }
    }
    for change in changes(&former.echoes, &desired.echoes, Echo::eq) {
        let alone = Vip {
            address: *change.key,
            ports: None,
        };
        // Those that come or go, or change hands, are among the VIPs above.
        let services = (former.vips.get(&alone), desired.vips.get(&alone));
        if let (Some(before), Some(after)) = services {
            difference.put(
                vip_key(&alone),
                Some(vip_value(former, &alone, *before)),
                vip_value(desired, &alone, *after),
            );
        }
    }
    difference
}

/// With how many elements the trie holds.
fn of_trie(map: &impl MapCore, desired: &Desired) -> Result<(Difference, usize), Error> {
    let mut live: HashMap<Key, abi::vip> = HashMap::new();
    batch::for_each(map, |key, value| {
        if let (Ok(key), Some(value)) = (key.try_into(), from_bytes(value)) {
            live.insert(key, value);
        }
    })?;
    let held = live.len();
    let mut difference = Difference::default();
    for (vip, service) in desired.vips.iter() {
        let (key, value) = (vip_key(vip), vip_value(desired, vip, *service));
        let known = live.remove(bytes_of(&key));
        if known.is_none_or(|known| bytes_of(&known) != bytes_of(&value)) {
            difference.put(key, known, value);
        }
    }
    for (key, value) in live {
        if let Some(key) = from_bytes(&key) {
            difference.remove(key, value);
        }
    }
    Ok((difference, held))
}

fn vip_value(desired: &Desired, vip: &Vip, service: Option<u32>) -> abi::vip {
    abi::vip {
        service: service.unwrap_or(abi::xdplb_limit::NO_SERVICE.0),
        echo: match vip.ports {
            None => desired
                .echoes
                .get(&vip.address)
                .map_or(0, |echo| echo_of(*echo).0),
            Some(_) => 0,
        },
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

/// The meaning of a key of `vips`: the address, and protocol and ports unless it is the VIP by itself.
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
