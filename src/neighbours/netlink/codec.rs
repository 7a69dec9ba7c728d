//! Netlink messages as bytes and as plain values.
//!
//! Owns encoding and decoding, no socket. Messages from the kernel are read attribute by attribute,
//! only those that are needed: a driver's statistics or a newer kernel's attributes cannot hide a
//! link. All integers are in host byte order, addresses in network byte order, as netlink has them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{
    Emitable, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
    NLMSG_ERROR, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;

use crate::config::MacAddress;
use crate::neighbours::facts::{Concerned, Entry, Event, LinkNews, NextHop, State};
use crate::neighbours::probe::Action;
use crate::neighbours::reach::{Matched, RouteAnswer};
use crate::prefix::Prefix;

/// `linux/rtnetlink.h`; the libc crate lacks these.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

/// `linux/neighbour.h`; likewise.
const NDA_FLAGS_EXT: u16 = 15;
const NTF_EXT_MANAGED: u32 = 1;

/// Something to ask of the kernel, answered by one message.
#[derive(Debug, Clone)]
pub(in crate::neighbours) enum Request {
    Neighbour(Action),
    /// The way to an address, on this interface only if one is given.
    Way(IpAddr, Option<u32>),
    /// Likewise, the route that decides it (`RTM_F_FIB_MATCH`).
    Route(IpAddr, Option<u32>),
}

/// The kernel's answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::neighbours) enum Answer {
    Done,
    /// A positive errno.
    Refused(i32),
    Route(RouteAnswer),
}

/// A message and its type flags. Each is answered by exactly one message: a route request by the
/// route or an error, the others by an acknowledgement.
pub(super) fn build(request: &Request) -> (RouteNetlinkMessage, u16) {
    match *request {
        Request::Way(address, oif) | Request::Route(address, oif) => {
            let mut message = RouteMessage::default();
            message.header = RouteHeader {
                address_family: family(address),
                destination_prefix_length: if address.is_ipv4() { 32 } else { 128 },
                flags: match request {
                    Request::Route(..) => RouteFlags::FibMatch,
                    _ => RouteFlags::empty(),
                },
                ..RouteHeader::default()
            };
            message
                .attributes
                .push(RouteAttribute::Destination(address.into()));
            message.attributes.extend(oif.map(RouteAttribute::Oif));
            (RouteNetlinkMessage::GetRoute(message), NLM_F_REQUEST)
        }
        Request::Neighbour(action) => {
            // NTF_USE asks as a waiting packet would; only it may create the entry. The others name no
            // MAC address, so they cannot put an old one back over one just learnt, and do not
            // replace, so they leave the entry's router flag alone.
            let (hop, state, flags, mode) = match action {
                Action::Solicit(hop) => (
                    hop,
                    NeighbourState::None,
                    NeighbourFlags::Use,
                    NLM_F_CREATE | NLM_F_REPLACE,
                ),
                Action::Confirm(hop) => (hop, NeighbourState::Probe, NeighbourFlags::empty(), 0),
                Action::Forget(hop) => (hop, NeighbourState::Failed, NeighbourFlags::empty(), 0),
            };
            let mut message = NeighbourMessage::default();
            message.header = NeighbourHeader {
                family: family(hop.address),
                ifindex: hop.ifindex,
                state,
                flags,
                ..NeighbourHeader::default()
            };
            message
                .attributes
                .push(NeighbourAttribute::Destination(hop.address.into()));
            (
                RouteNetlinkMessage::NewNeighbour(message),
                NLM_F_REQUEST | NLM_F_ACK | mode,
            )
        }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

pub(super) fn encode(out: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = out.len();
    // Attributes are padded to four bytes, hence so are the messages.
    out.resize(start + Emitable::buffer_len(&message), 0);
    message.serialize(&mut out[start..]);
}

/// One netlink message within a datagram.
pub(super) struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// The messages of a datagram, up to the first malformed one.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = NetlinkBuffer::new_checked(datagram).ok()?;
        let length = header.length() as usize;
        let message = Message {
            kind: header.message_type(),
            flags: header.flags(),
            sequence: header.sequence_number(),
            payload: datagram.get(NETLINK_HEADER..length)?,
        };
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some(message)
    })
}

/// Size of `struct nlmsghdr`.
const NETLINK_HEADER: usize = 16;

/// The errno of an error message; 0 in an acknowledgement.
pub(super) fn errno(payload: &[u8]) -> i32 {
    i32_at(payload, 0).unwrap_or(-libc::EPROTO).saturating_neg()
}

pub(super) fn decode_answer(message: &Message<'_>) -> Option<Answer> {
    match message.kind {
        NLMSG_ERROR => Some(match errno(message.payload) {
            0 => Answer::Done,
            errno => Answer::Refused(errno),
        }),
        libc::RTM_NEWROUTE => decode_route(message.payload).map(Answer::Route),
        _ => None,
    }
}

/// The event that a message means, if it concerns us.
pub(super) fn decode_event(kind: u16, payload: &[u8]) -> Option<Event> {
    match kind {
        libc::RTM_NEWLINK => decode_link(payload).map(Event::Link),
        libc::RTM_DELLINK => decode_link(payload).map(|news| Event::LinkGone(news.index)),
        libc::RTM_NEWNEIGH => {
            decode_neighbour(payload).map(|(hop, entry)| Event::Neighbour(hop, entry))
        }
        libc::RTM_DELNEIGH => decode_neighbour(payload).map(|(hop, _)| Event::NeighbourGone(hop)),
        libc::RTM_NEWADDR => {
            decode_address(payload).map(|(ifindex, address, usable)| Event::Address {
                ifindex,
                address,
                usable,
            })
        }
        libc::RTM_DELADDR => decode_address(payload)
            .map(|(ifindex, address, _)| Event::AddressGone { ifindex, address }),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => decode_route_change(payload).map(Event::Routes),
        libc::RTM_NEWRULE | libc::RTM_DELRULE | RTM_NEWNEXTHOP | RTM_DELNEXTHOP => {
            Some(Event::Routes(Concerned::All))
        }
        _ => None,
    }
}

/// `struct ifinfomsg`
fn decode_link(payload: &[u8]) -> Option<LinkNews> {
    let (header, attributes) = payload.split_at_checked(16)?;
    // A bridge tells of its ports with messages of its own family; a port that leaves its bridge
    // does not cease to be a link.
    if i32::from(header[0]) != libc::AF_UNSPEC {
        return None;
    }
    let flags = u32_at(header, 8)?;
    let has = |flag: libc::c_int| flags & flag as u32 != 0;
    let mut news = LinkNews {
        index: u32_at(header, 4)?,
        ethernet: u16_at(header, 2)? == libc::ARPHRD_ETHER,
        enabled: has(libc::IFF_UP),
        lower_up: has(libc::IFF_LOWER_UP),
        name: None,
        mac: None,
        mtu: None,
    };
    each_attribute(attributes, |kind, value| match kind {
        libc::IFLA_IFNAME => {
            let name = value.split(|&byte| byte == 0).next().unwrap_or_default();
            news.name = Some(String::from_utf8_lossy(name).into_owned());
        }
        libc::IFLA_ADDRESS => news.mac = mac(value),
        libc::IFLA_MTU => news.mtu = u32_at(value, 0),
        _ => {}
    });
    Some(news)
}

/// `struct ndmsg`
fn decode_neighbour(payload: &[u8]) -> Option<(NextHop, Entry)> {
    let (header, attributes) = payload.split_at_checked(12)?;
    let family = header[0];
    let flags = header[10];
    // An address that this host answers for on behalf of others (proxy ARP, proxy ND) is not a neighbour.
    if flags & libc::NTF_PROXY != 0 {
        return None;
    }
    let mut address = None;
    let mut lladdr = None;
    let mut flags_ext = 0;
    each_attribute(attributes, |kind, value| match kind {
        libc::NDA_DST => address = ip(family, value),
        libc::NDA_LLADDR => lladdr = mac(value),
        NDA_FLAGS_EXT => flags_ext = u32_at(value, 0).unwrap_or_default(),
        _ => {}
    });
    let owned = flags & libc::NTF_EXT_LEARNED != 0 || flags_ext & NTF_EXT_MANAGED != 0;
    let hop = NextHop {
        ifindex: u32_at(header, 4)?,
        address: address?,
    };
    Some((
        hop,
        Entry {
            state: State::from_bits(u16_at(header, 8)?),
            mac: lladdr,
            owned,
        },
    ))
}

/// `struct ifaddrmsg`: the interface, the address, and whether it is fit as a source for others.
fn decode_address(payload: &[u8]) -> Option<(u32, IpAddr, bool)> {
    let (header, attributes) = payload.split_at_checked(8)?;
    let (family, scope) = (header[0], header[3]);
    let mut flags = u32::from(header[2]);
    let (mut local, mut address) = (None, None);
    each_attribute(attributes, |kind, value| match kind {
        libc::IFA_LOCAL => local = ip(family, value),
        libc::IFA_ADDRESS => address = ip(family, value),
        libc::IFA_FLAGS => flags = u32_at(value, 0).unwrap_or(flags),
        _ => {}
    });
    // On a point-to-point link IFA_ADDRESS is the other end.
    let address = local.or(address)?;
    // A temporary IPv6 address (the bit means "secondary" for IPv4) is replaced each day, under
    // connections that live longer.
    let unfit = libc::IFA_F_TENTATIVE
        | libc::IFA_F_DADFAILED
        | libc::IFA_F_DEPRECATED
        | if address.is_ipv6() {
            libc::IFA_F_TEMPORARY
        } else {
            0
        };
    let usable = scope == libc::RT_SCOPE_UNIVERSE && flags & unfit == 0;
    Some((u32_at(header, 4)?, address, usable))
}

/// `struct rtmsg`: what a change of a route concerns. One that this module cannot read concerns all.
fn decode_route_change(payload: &[u8]) -> Option<Concerned> {
    let (header, attributes) = payload.split_at_checked(12)?;
    // A route's copy for one destination (IPv6), which comes and goes with use.
    if u32_at(header, 8)? & libc::RTM_F_CLONED != 0 {
        return None;
    }
    let (family, length) = (header[0], header[1]);
    let mut address = match i32::from(family) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut table, mut complete) = (u32::from(header[4]), length == 0);
    each_attribute(attributes, |kind, value| match kind {
        libc::RTA_DST => {
            if let Some(destination) = ip(family, value) {
                (address, complete) = (destination, true);
            }
        }
        libc::RTA_TABLE => table = u32_at(value, 0).unwrap_or(table),
        _ => {}
    });
    Some(if complete {
        Concerned::Prefix {
            table,
            prefix: Prefix::covering(address, length),
        }
    } else {
        Concerned::All
    })
}

/// `struct rtmsg`
fn decode_route(payload: &[u8]) -> Option<RouteAnswer> {
    let (header, attributes) = payload.split_at_checked(12)?;
    let family = header[0];
    let (mut oif, mut gateway, mut encapsulates, mut error) = (None, None, false, 0);
    let mut table = u32::from(header[4]);
    each_attribute(attributes, |kind, value| match kind {
        libc::RTA_OIF => oif = u32_at(value, 0),
        libc::RTA_GATEWAY => gateway = ip(family, value),
        // An IPv4 route by way of an IPv6 gateway. `struct rtvia`
        libc::RTA_VIA => {
            gateway =
                u16_at(value, 0).and_then(|family| ip(u8::try_from(family).ok()?, value.get(2..)?));
        }
        libc::RTA_ENCAP => encapsulates = true,
        libc::RTA_TABLE => table = u32_at(value, 0).unwrap_or(table),
        // `struct rta_cacheinfo`
        libc::RTA_CACHEINFO => error = i32_at(value, 12).unwrap_or_default().saturating_abs(),
        _ => {}
    });
    Some(RouteAnswer::Found {
        kind: header[7],
        oif,
        gateway,
        encapsulates,
        error,
        matched: Matched {
            table,
            length: header[1],
        },
    })
}

fn each_attribute(attributes: &[u8], mut take: impl FnMut(u16, &[u8])) {
    for attribute in NlasIterator::new(attributes).map_while(Result::ok) {
        take(attribute.kind(), attribute.value());
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at + 2)?
        .try_into()
        .ok()
        .map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)?
        .try_into()
        .ok()
        .map(u32::from_ne_bytes)
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes
        .get(at..at + 4)?
        .try_into()
        .ok()
        .map(i32::from_ne_bytes)
}

fn mac(value: &[u8]) -> Option<MacAddress> {
    value.try_into().ok().map(MacAddress)
}

fn ip(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => <[u8; 4]>::try_from(value)
            .ok()
            .map(|v4| Ipv4Addr::from(v4).into()),
        libc::AF_INET6 => <[u8; 16]>::try_from(value)
            .ok()
            .map(|v6| Ipv6Addr::from(v6).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend((value.len() as u16 + 4).to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn link(family: i32, flags: i32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut out = vec![family as u8, 0];
        out.extend(libc::ARPHRD_ETHER.to_ne_bytes());
        out.extend(7u32.to_ne_bytes());
        out.extend((flags as u32).to_ne_bytes());
        out.extend(0u32.to_ne_bytes());
        out.extend(attributes.concat());
        out
    }

    fn neighbour(family: i32, state: u16, flags: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut out = vec![family as u8, 0, 0, 0];
        out.extend(7u32.to_ne_bytes());
        out.extend(state.to_ne_bytes());
        out.extend([flags, libc::RTN_UNICAST]);
        out.extend(attributes.concat());
        out
    }

    fn address(family: i32, flags: u32, scope: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut out = vec![family as u8, 24, flags as u8, scope];
        out.extend(7u32.to_ne_bytes());
        out.extend(attributes.concat());
        out.extend(attribute(libc::IFA_FLAGS, &flags.to_ne_bytes()));
        out
    }

    #[test]
    fn a_link_message_is_read() {
        let up = libc::IFF_UP | libc::IFF_LOWER_UP;
        let attributes = [
            attribute(libc::IFLA_IFNAME, b"eth0\0"),
            attribute(9999, &[1, 2, 3]),
            attribute(libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]),
            attribute(libc::IFLA_MTU, &1500u32.to_ne_bytes()),
        ];
        let Some(Event::Link(news)) =
            decode_event(libc::RTM_NEWLINK, &link(libc::AF_UNSPEC, up, &attributes))
        else {
            panic!("no link");
        };
        assert_eq!(
            (news.index, news.enabled, news.lower_up, news.ethernet),
            (7, true, true, true)
        );
        assert_eq!(news.name.as_deref(), Some("eth0"));
        assert_eq!(news.mac, Some(MacAddress([2, 0, 0, 0, 0, 1])));
        assert_eq!(news.mtu, Some(1500));
    }

    #[test]
    fn a_port_that_leaves_its_bridge_is_still_a_link() {
        let message = link(libc::AF_BRIDGE, libc::IFF_UP, &[]);
        assert_eq!(decode_event(libc::RTM_DELLINK, &message), None);
    }

    #[test]
    fn a_neighbour_message_is_read() {
        let attributes = [
            attribute(libc::NDA_DST, &[10, 0, 0, 2]),
            attribute(libc::NDA_LLADDR, &[2, 0, 0, 0, 0, 9]),
        ];
        let hop = NextHop {
            ifindex: 7,
            address: [10, 0, 0, 2].into(),
        };
        let mac = Some(MacAddress([2, 0, 0, 0, 0, 9]));
        for (flags, owned) in [
            (0, false),
            (libc::NTF_ROUTER, false),
            (libc::NTF_EXT_LEARNED, true),
        ] {
            assert_eq!(
                decode_event(
                    libc::RTM_NEWNEIGH,
                    &neighbour(libc::AF_INET, libc::NUD_STALE, flags, &attributes)
                ),
                Some(Event::Neighbour(
                    hop,
                    Entry {
                        state: State::Stale,
                        mac,
                        owned
                    }
                ))
            );
        }
        let gone = neighbour(libc::AF_INET, libc::NUD_FAILED, 0, &attributes);
        assert_eq!(
            decode_event(libc::RTM_DELNEIGH, &gone),
            Some(Event::NeighbourGone(hop))
        );
        let proxy = neighbour(libc::AF_INET, libc::NUD_NONE, libc::NTF_PROXY, &attributes);
        assert_eq!(decode_event(libc::RTM_NEWNEIGH, &proxy), None);
        let bridge = neighbour(libc::AF_BRIDGE, libc::NUD_NOARP, 0, &attributes);
        assert_eq!(decode_event(libc::RTM_NEWNEIGH, &bridge), None);
    }

    #[test]
    fn addresses_unfit_as_a_source_are_marked() {
        let v6: [u8; 16] = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets();
        let usable = |family, flags, scope, value: &[u8]| {
            let payload = address(family, flags, scope, &[attribute(libc::IFA_ADDRESS, value)]);
            decode_address(&payload).unwrap().2
        };
        let link_scope = 253;
        assert!(usable(libc::AF_INET, 0, 0, &[10, 0, 0, 1]));
        assert!(usable(
            libc::AF_INET,
            libc::IFA_F_SECONDARY,
            0,
            &[10, 0, 0, 1]
        ));
        assert!(!usable(libc::AF_INET, 0, link_scope, &[169, 254, 0, 1]));
        assert!(usable(libc::AF_INET6, libc::IFA_F_PERMANENT, 0, &v6));
        for flag in [
            libc::IFA_F_TENTATIVE,
            libc::IFA_F_DADFAILED,
            libc::IFA_F_DEPRECATED,
            libc::IFA_F_TEMPORARY,
        ] {
            assert!(!usable(libc::AF_INET6, flag, 0, &v6), "{flag:#x}");
        }
    }

    #[test]
    fn on_a_point_to_point_link_the_local_end_is_ours() {
        let attributes = [
            attribute(libc::IFA_ADDRESS, &[10, 0, 0, 2]),
            attribute(libc::IFA_LOCAL, &[10, 0, 0, 1]),
        ];
        let read = decode_address(&address(libc::AF_INET, 0, 0, &attributes));
        assert_eq!(read, Some((7, [10, 0, 0, 1].into(), true)));
    }

    #[test]
    fn a_route_over_a_gateway_of_the_other_family_is_read() {
        let gateway: Ipv6Addr = "fe80::1".parse().unwrap();
        let via = [
            &(libc::AF_INET6 as u16).to_ne_bytes()[..],
            &gateway.octets(),
        ]
        .concat();
        let mut payload = vec![libc::AF_INET as u8, 32, 0, 0, 254, 3, 0, libc::RTN_UNICAST];
        payload.extend([0; 4]);
        payload.extend(attribute(libc::RTA_OIF, &7u32.to_ne_bytes()));
        payload.extend(attribute(libc::RTA_VIA, &via));
        assert_eq!(
            decode_route(&payload),
            Some(RouteAnswer::Found {
                kind: libc::RTN_UNICAST,
                oif: Some(7),
                gateway: Some(gateway.into()),
                encapsulates: false,
                error: 0,
                matched: Matched {
                    table: 254,
                    length: 32
                }
            })
        );
    }

    fn route(family: i32, length: u8, table: u8, flags: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut out = vec![family as u8, length, 0, 0, table, 3, 0, libc::RTN_UNICAST];
        out.extend(flags.to_ne_bytes());
        out.extend(attributes.concat());
        out
    }

    #[test]
    fn a_changed_route_names_its_prefix_and_table() {
        let changed = |payload: &[u8]| match decode_event(libc::RTM_DELROUTE, payload) {
            Some(Event::Routes(concerned)) => Some(concerned),
            None => None,
            other => panic!("{other:?}"),
        };
        let prefix = |table, text: &str| {
            let prefix = text.parse().unwrap();
            Some(Concerned::Prefix { table, prefix })
        };
        let net = [attribute(libc::RTA_DST, &[10, 1, 2, 0])];
        let (v4, v6) = (libc::AF_INET, libc::AF_INET6);
        assert_eq!(
            changed(&route(v4, 24, 254, 0, &net)),
            prefix(254, "10.1.2.0/24")
        );
        let big_table = [
            net[0].clone(),
            attribute(libc::RTA_TABLE, &1000u32.to_ne_bytes()),
        ];
        assert_eq!(
            changed(&route(v4, 24, 252, 0, &big_table)),
            prefix(1000, "10.1.2.0/24")
        );
        assert_eq!(
            changed(&route(v4, 0, 254, 0, &[])),
            prefix(254, "0.0.0.0/0")
        );
        assert_eq!(changed(&route(v6, 0, 254, 0, &[])), prefix(254, "::/0"));
        assert_eq!(
            changed(&route(v4, 24, 254, 0, &[])),
            Some(Concerned::All),
            "without its destination"
        );
        assert_eq!(changed(&route(v4, 24, 254, libc::RTM_F_CLONED, &net)), None);
        assert_eq!(changed(&route(libc::AF_BRIDGE, 0, 254, 0, &[])), None);
    }

    #[test]
    fn an_ipv6_route_can_stand_for_an_error() {
        let mut payload = vec![
            libc::AF_INET6 as u8,
            128,
            0,
            0,
            254,
            3,
            0,
            libc::RTN_UNICAST,
        ];
        payload.extend([0; 4]);
        let mut cacheinfo = vec![0; 32];
        cacheinfo[12..16].copy_from_slice(&(-libc::ENETUNREACH).to_ne_bytes());
        payload.extend(attribute(libc::RTA_CACHEINFO, &cacheinfo));
        let Some(RouteAnswer::Found { error, .. }) = decode_route(&payload) else {
            panic!("no route");
        };
        assert_eq!(error, libc::ENETUNREACH);
    }

    #[test]
    fn cut_off_messages_are_passed_over() {
        let attributes = [attribute(libc::NDA_DST, &[10, 0, 0, 2])];
        let whole = neighbour(libc::AF_INET, libc::NUD_STALE, 0, &attributes);
        let kinds = [
            libc::RTM_NEWLINK,
            libc::RTM_NEWNEIGH,
            libc::RTM_NEWADDR,
            libc::RTM_DELNEIGH,
        ];
        for length in 0..whole.len() {
            for kind in kinds {
                decode_event(kind, &whole[..length]);
            }
            decode_route(&whole[..length]);
            decode_route_change(&whole[..length]);
            assert!(messages(&whole[..length]).count() <= 1);
        }
    }

    #[test]
    fn requests_share_a_datagram_and_keep_their_numbers() {
        let hop = NextHop {
            ifindex: 7,
            address: [10, 0, 0, 2].into(),
        };
        let mut out = Vec::new();
        for (sequence, request) in [
            Request::Neighbour(Action::Solicit(hop)),
            Request::Neighbour(Action::Confirm(hop)),
            Request::Way("2001:db8::1".parse().unwrap(), Some(7)),
        ]
        .iter()
        .enumerate()
        {
            let (message, flags) = build(request);
            encode(&mut out, message, flags, sequence as u32);
        }
        let read: Vec<(u16, u32)> = messages(&out).map(|m| (m.kind, m.sequence)).collect();
        assert_eq!(
            read,
            [
                (libc::RTM_NEWNEIGH, 0),
                (libc::RTM_NEWNEIGH, 1),
                (libc::RTM_GETROUTE, 2)
            ]
        );
        let confirm = messages(&out).nth(1).unwrap();
        let (read, entry) = decode_neighbour(confirm.payload).unwrap();
        assert_eq!((read, entry.state, entry.mac), (hop, State::Probe, None));
    }
}
