//! The ports that full-nat sends from, by what this host uses itself.

use std::fs;
use std::time::Duration;

/// How long a port stays unused after a TCP connection has closed, `PORT_HOLD_SECONDS` of xdp_lb.h: the
/// backend's TIME_WAIT, which is 60 s on Linux, and the way of its last segments.
pub const HOLD: Duration = Duration::from_secs(65);

/// Where the kernel says which ports outgoing connections of this host use (ip-sysctl).
const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Below are well-known ports.
const FIRST_PORT: u16 = 1024;

/// The source ports that full-nat may use: the larger of the two ranges beside the one from which the
/// host's own connections get theirs, so that the two never meet.
pub fn range() -> (u16, u16) {
    let (first, last) = fs::read_to_string(LOCAL_PORTS)
        .ok()
        .and_then(|text| {
            let mut numbers = text.split_whitespace().map(str::parse::<u16>);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
        })
        // The kernel's default.
        .unwrap_or((32768, 60999));
    beside(first, last)
}

fn beside(first: u16, last: u16) -> (u16, u16) {
    let below = first.saturating_sub(FIRST_PORT);
    let above = u16::MAX - last;
    match (below, above) {
        // The host uses every slot: sharing some is better than none.
        (0, 0) => (FIRST_PORT, u16::MAX),
        _ if below >= above => (FIRST_PORT, first - 1),
        _ => (last + 1, u16::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_lie_beside_the_hosts() {
        assert_eq!(beside(32768, 60999), (1024, 32767));
        assert_eq!(beside(1024, 30000), (30001, 65535));
        assert_eq!(beside(1024, 65535), (1024, 65535));
        assert_eq!(beside(0, 65535), (1024, 65535));
        assert_eq!(beside(1025, 65535), (1024, 1024));
    }
}
