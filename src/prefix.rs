//! An address prefix, as people write it: `198.51.100.0/24`, `2001:db8::/32`, or one address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::number;

/// A network address and how many of its bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// A text that is no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Neither an address nor one with a length.
    #[error("is not a prefix; write an address, or an address and a length: 198.51.100.0/24, 2001:db8::/32")]
    NoPrefix,
    /// The length is beyond the address, or no number.
    #[error(
        "has a length that is not a number from 0 to {most}; write {address} for the one address, or a \
         network with its length such as {network}"
    )]
    Length {
        /// Bits of the address.
        most: u8,
        /// A possible intention.
        address: IpAddr,
        /// Or something like this.
        network: Prefix,
    },
    /// The length has zeros in front.
    #[error("has a length with leading zeros; write {address}/{length}")]
    LeadingZeros {
        /// The address as it is.
        address: IpAddr,
        /// The length without them.
        length: String,
    },
    /// The address has bits that the length excludes.
    #[error("has bits set beyond its length; write {network} for the prefix, or {address} for the one address")]
    HostBits {
        /// The likely intention.
        network: Prefix,
        /// Or this.
        address: IpAddr,
    },
    /// IPv4-mapped (RFC 4291, section 2.5.5.2): no packet has such an address.
    #[error("is IPv4 in IPv6 notation; write {ipv4}")]
    Mapped {
        /// The likely intention.
        ipv4: Prefix,
    },
}

/// Bits of an IPv6 address that make a source.
const IPV6_SOURCE: u8 = 64;

/// The source whose packets `[[dos]]` policies count together: an IPv4 address, or an IPv6 /64.
pub fn source_of(address: IpAddr) -> Prefix {
    match address {
        IpAddr::V4(_) => Prefix::of(address),
        IpAddr::V6(_) => Prefix::covering(address, IPV6_SOURCE),
    }
}

/// How many, for people: `1 prefix`, `2 prefixes`.
pub fn count(prefixes: usize) -> String {
    number::count(prefixes as u64, "prefix", "prefixes")
}

impl Prefix {
    /// The prefix of that many bits, at most all, that the address is in.
    pub fn covering(address: IpAddr, length: u8) -> Prefix {
        let length = length.min(bits(address));
        let prefix = Prefix { address, length };
        Prefix {
            address: prefix.with_host_bits(false),
            length,
        }
    }

    /// The prefix that has only this address.
    pub const fn of(address: IpAddr) -> Prefix {
        Prefix {
            address,
            length: bits(address),
        }
    }

    /// Its first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Its last address.
    pub fn last(&self) -> IpAddr {
        self.with_host_bits(true)
    }

    /// Bits that count, 0 to 32 or 128.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Whether all addresses of the other prefix are in this one, as they are where both are the same.
    pub fn covers(&self, other: &Prefix) -> bool {
        self.length <= other.length && Prefix::covering(other.address, self.length) == *self
    }

    /// The IPv4 prefix that a part of ::ffff:0:0/96 stands for.
    fn unmapped(&self) -> Option<Prefix> {
        let length = self.length.checked_sub(MAPPED)?;
        match self.address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(Prefix {
                address: v6.to_ipv4_mapped()?.into(),
                length,
            }),
        }
    }

    /// Which of an address's last 32 bits differ between the addresses of the prefix.
    pub fn low_bits(&self) -> u32 {
        let host_bits = bits(self.address) - self.length;
        !u32::MAX.checked_shl(host_bits.into()).unwrap_or(0)
    }

    fn with_host_bits(&self, set: bool) -> IpAddr {
        let length = u32::from(self.length);
        match self.address {
            IpAddr::V4(v4) => {
                let host = u32::MAX.checked_shr(length).unwrap_or(0);
                let network = v4.to_bits() & !host;
                Ipv4Addr::from_bits(if set { network | host } else { network }).into()
            }
            IpAddr::V6(v6) => {
                let host = u128::MAX.checked_shr(length).unwrap_or(0);
                let network = v6.to_bits() & !host;
                Ipv6Addr::from_bits(if set { network | host } else { network }).into()
            }
        }
    }
}

/// Bits of an IPv4-mapped address before the IPv4 address.
const MAPPED: u8 = 96;

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

impl FromStr for Prefix {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| ParseError::NoPrefix)?;
        let most = bits(address);
        let length = match length {
            None => most,
            Some(digits) => match number::parse(digits).filter(|&length| length <= most) {
                Some(length) => length,
                None => return Err(wrong_length(address, digits)),
            },
        };
        let network = Prefix::covering(address, length);
        if network.address != address {
            return Err(ParseError::HostBits { network, address });
        }
        match network.unmapped() {
            Some(ipv4) => Err(ParseError::Mapped { ipv4 }),
            None => Ok(network),
        }
    }
}

/// Why `digits` are no length for a prefix at `address`.
fn wrong_length(address: IpAddr, digits: &str) -> ParseError {
    if let Some(length) = number::without_leading_zeros(digits) {
        return ParseError::LeadingZeros {
            address,
            length: length.to_owned(),
        };
    }
    let customary = match address {
        IpAddr::V4(_) => 24,
        IpAddr::V6(_) => 64,
    };
    ParseError::Length {
        most: bits(address),
        address,
        network: Prefix::covering(address, customary),
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.length == bits(self.address) {
            return self.address.fmt(f);
        }
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        for (text, shown) in [
            ("198.51.100.10", "198.51.100.10"),
            ("198.51.100.10/32", "198.51.100.10"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(
                text.parse::<Prefix>().map(|p| p.to_string()),
                Ok(shown.into())
            );
        }
    }

    #[test]
    fn what_is_none() {
        for text in [
            "",
            "eth0",
            "/24",
            "10.0.0/24",
            "10.0.0.0:80",
            "10.0.0.0/8/8",
            "[::1]",
        ] {
            let error = text.parse::<Prefix>().expect_err(text);
            let length = matches!(error, ParseError::Length { .. });
            assert!(error == ParseError::NoPrefix || length, "{text}: {error}");
        }
        for text in [
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "::/129",
            "::/256",
        ] {
            let error = text.parse::<Prefix>().expect_err(text);
            assert!(
                matches!(error, ParseError::Length { .. }),
                "{text}: {error}"
            );
        }
        let error = "10.9.8.7/33".parse::<Prefix>().expect_err("length");
        let expected =
            "has a length that is not a number from 0 to 32; write 10.9.8.7 for the one address, \
                        or a network with its length such as 10.9.8.0/24";
        assert_eq!(error.to_string(), expected);
        let error = "2001:db8::1/129".parse::<Prefix>().expect_err("length");
        assert!(
            error.to_string().ends_with("such as 2001:db8::/64"),
            "{error}"
        );
        for (text, meant) in [
            ("10.0.0.0/08", "10.0.0.0/8"),
            ("0.0.0.0/00", "0.0.0.0/0"),
            ("::/0128", "::/128"),
        ] {
            let error = text.parse::<Prefix>().expect_err(text);
            let expected = format!("has a length with leading zeros; write {meant}");
            assert_eq!(error.to_string(), expected);
        }
        let error = "198.51.100.10/24".parse::<Prefix>().expect_err("host bits");
        assert!(error.to_string().contains("198.51.100.0/24"), "{error}");
        let error = "2001:db8::1/0".parse::<Prefix>().expect_err("host bits");
        assert!(error.to_string().contains("write ::/0"), "{error}");
        for (text, ipv4) in [
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            let error = text.parse::<Prefix>().expect_err(text).to_string();
            let expected = format!("is IPv4 in IPv6 notation; write {ipv4}");
            assert_eq!(error, expected);
        }
        // It has other addresses as well.
        assert!("::/80".parse::<Prefix>().is_ok());
    }

    #[test]
    fn what_lies_in_what() {
        let covers = |outer: &str, inner: &str| {
            let prefix = |text: &str| text.parse::<Prefix>().expect(text);
            prefix(outer).covers(&prefix(inner))
        };
        for (outer, inner) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/8", "10.255.0.0/16"),
            ("10.0.0.0/8", "10.0.0.0/32"),
            ("0.0.0.0/0", "203.0.113.1"),
            ("::/0", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::/48"),
        ] {
            assert!(covers(outer, inner), "{outer} {inner}");
        }
        for (outer, inner) in [
            ("10.0.0.0/8", "11.0.0.0/16"),
            ("10.0.0.0/16", "10.0.0.0/8"),
            ("0.0.0.0/0", "::/0"),
            ("::/0", "192.0.2.1"),
            ("192.0.2.0/31", "192.0.2.2"),
        ] {
            assert!(!covers(outer, inner), "{outer} {inner}");
        }
    }
}
