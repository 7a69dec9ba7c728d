//! The totals of services and backends, kept over all changes: `traffic`, `past` and `expired`.
//!
//! Owns the moving of a removed backend's counts to its service, whose totals so never fall.

use libbpf_rs::{MapCore, MapHandle};

use super::abi;
use super::array::Array;
use super::{percpu, Error};

/// The maps of counts.
pub(super) struct Totals {
    traffic: MapHandle,
    past: Array<abi::traffic>,
    expired: Array<abi::expiries>,
}

impl Totals {
    pub(super) fn new(map: impl Fn(&str) -> Result<MapHandle, Error>) -> Result<Self, Error> {
        Ok(Totals {
            traffic: map("traffic")?,
            past: Array::map(&map("past")?)?,
            expired: Array::map(&map("expired")?)?,
        })
    }

    /// A backend of `service` is gone: its counts move to the service. Its connections are over: where
    /// their clients go on, another backend is chosen, and they count as opened again.
    pub(super) fn retire_backend(&mut self, id: u32, service: u32) -> Result<(), Error> {
        let gone = sum(&self.traffic, id)?;
        if let Some(mut past) = self.past.get(service) {
            add(&mut past, &gone);
            past.closed += gone.opened - gone.closed.min(gone.opened);
            self.past.set(service, &past);
        }
        Ok(())
    }

    /// The id stands for another backend from now on: counts begin at 0.
    pub(super) fn begin_backend(&mut self, id: u32) -> Result<(), Error> {
        self.expired.set(id, &abi::expiries::default());
        percpu::clear::<abi::traffic>(&self.traffic, id)
    }

    /// The id stands for another service from now on.
    pub(super) fn begin_service(&mut self, id: u32) {
        self.past.set(id, &abi::traffic::default());
    }
}

/// An element of `traffic`, over all CPUs.
pub(super) fn sum(traffic: &impl MapCore, id: u32) -> Result<abi::traffic, Error> {
    let mut sum = abi::traffic::default();
    for cpu in percpu::read(traffic, id)? {
        add(&mut sum, &cpu);
    }
    Ok(sum)
}

/// Adds one count to another.
pub(super) fn add(sum: &mut abi::traffic, more: &abi::traffic) {
    for (sum, more) in sum.by.iter_mut().zip(&more.by) {
        sum.packets_in += more.packets_in;
        sum.bytes_in += more.bytes_in;
        sum.packets_out += more.packets_out;
        sum.bytes_out += more.bytes_out;
    }
    sum.opened += more.opened;
    // A CPU may take back an end that another one has counted.
    sum.closed = sum.closed.wrapping_add(more.closed);
    sum.unrecorded += more.unrecorded;
}
