//! Hash maps and tries, many elements at a time: a call for each would take seconds where there are
//! hundreds of thousands.

use std::ffi::c_void;
use std::io;
use std::os::fd::AsRawFd;

use libbpf_rs::{MapCore, MapFlags};
use nix::errno::Errno;

use super::Error;

/// Enough that the calls cost little beside the copying; a bucket of a hash must fit.
const BATCH: u32 = 4096;

/// Calls `visit` with every key and value of a map, as bytes. What comes or goes meanwhile may be missed.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn for_each(
    map: &impl MapCore,
    mut visit: impl FnMut(&[u8], &[u8]),
) -> Result<(), Error> {
    try_for_each(map, |key, value| {
        visit(key, value);
        Ok(())
    })
}

/// Likewise, until `visit` has an error.
///
/// # Errors
/// When the kernel refuses, or that of `visit`.
pub(super) fn try_for_each<E: From<Error>>(
    map: &impl MapCore,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let (key_size, value_size) = (map.key_size() as usize, map.value_size() as usize);
    let mut batch = BATCH;
    let mut keys = vec![0_u8; key_size * batch as usize];
    let mut values = vec![0_u8; value_size * batch as usize];
    // The kernel's place in the map: a hash's bucket, in as many bytes as it likes up to a key's, or a
    // trie's key.
    let mut place = vec![0_u8; key_size.max(4)];
    let mut started = false;
    let options = options();
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
            errno => return Err(Error::map(map, "read", errno.into()).into()),
        };
        started = true;
        let found = count.min(batch) as usize;
        for (key, value) in keys
            .chunks_exact(key_size)
            .zip(values.chunks_exact(value_size))
            .take(found)
        {
            visit(key, value)?;
        }
        if end {
            return Ok(());
        }
    }
}

/// Writes elements, whose keys and values lie one after the other.
///
/// # Errors
/// When the kernel refuses one: how many are written, which are those before it, and why.
pub(super) fn update(map: &impl MapCore, keys: &[u8], values: &[u8]) -> Result<(), (usize, Error)> {
    let key_size = map.key_size() as usize;
    let options = options();
    let mut written = 0;
    let keys = keys.chunks(BATCH as usize * key_size);
    let values = values.chunks(BATCH as usize * map.value_size() as usize);
    for (keys, values) in keys.zip(values) {
        let whole = (keys.len() / key_size) as u32;
        let mut count = whole;
        // SAFETY: the buffers hold `count` keys and values and outlive the call, which writes how many it
        // has taken to `count`.
        let error = unsafe {
            libbpf_sys::bpf_map_update_batch(
                map.as_fd().as_raw_fd(),
                keys.as_ptr().cast(),
                values.as_ptr().cast(),
                &mut count,
                &options,
            )
        };
        if error != 0 {
            // As it was given: the kernel has not begun.
            let taken = if count < whole { count as usize } else { 0 };
            let source = io::Error::from_raw_os_error(-error);
            return Err((written + taken, Error::map(map, "write", source)));
        }
        written += whole as usize;
    }
    Ok(())
}

/// Deletes the elements of these keys, which lie one after the other. One that is not there is no fault.
///
/// # Errors
/// When the kernel refuses; those before it are deleted.
pub(super) fn delete(map: &impl MapCore, keys: &[u8]) -> Result<(), Error> {
    let size = map.key_size() as usize;
    for chunk in keys.chunks(BATCH as usize * size) {
        let count = (chunk.len() / size) as u32;
        if map
            .delete_batch(chunk, count, MapFlags::ANY, MapFlags::ANY)
            .is_ok()
        {
            continue;
        }
        // It stops at the first that is not there.
        for key in chunk.chunks_exact(size) {
            match map.delete(key) {
                Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => {
                    return Err(Error::map(map, "delete from", io::Error::other(error)))
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn options() -> libbpf_sys::bpf_map_batch_opts {
    libbpf_sys::bpf_map_batch_opts {
        sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as _,
        ..Default::default()
    }
}
