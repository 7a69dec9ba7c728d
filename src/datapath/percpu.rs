//! Arrays with an element for each CPU: reading all of them, and setting them to zero.

use std::io;

use libbpf_rs::{MapCore, MapFlags};
use plain::Plain;

use super::abi::{bytes_of, from_bytes};
use super::Error;

/// The element as each CPU has it.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn read<T: Plain + Copy + Default>(
    map: &impl MapCore,
    index: u32,
) -> Result<Vec<T>, Error> {
    let values = map
        .lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)
        .map_err(|error| Error::map(map, "read", io::Error::other(error)))?;
    Ok(values
        .iter()
        .flatten()
        .filter_map(|bytes| from_bytes(bytes))
        .collect())
}

/// Sets the element to zero on every CPU. What is counted at that moment may be lost.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn clear<T: Plain + Default>(map: &impl MapCore, index: u32) -> Result<(), Error> {
    let cpus = libbpf_rs::num_possible_cpus()
        .map_err(|error| Error::map(map, "write", io::Error::other(error)))?;
    let zeros = vec![bytes_of(&T::default()).to_vec(); cpus];
    map.update_percpu(&index.to_ne_bytes(), &zeros, MapFlags::ANY)
        .map_err(|error| Error::map(map, "write", io::Error::other(error)))
}
