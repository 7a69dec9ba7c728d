//! The socket that changes are heard on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::Socket;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::codec::{decode_event, messages};
use super::{open_socket, BUFFER};
use crate::neighbours::facts::Event;
use crate::neighbours::Error;

/// Room for events that wait to be read, in bytes; an event takes about 1 KiB of it. Beyond it the
/// kernel drops events and says so, and everything is read anew.
const EVENT_QUEUE: usize = 4 * 1024 * 1024;

const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
];

/// The socket that changes are heard on.
pub(in crate::neighbours) struct EventSocket {
    socket: Socket,
    buffer: Vec<u8>,
}

/// The result of one read of the event socket.
pub(in crate::neighbours) enum Heard {
    Events(Vec<Event>),
    /// Nothing more is waiting.
    Silence,
    /// Some events are lost.
    Overrun,
}

impl EventSocket {
    pub fn open() -> Result<Self, Error> {
        Self::try_open().map_err(Error::Open)
    }

    fn try_open() -> io::Result<Self> {
        let socket = open_socket()?;
        socket.set_non_blocking(true)?;
        // Beyond the system's limit if we may, else up to it.
        if setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &EVENT_QUEUE).is_err() {
            setsockopt(&socket.as_fd(), sockopt::RcvBuf, &EVENT_QUEUE)?;
        }
        for group in GROUPS {
            match socket.add_membership(group) {
                // Next-hop objects came with Linux 5.3.
                Err(_) if group == libc::RTNLGRP_NEXTHOP => {}
                result => result?,
            }
        }
        Ok(EventSocket {
            socket,
            buffer: vec![0; BUFFER],
        })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Throws away one datagram, without waiting. False when none is left.
    pub fn discard(&mut self) -> Result<bool, Error> {
        match self
            .socket
            .recv_from(&mut self.buffer.as_mut_slice(), libc::MSG_TRUNC)
        {
            Ok(_) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => Ok(false),
                Some(libc::EINTR | libc::ENOBUFS) => Ok(true),
                _ => Err(failed(error)),
            },
        }
    }

    /// Reads one datagram, without waiting.
    pub fn read(&mut self) -> Result<Heard, Error> {
        let (length, sender) = match self
            .socket
            .recv_from(&mut self.buffer.as_mut_slice(), libc::MSG_TRUNC)
        {
            Ok(received) => received,
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::EAGAIN) => Ok(Heard::Silence),
                    Some(libc::EINTR) => Ok(Heard::Events(Vec::new())),
                    Some(libc::ENOBUFS) => Ok(Heard::Overrun),
                    _ => Err(failed(error)),
                }
            }
        };
        if sender.port_number() != 0 {
            return Ok(Heard::Events(Vec::new()));
        }
        match self.buffer.get(..length) {
            Some(datagram) => Ok(Heard::Events(
                messages(datagram)
                    .filter_map(|m| decode_event(m.kind, m.payload))
                    .collect(),
            )),
            // Cut off: its events are lost, as in an overrun.
            None => Ok(Heard::Overrun),
        }
    }
}

fn failed(source: io::Error) -> Error {
    Error::Io {
        what: "listen for changes",
        source,
    }
}
