//! Single values: the type, form and range of each, apart from the rest of the file.
//!
//! Every function returns the value or its fault, worded so that it follows the key:
//! "port" + "is 0; ports are 1 to 65535".

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::document::kind;
use super::keyword::Keyword;
use super::report::quoted;
use super::{duration, MacAddress, PortRange, Prefix, RuleProtocol, NAME_LIMIT, TCP_FLAGS};
use crate::number;
use crate::prefix::ParseError;

/// The longest timeout.
const LONGEST: Duration = Duration::from_secs(10 * 24 * 3600);
/// `IFNAMSIZ` less the NUL.
const INTERFACE_NAME_LIMIT: usize = 15;

/// TCP flags, RFC 9293.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The purpose of an address: decides which are refused, and the advice in the message.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Role {
    Vip,
    Backend,
    Own,
}

fn string<'a>(value: &'a DeValue, example: &str) -> Result<&'a str, String> {
    value
        .as_str()
        .ok_or_else(|| format!("is {}; write a string such as {example}", kind(value)))
}

pub(super) fn integer(value: &DeValue, range: RangeInclusive<i64>) -> Result<i64, String> {
    let (first, last) = range.clone().into_inner();
    let DeValue::Integer(integer) = value else {
        return Err(format!(
            "is {}; write a number from {first} to {last}",
            kind(value)
        ));
    };
    i64::from_str_radix(integer.as_str(), integer.radix())
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("is {integer}; write a number from {first} to {last}"))
}

/// An integer that is at most what its type can hold.
pub(super) fn count(value: &DeValue, range: RangeInclusive<u32>) -> Result<u32, String> {
    let (first, last) = range.into_inner();
    // A number in range fits by construction.
    integer(value, first.into()..=last.into()).map(|number| u32::try_from(number).unwrap_or(last))
}

/// Likewise in 16 bits.
pub(super) fn short(value: &DeValue, range: RangeInclusive<u16>) -> Result<u16, String> {
    let (first, last) = range.into_inner();
    integer(value, first.into()..=last.into()).map(|number| u16::try_from(number).unwrap_or(last))
}

/// `dos.limit`, `dos.burst`. Above, the time between two packets is too short for the datapath's clock.
pub(super) fn packets(value: &DeValue) -> Result<u32, String> {
    count(value, 1..=10_000_000)
}

pub(super) fn boolean(value: &DeValue) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| format!("is {}; write true or false, without quotes", kind(value)))
}

pub(super) fn hash_seed(value: &DeValue) -> Result<u64, String> {
    // TOML has no integers above this, nor have other programs that may edit the file.
    integer(value, 0..=i64::MAX).map(i64::unsigned_abs)
}

pub(super) fn keyword<K: Keyword>(value: &DeValue) -> Result<K, String> {
    let words = || {
        K::WORDS
            .iter()
            .map(|(word, _)| format!("{word:?}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let Some(text) = value.as_str() else {
        return Err(format!("is {}; write one of {}", kind(value), words()));
    };
    K::WORDS
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, meaning)| *meaning)
        .ok_or_else(|| format!("is {}; write one of {}", quoted(text), words()))
}

/// The name of a service, a backend, a rule or a policy: fits the maps, and stands in one column of a list.
pub(super) fn name(value: &DeValue) -> Result<String, String> {
    let text = string(value, "\"web\"")?;
    let printable = |c: char| {
        !c.is_whitespace() && (matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1)
    };
    if text.is_empty() || text.len() > NAME_LIMIT {
        return Err(format!(
            "is {}, {} bytes long; a name has 1 to {NAME_LIMIT}",
            quoted(text),
            text.len()
        ));
    }
    match text.chars().find(|c| !printable(*c)) {
        Some(c) => Err(format!(
            "is {}; leave out the {c:?}, a name has only printable characters and no spaces",
            quoted(text)
        )),
        None => Ok(text.to_owned()),
    }
}

/// The name of a network interface, by the kernel's rules.
pub(super) fn interface(value: &DeValue) -> Result<String, String> {
    let text = string(value, "\"eth0\"")?;
    let forbidden = |c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control();
    let length = 1..=INTERFACE_NAME_LIMIT;
    if length.contains(&text.len()) && !text.contains(forbidden) && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    Err(format!(
        "is {}, which no interface can be called; write a name that `ip link` shows \
         (1 to {INTERFACE_NAME_LIMIT} bytes, no \"/\", \":\" or spaces)",
        quoted(text)
    ))
}

pub(super) fn pin_directory(value: &DeValue) -> Result<PathBuf, String> {
    directory(
        value,
        "an absolute path on a bpffs such as",
        "\"/sys/fs/bpf/xdplb\"",
    )
}

pub(super) fn run_directory(value: &DeValue) -> Result<PathBuf, String> {
    /// Room for the name of the socket, sun_path of unix(7).
    const LONGEST: usize = 107 - "/control.sock".len();
    let path = directory(value, "an absolute path such as", "\"/run/xdplb\"")?;
    let length = path.as_os_str().len();
    if length > LONGEST {
        return Err(format!(
            "is {length} bytes long, and a socket's name leaves room for {LONGEST}; write a shorter path"
        ));
    }
    Ok(path)
}

fn directory(value: &DeValue, form: &str, example: &'static str) -> Result<PathBuf, String> {
    let text = string(value, example)?;
    if text.starts_with('/') && !text.contains('\0') {
        return Ok(PathBuf::from(text));
    }
    Err(format!("is {}; write {form} {example}", quoted(text)))
}

/// A file, absolute or from where the configuration is.
pub(super) fn file(value: &DeValue) -> Result<String, String> {
    let text = string(value, "\"/etc/xdplb/blocklist.txt\"")?;
    if text.is_empty() || text.contains('\0') {
        return Err(format!(
            "is {}; write the path of a file such as \"/etc/xdplb/blocklist.txt\"",
            quoted(text)
        ));
    }
    Ok(text.to_owned())
}

pub(super) fn timeout(value: &DeValue) -> Result<Duration, String> {
    const FORM: &str = "a number and a unit: \"500ms\", \"30s\", \"10m\", \"1h\"";
    let text = match value {
        DeValue::String(text) => text,
        DeValue::Integer(number) => {
            return Err(format!("is {number} without a unit; write {FORM}"))
        }
        other => return Err(format!("is {}; write {FORM}", kind(other))),
    };
    let duration = duration::parse(text)
        .ok_or_else(|| format!("is {}, which is not a duration; write {FORM}", quoted(text)))?;
    if duration.is_zero() || duration > LONGEST {
        let longest = duration::format(LONGEST);
        return Err(format!(
            "is {text:?}; write more than 0 and at most \"{longest}\" (10 days)"
        ));
    }
    Ok(duration)
}

/// The forms of ports, for messages.
const PORTS: &str = "a port such as 80, a range such as \"8000-8010\", or \"any\"";

/// One element of `service.port`, or all of it.
pub(super) fn ports(value: &DeValue) -> Result<PortRange, String> {
    let text = match value {
        DeValue::Integer(_) => {
            return short(value, 1..=u16::MAX).map(|port| PortRange {
                first: port,
                last: port,
            });
        }
        DeValue::String(text) => text.as_ref(),
        other => return Err(format!("is {}; write {PORTS}", kind(other))),
    };
    if text == "any" {
        return Ok(PortRange::ANY);
    }
    let port = port_number;
    if let Some(port) = port(text) {
        return Err(format!(
            "is the string {text:?}; write {port} without quotes"
        ));
    }
    if let Some(meant) = number::without_leading_zeros(text).filter(|meant| port(meant).is_some()) {
        return Err(format!("is {text:?}, with leading zeros; write {meant}"));
    }
    let Some(ends) = text.split_once('-') else {
        return Err(wrong_ports(text));
    };
    match (port(ends.0), port(ends.1)) {
        (Some(first), Some(last)) if first <= last => Ok(PortRange { first, last }),
        (Some(first), Some(last)) => Err(format!(
            "is {text:?}, which is backwards; write \"{last}-{first}\""
        )),
        _ => {
            let plain = |end| number::without_leading_zeros(end).unwrap_or(end);
            let meant = (plain(ends.0), plain(ends.1));
            if meant == ends || port(meant.0).is_none() || port(meant.1).is_none() {
                return Err(wrong_ports(text));
            }
            Err(format!(
                "is {text:?}, with leading zeros; write \"{}-{}\"",
                meant.0, meant.1
            ))
        }
    }
}

fn wrong_ports(text: &str) -> String {
    format!("is {}; write {PORTS} (ports are 1 to 65535)", quoted(text))
}

fn port_number(text: &str) -> Option<u16> {
    number::parse(text).filter(|port| *port > 0)
}

/// The ports of a rule, which are those of a service or one port in quotes.
pub(super) fn rule_ports(value: &DeValue) -> Result<PortRange, String> {
    match value.as_str().and_then(port_number) {
        Some(port) => Ok(PortRange {
            first: port,
            last: port,
        }),
        None => ports(value),
    }
}

pub(super) fn rule_protocol(value: &DeValue) -> Result<RuleProtocol, String> {
    const FORM: &str =
        "\"any\", \"tcp\", \"udp\", \"icmp\", or the number of a protocol from 0 to 255";
    let text = match value {
        DeValue::Integer(_) => {
            let number = short(value, 0..=u8::MAX.into())?;
            return Ok(RuleProtocol::Number(
                u8::try_from(number).unwrap_or(u8::MAX),
            ));
        }
        DeValue::String(text) => text.as_ref(),
        other => return Err(format!("is {}; write {FORM}", kind(other))),
    };
    match text {
        "any" => Ok(RuleProtocol::Any),
        "tcp" => Ok(RuleProtocol::TCP),
        "udp" => Ok(RuleProtocol::UDP),
        "icmp" => Ok(RuleProtocol::Icmp),
        _ => match (number::parse(text), number::without_leading_zeros(text)) {
            (Some(number), _) => Ok(RuleProtocol::Number(number)),
            (None, Some(meant)) if number::parse::<u8>(meant).is_some() => {
                Err(format!("is {text:?}, with leading zeros; write {meant}"))
            }
            _ => Err(format!("is {}; write {FORM}", quoted(text))),
        },
    }
}

/// The flags that have to be set, as a mask and the value under it: a SYN without ACK unless ACK
/// is named too, since "syn" means those that open connections.
pub(super) fn tcp_flags(value: &DeValue) -> Result<(u8, u8), String> {
    let form = || {
        let names = TCP_FLAGS.map(|(name, _)| name).join(", ");
        format!("flags such as \"syn\", \"syn,ack\" or [\"syn\", \"ack\"], of {names}")
    };
    let named = |text: &str| -> Result<u8, String> {
        text.split([',', '+']).try_fold(0, |set, name| {
            let name = name.trim();
            let known = TCP_FLAGS.iter().find(|(known, _)| *known == name);
            let (_, bit) = known.ok_or_else(|| format!("is {}; write {}", quoted(text), form()))?;
            Ok(set | bit)
        })
    };
    let wrong = |value: &DeValue| format!("is {}; write {}", kind(value), form());
    let set = match value {
        DeValue::String(text) => named(text)?,
        DeValue::Array(list) => list.iter().try_fold(0, |set, element| {
            let element = element.get_ref();
            let text = element.as_str().ok_or_else(|| wrong(element))?;
            Ok::<u8, String>(set | named(text)?)
        })?,
        other => return Err(wrong(other)),
    };
    if set == 0 {
        return Err(format!(
            "is an empty list; write {}, or leave this key out to count every packet",
            form()
        ));
    }
    let opening = set & (SYN | ACK) == SYN;
    Ok((if opening { set | ACK } else { set }, set))
}

pub(super) fn vip(value: &DeValue) -> Result<IpAddr, String> {
    address(value, Role::Vip)
}

pub(super) fn backend_address(value: &DeValue) -> Result<IpAddr, String> {
    address(value, Role::Backend)
}

pub(super) fn own_address(value: &DeValue) -> Result<IpAddr, String> {
    address(value, Role::Own)
}

/// An element of `tunnel.source`: an address of this host, or a prefix all of whose addresses could be.
pub(super) fn source(value: &DeValue) -> Result<Prefix, String> {
    let text = string(value, "\"192.0.2.1\" or \"172.16.0.0/16\"")?;
    let prefix = parse_prefix(text)?;
    check_unicast(prefix.address(), Role::Own)?;
    check_unicast(prefix.last(), Role::Own)
        .map_err(|fault| format!("is {text:?}, whose last address {fault}"))?;
    Ok(prefix)
}

/// A prefix of source addresses, of any kind.
pub(super) fn prefix(value: &DeValue) -> Result<Prefix, String> {
    parse_prefix(string(value, "\"198.51.100.0/24\"")?)
}

/// Likewise, or `None` for "any".
pub(super) fn rule_source(value: &DeValue) -> Result<Option<Prefix>, String> {
    match string(value, "\"198.51.100.0/24\" or \"any\"")? {
        "any" => Ok(None),
        text => parse_prefix(text).map(Some),
    }
}

fn parse_prefix(text: &str) -> Result<Prefix, String> {
    text.parse()
        .map_err(|error: ParseError| format!("is {}, which {error}", quoted(text)))
}

/// A unicast address that packets can have on a network.
fn address(value: &DeValue, role: Role) -> Result<IpAddr, String> {
    let text = string(value, "\"192.0.2.1\" or \"2001:db8::1\"")?;
    let address: IpAddr = text.parse().map_err(|_| {
        format!(
            "is {}, which is not an address; write an IPv4 or IPv6 address without a port, a prefix \
             length or a zone",
            quoted(text)
        )
    })?;
    check_unicast(address, role)?;
    Ok(address)
}

fn check_unicast(address: IpAddr, role: Role) -> Result<(), String> {
    let fault = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_multicast() => "a multicast address",
        _ if address.is_loopback() => "a loopback address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "the broadcast address",
        // Packets from elsewhere must not be forwarded to one (RFC 3927, section 2.7).
        IpAddr::V4(v4) if role == Role::Backend && v4.is_link_local() => "a link-local address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => {
                return Err(format!(
                    "is {v6}, an IPv4 address in IPv6 notation; write \"{v4}\""
                ))
            }
            None => return Ok(()),
        },
        IpAddr::V4(_) => return Ok(()),
    };
    let remedy = match role {
        Role::Vip => "write the unicast address that clients connect to",
        Role::Backend => "write the backend's own unicast address on the network",
        Role::Own => "write a unicast address of this host that the backends can reach",
    };
    Err(format!("is {address}, {fault}; {remedy}"))
}

pub(super) fn mac(value: &DeValue) -> Result<MacAddress, String> {
    let text = string(value, "\"52:54:00:23:a4:5c\"")?;
    let octet = |text: &str| {
        let hex = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u8::from_str_radix(text, 16).ok().filter(|_| hex)
    };
    let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
    let mac = octets
        .and_then(|octets| <[u8; 6]>::try_from(octets).ok())
        .ok_or_else(|| {
            format!(
                "is {}; write six pairs of hex digits: \"52:54:00:23:a4:5c\"",
                quoted(text)
            )
        })?;
    // The lowest bit of the first octet marks a group (IEEE 802).
    if mac == [0; 6] || mac[0] & 1 == 1 {
        return Err(format!(
            "is {text:?}, which is a group address or all zeros; write the MAC address of one machine"
        ));
    }
    Ok(MacAddress(mac))
}
