//! The socket that questions are put on. Asking waits for the kernel, which may hold its lock for long:
//! not for the control loop.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::codec::{build, decode_answer, decode_event, encode, errno, messages, Answer, Request};
use super::{open_socket, BUFFER};
use crate::neighbours::facts::{Event, Facts};
use crate::neighbours::Error;

/// Requests put into one datagram. The answers to all of them wait in the socket's queue at once and
/// must fit into its default size of 208 KiB.
const BATCH: usize = 32;

/// The kernel answers while the request is being sent, or as soon as it gets its lock.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How often a dump that changed under way is begun anew. A host that changes faster than it can be
/// listed is read as well as it can be: the changes arrive as events too.
const DUMP_TRIES: u32 = 5;

/// The socket that questions are put on.
pub(in crate::neighbours) struct RequestSocket {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl RequestSocket {
    pub fn open() -> Result<Self, Error> {
        Self::try_open().map_err(Error::Open)
    }

    fn try_open() -> io::Result<Self> {
        let socket = open_socket()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        let timeout = TimeVal::milliseconds(ANSWER_WITHIN.as_millis() as i64);
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &timeout)?;
        Ok(RequestSocket {
            socket,
            buffer: vec![0; BUFFER],
            sequence: 0,
        })
    }

    /// Everything that is there: links, own addresses, neighbours.
    pub fn dump(&mut self) -> Result<Facts, Error> {
        let mut facts = Facts::default();
        for (what, message) in [
            (
                "list links",
                RouteNetlinkMessage::GetLink(LinkMessage::default()),
            ),
            (
                "list addresses",
                RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            ),
            (
                "list neighbours",
                RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
            ),
        ] {
            for left in (0..DUMP_TRIES).rev() {
                let (part, interrupted) = self.dump_once(what, message.clone())?;
                if !interrupted || left == 0 {
                    for event in part {
                        facts.apply(event);
                    }
                    break;
                }
            }
        }
        Ok(facts)
    }

    fn dump_once(
        &mut self,
        what: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<(Vec<Event>, bool), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut out = Vec::new();
        encode(&mut out, message, NLM_F_REQUEST | NLM_F_DUMP, self.sequence);
        self.send(what, &out)?;
        let mut events = Vec::new();
        let mut interrupted = false;
        loop {
            let sequence = self.sequence;
            for message in messages(self.receive(what)?).filter(|m| m.sequence == sequence) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => return Ok((events, interrupted)),
                    NLMSG_ERROR => {
                        let source = io::Error::from_raw_os_error(errno(message.payload));
                        return Err(Error::Io { what, source });
                    }
                    kind => events.extend(decode_event(kind, message.payload)),
                }
            }
        }
    }

    /// Puts all the questions and gives the answers in their order.
    ///
    /// # Errors
    /// When the conversation itself fails. A refusal is an [`Answer`].
    pub fn ask(&mut self, requests: &[Request]) -> Result<Vec<Answer>, Error> {
        let what = "ask about routes and neighbours";
        let mut answers = Vec::with_capacity(requests.len());
        for batch in requests.chunks(BATCH) {
            let first = self.sequence.wrapping_add(1);
            let mut out = Vec::new();
            for request in batch {
                self.sequence = self.sequence.wrapping_add(1);
                let (message, flags) = build(request);
                encode(&mut out, message, flags, self.sequence);
            }
            self.send(what, &out)?;
            let mut slots: Vec<Option<Answer>> = vec![None; batch.len()];
            let mut missing = batch.len();
            while missing > 0 {
                for message in messages(self.receive(what)?) {
                    // An answer that an earlier, failed conversation left behind has no slot.
                    let index = message.sequence.wrapping_sub(first) as usize;
                    if let (Some(slot), Some(answer)) =
                        (slots.get_mut(index), decode_answer(&message))
                    {
                        missing -= usize::from(slot.is_none());
                        *slot = Some(answer);
                    }
                }
            }
            answers.extend(slots.into_iter().flatten());
        }
        Ok(answers)
    }

    fn send(&self, what: &'static str, bytes: &[u8]) -> Result<(), Error> {
        self.socket
            .send(bytes, 0)
            .map(drop)
            .map_err(|source| Error::Io { what, source })
    }

    /// One datagram of the kernel's.
    fn receive(&mut self, what: &'static str) -> Result<&[u8], Error> {
        loop {
            match self
                .socket
                .recv_from(&mut self.buffer.as_mut_slice(), libc::MSG_TRUNC)
            {
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok((length, _)) if length > BUFFER => {
                    let source = io::Error::from_raw_os_error(libc::EMSGSIZE);
                    return Err(Error::Io { what, source });
                }
                Ok((length, _)) => return Ok(&self.buffer[..length]),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    return Err(Error::Silent {
                        what,
                        waited: ANSWER_WITHIN,
                    })
                }
                Err(source) => return Err(Error::Io { what, source }),
            }
        }
    }
}
