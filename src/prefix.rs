//! An address prefix, as people write it: `198.51.100.0/24`, `2001:db8::/32`, or one address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

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
    #[error("is no prefix; write an address, or an address and a length: 198.51.100.0/24, 2001:db8::/32")]
    NoPrefix,
    /// The length is beyond the address.
    #[error("has a length that is no number from 0 to {most}")]
    Length {
        /// Bits of the address.
        most: u8,
    },
    /// The address has bits that the length excludes.
    #[error("has bits set beyond its length; write {network} for the network, or leave the length out for the one address")]
    HostBits {
        /// What was probably meant.
        network: Prefix,
    },
}

impl Prefix {
    /// The network that `address` is in; a length beyond the address counts as all of it.
    pub fn of(address: IpAddr, length: u8) -> Prefix {
        match address {
            IpAddr::V4(v4) => {
                let length = length.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                Prefix {
                    address: Ipv4Addr::from_bits(v4.to_bits() & mask).into(),
                    length,
                }
            }
            IpAddr::V6(v6) => {
                let length = length.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                Prefix {
                    address: Ipv6Addr::from_bits(v6.to_bits() & mask).into(),
                    length,
                }
            }
        }
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that count, 0 to 32 or 128.
    pub fn length(&self) -> u8 {
        self.length
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
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => most,
            // `parse` would take a sign.
            Some(digits) => Some(digits)
                .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok())
                .filter(|&length| length <= most)
                .ok_or(ParseError::Length { most })?,
        };
        let network = Prefix::of(address, length);
        if network.address != address {
            return Err(ParseError::HostBits { network });
        }
        Ok(network)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        for (text, shown) in [
            ("198.51.100.10", "198.51.100.10/32"),
            ("198.51.100.10/32", "198.51.100.10/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1", "2001:db8::1/128"),
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
        let error = "198.51.100.10/24".parse::<Prefix>().expect_err("host bits");
        assert!(error.to_string().contains("198.51.100.0/24"), "{error}");
        let error = "2001:db8::1/0".parse::<Prefix>().expect_err("host bits");
        assert!(error.to_string().contains("write ::/0"), "{error}");
    }
}
