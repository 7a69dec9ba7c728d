//! A map's elements, many in one call: a test asks the counters before and after each of its packets, and
//! every map is emptied for the next test.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{ErrorKind, MapCore, MapHandle, MapType};
use nix::errno::Errno;

/// Bytes of the values that a call moves at most: more would not stay in the caches.
const BYTES: usize = 1 << 20;

/// The first `count` values of an array one after another, of a per-CPU array those of every CPU.
pub fn first(map: &MapHandle, count: u32) -> Vec<u8> {
    let mut values = vec![0; stride(map) * count as usize];
    read(map, 0, &mut values);
    values
}

/// Bytes of an element as [`first`] gives it. Each CPU's value takes whole words.
pub fn stride(map: &MapHandle) -> usize {
    let value = map.value_size() as usize;
    match map.map_type() {
        MapType::PercpuArray => {
            value.next_multiple_of(8) * libbpf_rs::num_possible_cpus().expect("the number of CPUs")
        }
        _ => value,
    }
}

/// Whether the map is as it was created: all zeros, or without an entry.
pub fn is_blank(map: &MapHandle) -> bool {
    if !is_array(map) {
        return entries(map).is_empty();
    }
    let zeros = vec![0; BYTES];
    let mut values = vec![0; BYTES];
    chunks(map).all(|(index, bytes)| {
        read(map, index, &mut values[..bytes]);
        values[..bytes] == zeros[..bytes]
    })
}

/// Makes the map as it was created.
pub fn clear(map: &MapHandle) {
    if !is_array(map) {
        for key in entries(map) {
            // The kernel takes a device that has gone out of a device map by itself.
            if let Err(error) = map.delete(&key) {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            }
        }
        return;
    }
    let zeros = vec![0; BYTES];
    let mut values = vec![0; BYTES];
    for (index, bytes) in chunks(map) {
        read(map, index, &mut values[..bytes]);
        if values[..bytes] != zeros[..bytes] {
            write(map, index, &zeros[..bytes]);
        }
    }
}

fn is_array(map: &MapHandle) -> bool {
    match map.map_type() {
        MapType::Array | MapType::PercpuArray => true,
        MapType::Hash | MapType::LruHash | MapType::LpmTrie | MapType::Devmap => false,
        kind => panic!(
            "{:?} is a {kind:?}, which the tests do not know how to empty: teach them here",
            map.name()
        ),
    }
}

/// The keys that have a value.
fn entries(map: &MapHandle) -> Vec<Vec<u8>> {
    // A device map has keys for all of its places.
    let has_value = |key: &Vec<u8>| {
        let value = map.lookup(key, libbpf_rs::MapFlags::ANY);
        value.expect("lookup").is_some()
    };
    let keys = map.keys();
    if map.map_type() == MapType::Devmap {
        keys.filter(has_value).collect()
    } else {
        keys.collect()
    }
}

/// An array in parts: the index of the first element of each, and the bytes of its values.
fn chunks(map: &MapHandle) -> impl Iterator<Item = (u32, usize)> {
    let stride = stride(map);
    let length = map.max_entries();
    let step = (BYTES / stride).max(1) as u32;
    (0..length).step_by(step as usize).map(move |index| {
        let elements = step.min(length - index) as usize;
        (index, elements * stride)
    })
}

/// Reads the elements of an array from `index` on.
fn read(map: &MapHandle, index: u32, values: &mut [u8]) {
    let wanted = (values.len() / stride(map)) as u32;
    let mut count = wanted;
    let mut keys = vec![0_u32; wanted as usize];
    let mut before = index.wrapping_sub(1);
    let mut last = 0_u32;
    let from = if index == 0 {
        std::ptr::null_mut()
    } else {
        &raw mut before
    };
    // SAFETY: the buffers hold `count` keys and values of all CPUs, and two keys that say where to begin
    // and where it ended; all outlive the call.
    let error = unsafe {
        libbpf_sys::bpf_map_lookup_batch(
            map.as_fd().as_raw_fd(),
            from.cast(),
            (&raw mut last).cast(),
            keys.as_mut_ptr().cast(),
            values.as_mut_ptr().cast(),
            &mut count,
            &options(),
        )
    };
    // ENOENT: there are no more after these.
    if error != 0 && Errno::from_raw(-error) != Errno::ENOENT {
        panic!("cannot read {:?}: {}", map.name(), reason(error));
    }
    assert_eq!(
        count,
        wanted,
        "elements of {:?} from {index} on",
        map.name()
    );
}

/// Writes the elements of an array from `index` on.
fn write(map: &MapHandle, index: u32, values: &[u8]) {
    let wanted = (values.len() / stride(map)) as u32;
    let mut count = wanted;
    let keys: Vec<u32> = (index..index + wanted).collect();
    // SAFETY: the buffers hold `count` keys and values of all CPUs, and outlive the call.
    let error = unsafe {
        libbpf_sys::bpf_map_update_batch(
            map.as_fd().as_raw_fd(),
            keys.as_ptr().cast(),
            values.as_ptr().cast(),
            &mut count,
            &options(),
        )
    };
    if error != 0 {
        panic!("cannot write {:?}: {}", map.name(), reason(error));
    }
    assert_eq!(
        count,
        wanted,
        "elements of {:?} from {index} on",
        map.name()
    );
}

fn reason(error: i32) -> io::Error {
    io::Error::from_raw_os_error(-error)
}

fn options() -> libbpf_sys::bpf_map_batch_opts {
    libbpf_sys::bpf_map_batch_opts {
        sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as _,
        ..Default::default()
    }
}
