//! The two netlink sockets, and the way between netlink messages and plain events.
//!
//! Owns the conversation with the kernel; decides nothing. `codec` knows the messages, `events` hears
//! changes without waiting, `requests` asks and waits for answers, which is for a thread of its own.

mod codec;
mod events;
mod requests;

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::Socket;

pub(super) use codec::{Answer, Request};
pub(super) use events::{EventSocket, Heard};
pub(super) use requests::RequestSocket;

/// The kernel puts at most 32 KiB into one datagram of a dump.
const BUFFER: usize = 64 * 1024;

fn open_socket() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    Ok(socket)
}
