//! Reading the connection tables: entries as plain values, fetched many at a time.
//!
//! Owns the batches. What the entries mean to a person is the commands' part; which are over is
//! [`super::sweep`]'s.

use std::ffi::c_void;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{MapCore, MapHandle};
use nix::errno::Errno;
use plain::Plain;

use super::abi::{self, address_of, conn_flag, forward_mode, from_bytes, ipv4_of, Flow};
use super::Error;

/// Enough that the calls cost little beside the copying; a bucket of the hash must fit.
const BATCH: u32 = 4096;

/// One direction of a connection, of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The key: a packet's 5-tuple as it arrives.
    pub flow: Flow,
    /// The 5-tuple that it leaves with.
    pub becomes: Flow,
    /// Index into `backends`.
    pub backend: u32,
    /// `backend.generation` when it was chosen.
    pub generation: u32,
    /// `enum conn_state`
    pub state: u8,
    /// `enum conn_flag`
    pub flags: u8,
    /// `enum forward_mode`
    pub forward: u8,
    /// Jiffies, the low 32 bits.
    pub last_seen: u32,
}

impl Entry {
    /// Whether this is the backend's direction.
    pub fn is_reply(&self) -> bool {
        self.has(conn_flag::CONN_REPLY)
    }

    /// Whether its source is translated too.
    pub fn is_full_nat(&self) -> bool {
        u32::from(self.forward) == forward_mode::FORWARD_FULL_NAT.0
    }

    /// Whether the backend answers its client directly: there is no entry of the backend's direction.
    pub fn is_direct(&self) -> bool {
        u32::from(self.forward) >= forward_mode::FORWARD_L2.0
    }

    /// The key of the other direction's entry, if there is one.
    pub fn other(&self) -> Option<Flow> {
        (!self.is_direct()).then(|| self.becomes.reversed())
    }

    /// The connection as its client sees it: the key of the client's direction.
    pub fn client_flow(&self) -> Flow {
        if self.is_reply() {
            self.becomes.reversed()
        } else {
            self.flow
        }
    }

    /// The key of the backend's direction, unless it is direct.
    pub fn reply_flow(&self) -> Flow {
        if self.is_reply() {
            self.flow
        } else {
            self.becomes.reversed()
        }
    }

    fn has(&self, flag: conn_flag) -> bool {
        u32::from(self.flags) & flag.0 != 0
    }
}

/// A table's key and value types.
pub(super) trait Family {
    /// Key.
    type Key: Plain + Copy + Default + Into<Flow>;
    /// Value.
    type Value: Plain + Copy + Default;
    /// Their meaning.
    fn entry(key: Self::Key, value: Self::Value) -> Entry;
}

/// `conntrack` and `opening`.
pub(super) struct V4;
/// `conntrack6` and `opening6`.
pub(super) struct V6;

fn entry(flow: Flow, conn: abi::conn, source: (IpAddr, u16), destination: (IpAddr, u16)) -> Entry {
    Entry {
        flow,
        becomes: Flow {
            source,
            destination,
            protocol: flow.protocol,
        },
        backend: conn.backend,
        generation: conn.generation,
        state: conn.state,
        flags: conn.flags,
        forward: conn.forward,
        last_seen: conn.last_seen,
    }
}

impl Family for V4 {
    type Key = abi::flow4;
    type Value = abi::conn4;
    fn entry(key: abi::flow4, c: abi::conn4) -> Entry {
        let (source, destination) = (ipv4_of(c.saddr), ipv4_of(c.daddr));
        entry(
            key.into(),
            c.conn,
            (source, u16::from_be(c.sport)),
            (destination, u16::from_be(c.dport)),
        )
    }
}

impl Family for V6 {
    type Key = abi::flow6;
    type Value = abi::conn6;
    fn entry(key: abi::flow6, c: abi::conn6) -> Entry {
        let (source, destination) = (address_of(c.saddr), address_of(c.daddr));
        entry(
            key.into(),
            c.conn,
            (source, u16::from_be(c.sport)),
            (destination, u16::from_be(c.dport)),
        )
    }
}

/// Calls `visit` with every entry of a table, and its key as the map has it. Entries that come or go
/// meanwhile may be missed.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn for_each<F: Family>(
    map: &MapHandle,
    mut visit: impl FnMut(&[u8], Entry),
) -> Result<(), Error> {
    for_each_pair(map, |key, value| {
        if let (Some(parsed), Some(value)) =
            (from_bytes::<F::Key>(key), from_bytes::<F::Value>(value))
        {
            visit(key, F::entry(parsed, value));
        }
    })
}

/// Calls `visit` with every key and value of a hash map, as bytes.
pub(super) fn for_each_pair(
    map: &MapHandle,
    mut visit: impl FnMut(&[u8], &[u8]),
) -> Result<(), Error> {
    let (key_size, value_size) = (map.key_size() as usize, map.value_size() as usize);
    let mut batch = BATCH;
    let mut keys = vec![0_u8; key_size * batch as usize];
    let mut values = vec![0_u8; value_size * batch as usize];
    // The kernel's place in the map: a bucket's number, in as many bytes as it likes up to a key's.
    let mut place = vec![0_u8; key_size.max(4)];
    let mut started = false;
    let options = libbpf_sys::bpf_map_batch_opts {
        sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as _,
        ..Default::default()
    };
    loop {
        let mut count = batch;
        let from = if started {
            place.as_mut_ptr().cast::<c_void>()
        } else {
            std::ptr::null_mut()
        };
        // SAFETY: the buffers hold `batch` keys and values, which `count` says, and a place; all outlive
        // the call. The kernel takes the old place before it writes the new one.
        let error = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                map.as_fd().as_raw_fd(),
                from,
                place.as_mut_ptr().cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &mut count,
                &options,
            )
        };
        let end = match Errno::from_raw(-error) {
            _ if error == 0 => false,
            Errno::ENOENT => true,
            // A bucket has more entries than fit.
            Errno::ENOSPC if batch < 1 << 24 => {
                batch *= 2;
                keys.resize(key_size * batch as usize, 0);
                values.resize(value_size * batch as usize, 0);
                continue;
            }
            errno => {
                return Err(Error::Map {
                    map: map.name().to_string_lossy().into_owned(),
                    action: "read",
                    source: io::Error::from(errno),
                })
            }
        };
        started = true;
        let found = count.min(batch) as usize;
        for (key, value) in keys
            .chunks_exact(key_size)
            .zip(values.chunks_exact(value_size))
            .take(found)
        {
            visit(key, value);
        }
        if end {
            return Ok(());
        }
    }
}
