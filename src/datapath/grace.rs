//! Waiting until no packet is on its way through what has been taken out of use.
//!
//! Programs run inside RCU's read side, so that one grace period is enough: a packet that began before it is
//! through after it. The kernel waits for one before an update of a map of maps returns ("so that userspace,
//! when we return to it, knows that all programs that could be running use the new map value"), which is all
//! that the map here is for. membarrier(2) would wait for one too, but not where there is a single CPU, and it
//! is refused where there are CPUs without a tick (nohz_full).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use super::Error;

/// A map of maps, to be updated.
pub(super) struct Grace {
    outer: MapHandle,
    inner: MapHandle,
}

impl Grace {
    /// # Errors
    /// When the kernel refuses the maps.
    pub(super) fn new() -> Result<Self, Error> {
        const KEY: u32 = size_of::<u32>() as u32;
        let map = |map_type, name: &str, inner: u32| {
            let options = libbpf_sys::bpf_map_create_opts {
                sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
                inner_map_fd: inner,
                ..Default::default()
            };
            MapHandle::create(map_type, Some(name), KEY, KEY, 1, &options).map_err(|error| {
                Error::Map {
                    map: name.into(),
                    action: "create",
                    source: io::Error::other(error),
                }
            })
        };
        let inner = map(MapType::Array, "grace_inner", 0)?;
        // Descriptors are not negative.
        let outer = map(
            MapType::ArrayOfMaps,
            "grace",
            inner.as_fd().as_raw_fd().cast_unsigned(),
        )?;
        Ok(Grace { outer, inner })
    }

    /// Returns when every packet is through that began before the call; some 10 ms.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn wait(&self) -> Result<(), Error> {
        let inner = self.inner.as_fd().as_raw_fd().to_ne_bytes();
        self.outer
            .update(&0_u32.to_ne_bytes(), &inner, MapFlags::ANY)
            .map_err(|error| Error::Map {
                map: "grace".into(),
                action: "write",
                source: io::Error::other(error),
            })
    }
}
