//! The types that the maps hold, as the skeleton has them from BTF, made safe to read as bytes.
//!
//! Owns the conversions between them and Rust's own: addresses, names, flows. Field meanings and byte
//! orders are documented in `include/xdp_lb.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use super::skeleton::types::{
    allowed_key, backend, backend_health, backend_state, claim4, claim6, claim_removal,
    claim_state, client4, client6, clock_reading, conn_flag, conn_state, counter, dos_policy,
    dos_set, dos_source, echo, epoch, exchange, expiries, filter, flow4, flow6, forward_mode,
    fragment, fw_level, fw_prefix, fw_prefix_key, fw_rule, fw_step, hash_by, hits, hop, interface,
    nat_address, place4, place6, policy_hits, protocol_class, reason, record4, record6, refusal,
    rule_action, rule_kind, rule_protocol, service, session, set4, set6, settings, slots,
    spilled_removal, traffic, vip, vip_key, way_word, xdplb_limit,
};

/// Marks types without padding, references or invalid bit patterns.
macro_rules! plain {
    ($($type:ident),* $(,)?) => {
        $(
            // SAFETY: a C struct of integers and arrays of integers, of which every bit pattern is a
            // value. It has no padding: `include/xdp_lb.h` is compiled with -Wpadded as an error.
            unsafe impl plain::Plain for $type {}
        )*
    };
}

plain! {
    settings,
    filter,
    vip_key,
    vip,
    service,
    backend,
    nat_address,
    slots,
    flow4,
    flow6,
    session,
    record4,
    record6,
    set4,
    set6,
    place4,
    place6,
    client4,
    client6,
    claim4,
    claim6,
    spilled_removal,
    claim_removal,
    interface,
    traffic,
    counter,
    epoch,
    fw_prefix_key,
    fw_prefix,
    fw_level,
    fw_step,
    fw_rule,
    hits,
    allowed_key,
    dos_policy,
    policy_hits,
    dos_source,
    dos_set,
    expiries,
    fragment,
    clock_reading,
}

/// The bytes of a map's key or value.
pub fn bytes_of<T: plain::Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` is implemented above only for types without padding.
    unsafe { plain::as_bytes(value) }
}

/// A key or value from a map's bytes; `None` if there are not exactly as many as it has.
pub fn from_bytes<T: plain::Plain + Copy + Default>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != std::mem::size_of::<T>() {
        return None;
    }
    let mut value = T::default();
    plain::copy_from_bytes(&mut value, bytes).ok()?;
    Some(value)
}

/// An address as four words in network order, IPv4 mapped.
pub fn words_of(address: IpAddr) -> [u32; 4] {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(octets.chunks_exact(4)) {
        *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    }
    words
}

/// The address of four words in network order; IPv4-mapped ones come out as IPv4.
pub fn address_of(words: [u32; 4]) -> IpAddr {
    let mut octets = [0; 16];
    for (chunk, word) in octets.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    let v6 = Ipv6Addr::from(octets);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

/// The IPv4 address of a word in network order.
pub fn ipv4_of(word: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(word.to_ne_bytes()))
}

/// A name as a NUL-terminated array; what does not fit is cut off.
pub fn name_to<const N: usize>(name: &str) -> [i8; N] {
    let mut array = [0; N];
    for (to, from) in array.iter_mut().zip(name.bytes().take(N - 1)) {
        *to = i8::from_ne_bytes([from]);
    }
    array
}

/// The name in a NUL-terminated array.
pub fn name_from(array: &[i8]) -> String {
    let bytes: Vec<u8> = array
        .iter()
        .take_while(|&&c| c != 0)
        .map(|c| c.to_ne_bytes()[0])
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An offset and size in one word, as `service.table` and `backend.sources` hold them.
pub fn region(offset: u32, size: u32) -> u64 {
    u64::from(size) << 32 | u64::from(offset)
}

/// Offset and size of [`region`].
pub fn region_parts(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

/// A connection's 5-tuple of either family, ports in host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Source address and port.
    pub source: (IpAddr, u16),
    /// Destination address and port.
    pub destination: (IpAddr, u16),
    /// IP protocol number.
    pub protocol: u8,
}

impl Flow {
    /// The other direction.
    pub fn reversed(self) -> Flow {
        Flow {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
        }
    }
}

impl From<flow4> for Flow {
    fn from(flow: flow4) -> Self {
        Flow {
            source: (ipv4_of(flow.saddr), u16::from_be(flow.sport)),
            destination: (ipv4_of(flow.daddr), u16::from_be(flow.dport)),
            protocol: flow.protocol,
        }
    }
}

impl From<flow6> for Flow {
    fn from(flow: flow6) -> Self {
        Flow {
            source: (address_of(flow.saddr), u16::from_be(flow.sport)),
            destination: (address_of(flow.daddr), u16::from_be(flow.dport)),
            protocol: flow.protocol,
        }
    }
}
