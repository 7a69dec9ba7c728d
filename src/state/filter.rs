//! The address filter: one bit for each hashed address that might be ours.
//!
//! Owns the hash, which the datapath computes in the same way, and the words of the map `filter`.

use std::net::IpAddr;

/// Words of the filter, `FILTER_WORDS` of xdp_lb.h.
pub const WORDS: usize = 1024;

/// The filter as the map holds it: address bit b is bit b & 63 of word b >> 6.
pub type Words = [u64; WORDS];

/// Which of the 65,536 bits stands for an address.
///
/// The address is taken as 32-bit words as they lie in memory, as the datapath reads them from a
/// packet; IPv6's four are folded into one. The multiplier is 2^32 divided by the golden ratio (Knuth,
/// TAOCP 3, section 6.4), whose product spreads best in its high bits.
pub fn bit(address: IpAddr) -> u16 {
    let folded = match address {
        IpAddr::V4(address) => u32::from_ne_bytes(address.octets()),
        IpAddr::V6(address) => {
            let o = address.octets();
            (0..4).fold(0, |folded, word| {
                let at = 4 * word;
                let word_bits = u32::from_ne_bytes([o[at], o[at + 1], o[at + 2], o[at + 3]]);
                folded ^ word_bits.rotate_left(2 * at as u32)
            })
        }
    };
    (folded.wrapping_mul(0x9E37_79B1) >> 16) as u16
}

/// The filter that lets exactly these addresses through, and what shares a bit with one of them.
pub fn words(addresses: impl IntoIterator<Item = IpAddr>) -> Box<Words> {
    let mut words = Box::new([0; WORDS]);
    for address in addresses {
        let bit = usize::from(bit(address));
        words[bit >> 6] |= 1 << (bit & 63);
    }
    words
}
