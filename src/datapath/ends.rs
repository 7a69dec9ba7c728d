//! Connections that end where the datapath does not see it: `expired`.
//!
//! Owns that the connections of a backend that were opened, less those that have ended, are those that there
//! are. An entry that is too old is counted when the sweep takes it out. One that the kernel's LRU gives away
//! is counted by nobody at that moment, and may come back uncounted: made anew from the entry of the other
//! direction. So each sweep, which meets every entry anyway, takes a census and counts the difference.

use libbpf_rs::MapHandle;

use super::abi::{self, conn_state};
use super::array::Array;
use super::connections::Entry;
use super::{totals, Error};

/// The counts of connections that have ended, and what they are compared with.
pub(super) struct Ends {
    services: Array<abi::service>,
    backends: Array<abi::backend>,
    traffic: MapHandle,
    expired: Array<abi::expiries>,
}

impl Ends {
    pub(super) fn new(map: impl Fn(&str) -> Result<MapHandle, Error>) -> Result<Self, Error> {
        Ok(Ends {
            services: Array::map_read_only(&map("services")?)?,
            backends: Array::map_read_only(&map("backends")?)?,
            traffic: map("traffic")?,
            expired: Array::map(&map("expired")?)?,
        })
    }

    /// Counts the end of a connection that was taken out, unless the datapath has seen it end. One whose
    /// backend is gone has been counted with that.
    pub(super) fn count(&self, entry: &Entry) {
        let there = self.incarnation(entry.backend) == Some(entry.generation);
        if !is_over(entry.state) && there {
            self.expired.add(entry.backend, 1);
        }
    }

    /// Begins to count the connections of the backends that serve a family, before its tables are read.
    ///
    /// # Errors
    /// When the counts cannot be read.
    pub(super) fn census(&self, family: u32) -> Result<Census<'_>, Error> {
        let mut backends = vec![None; self.backends.length() as usize];
        for (id, place) in (0..).zip(&mut backends) {
            let Some(backend) = self.backends.get(id).filter(|backend| backend.forward != 0) else {
                continue;
            };
            let service = self.services.get(backend.service);
            if service.is_some_and(|service| service.family == family) {
                *place = Some(Count {
                    incarnation: backend.incarnation,
                    before: self.sums(id)?,
                    live: 0,
                });
            }
        }
        Ok(Census {
            ends: self,
            backends,
        })
    }

    /// Of the backend that has the id at present.
    fn incarnation(&self, id: u32) -> Option<u32> {
        let backend = self.backends.get(id)?;
        (backend.forward != 0).then_some(backend.incarnation)
    }

    fn sums(&self, id: u32) -> Result<Sums, Error> {
        let traffic = totals::sum(&self.traffic, id)?;
        let expired = self.expired.get(id).unwrap_or_default().connections;
        Ok(Sums {
            opened: traffic.opened,
            ended: traffic.closed.wrapping_add(expired),
        })
    }
}

/// The connections that there are.
pub(super) struct Census<'a> {
    ends: &'a Ends,
    /// By id; `None`: there is no such backend, or it serves the other family.
    backends: Vec<Option<Count>>,
}

/// Of one backend.
#[derive(Clone, Copy)]
struct Count {
    incarnation: u32,
    before: Sums,
    live: u64,
}

/// What has been counted of a backend's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sums {
    opened: u64,
    /// In sight of the datapath or not. May fall: an end is taken back that was none.
    ended: u64,
}

/// What a census has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Difference {
    /// Connections whose end was not counted.
    pub evicted: u64,
    /// Connections that were counted as ended, and are there.
    pub returned: u64,
}

impl Census<'_> {
    /// A connection that is there. One that moves from its set to `conntrack` meanwhile is met twice: the
    /// next census has the opposite difference.
    pub(super) fn meet(&mut self, entry: &Entry) {
        let count = self.backends.get_mut(entry.backend as usize);
        let count = count
            .and_then(Option::as_mut)
            .filter(|count| count.incarnation == entry.generation && !is_over(entry.state));
        if let Some(count) = count {
            count.live += 1;
        }
    }

    /// Counts what was not counted, once both tables were read and before the sweep takes anything out.
    ///
    /// # Errors
    /// When the counts cannot be read; those that could be are mended.
    pub(super) fn settle(self) -> Result<Difference, Error> {
        let mut found = Difference::default();
        for (id, count) in (0..).zip(self.backends) {
            let Some(count) = count.filter(Count::is_off) else {
                continue;
            };
            let difference = count.difference(self.ends.sums(id)?);
            // A backend that went meanwhile took its counts with it.
            if self.ends.incarnation(id) != Some(count.incarnation) {
                continue;
            }
            // One of them is 0.
            let change = difference.evicted.wrapping_sub(difference.returned);
            if change != 0 {
                self.ends.expired.add(id, change);
            }
            found.evicted += difference.evicted;
            found.returned += difference.returned;
        }
        Ok(found)
    }
}

impl Count {
    fn is_off(&self) -> bool {
        self.before.opened.wrapping_sub(self.before.ended) != self.live
    }

    /// How much of the difference is certain, if the sums are these `after` the tables were read: a connection
    /// that was opened or ended meanwhile may have been met or not. Where that is wrong all the same, by an
    /// end that was taken back just then or an entry whose packet was not through yet, the next census has
    /// the opposite difference.
    fn difference(&self, after: Sums) -> Difference {
        let growth = |after: u64, before: u64| after.wrapping_sub(before).cast_signed().max(0);
        let opened = growth(after.opened, self.before.opened);
        let ended = growth(after.ended, self.before.ended);
        let counted = self.before.opened.wrapping_sub(self.before.ended);
        let missing = counted.wrapping_sub(self.live).cast_signed();
        let at_least = |certain: i64| certain.max(0).cast_unsigned();
        Difference {
            evicted: at_least(missing.saturating_sub(ended)),
            // No more than have ended, or there would be more connections than were opened.
            returned: at_least(
                missing
                    .saturating_neg()
                    .saturating_sub(opened)
                    .min(after.ended.cast_signed()),
            ),
        }
    }
}

fn is_over(state: u8) -> bool {
    matches!(
        conn_state(state.into()),
        conn_state::CONN_CLOSING | conn_state::CONN_CLOSED
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(before: (u64, u64), live: u64, after: (u64, u64)) -> (u64, u64) {
        let sums = |(opened, ended)| Sums { opened, ended };
        let count = Count {
            incarnation: 1,
            before: sums(before),
            live,
        };
        let found = count.difference(sums(after));
        (found.evicted, found.returned)
    }

    #[test]
    fn without_traffic_the_difference_is_all_of_it() {
        assert_eq!(difference((100, 40), 60, (100, 40)), (0, 0));
        assert_eq!(difference((100, 40), 50, (100, 40)), (10, 0));
        assert_eq!(difference((100, 40), 65, (100, 40)), (0, 5));
        // Ends that were taken back on one CPU, of those that another has counted.
        assert_eq!(difference((5, 0_u64.wrapping_sub(1)), 6, (5, 0)), (0, 0));
    }

    #[test]
    fn a_connection_that_came_or_went_meanwhile_is_no_difference() {
        // Ended before it was met; opened, and met.
        assert_eq!(difference((100, 40), 55, (100, 45)), (0, 0));
        assert_eq!(difference((100, 40), 70, (110, 40)), (0, 0));
        // Beyond that.
        assert_eq!(difference((100, 40), 55, (100, 43)), (2, 0));
        assert_eq!(difference((100, 40), 70, (107, 40)), (0, 3));
        // An end that was taken back meanwhile hides none.
        assert_eq!(difference((100, 40), 55, (100, 39)), (5, 0));
    }

    #[test]
    fn no_more_come_back_than_have_ended() {
        assert_eq!(difference((10, 3), 20, (10, 3)), (0, 3));
        assert_eq!(difference((0, 0), 2, (0, 0)), (0, 0));
        assert_eq!(difference((5, 0), 6, (5, 0_u64.wrapping_sub(1))), (0, 0));
    }
}
