//! Making maps larger while packets are forwarded: a reload may need more room than the file before.
//!
//! A map's size is fixed when it is created. So the same programs are loaded once more over larger maps in
//! place of those that are too small and over all others as they are: connections and counts are in the
//! very maps that they were in. Once the new maps hold what the old ones do, each interface goes over from the old
//! program to the new one in one step, without a packet in between that meets neither.
//!
//! Until then nothing is changed that cannot be taken back: should the kernel refuse, the old maps stay. A
//! map never becomes smaller.
//!
//! The contents of the maps that can be too small are of three kinds:
//!
//! - arrays that only we write, as `maglev`: they are copied, and nobody writes meanwhile;
//! - tables that hold nothing as long as they are small, since nothing of the file uses them: they begin
//!   empty, as the connection tables of a family without a VIP do;
//! - the claims on ports, that packets make and give back: those are copied too, and what the old program
//!   has changed after that follows when its last packet is through.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};
use log::info;

use super::policies::Policies;
use super::sizes::{sizes, Size};
use super::skeleton::{OpenXdpLbSkel, XdpLbSkel, XdpLbSkelBuilder};
use super::sweep::Sweeper;
use super::{attach, batch, handle, load, Datapath, Error};
use crate::state::Needs;

/// The maps of claims.
const CLAIMS: [&str; 2] = ["nat_ports", "nat_ports6"];

/// A sweeper that follows when maps are replaced: not while a sweep holds it.
pub type SharedSweeper = Arc<Mutex<Sweeper>>;

/// Locks a sweeper, for a sweep or to exchange it.
pub fn lock(sweeper: &SharedSweeper) -> MutexGuard<'_, Sweeper> {
    // It is replaced as a whole.
    sweeper.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Datapath {
    /// Handles for sweeping this datapath's tables, from another thread, now and after they have been made larger.
    ///
    /// # Errors
    /// When the kernel refuses to duplicate one.
    pub fn shared_sweeper(&mut self) -> Result<SharedSweeper, Error> {
        let shared = Arc::new(Mutex::new(self.sweeper()?));
        self.sweepers.push(Arc::downgrade(&shared));
        Ok(shared)
    }

    /// Makes the maps that are too small for `needs` larger.
    ///
    /// # Errors
    /// When the kernel refuses; everything is then as before.
    pub(super) fn make_room(&mut self, needs: &Needs) -> Result<(), Error> {
        let taken = self.tables.maglev.used();
        let mut small = Vec::new();
        for size in sizes(&self.limits, needs, taken) {
            let map = handle(&self.skeleton, size.map)?;
            if map.max_entries() < size.least {
                small.push(size);
            }
        }
        if small.is_empty() {
            return Ok(());
        }
        let names = small.iter().map(|size| size.map).collect::<Vec<_>>();
        let names = names.join(", ");
        match self.grow(&small) {
            Ok(()) => {
                info!("made larger for what the file needs: {names}");
                Ok(())
            }
            Err(error) => Err(Error::Growth {
                maps: names,
                source: Box::new(error),
            }),
        }
    }

    /// Makes the map of Maglev tables larger, since its free regions are in pieces that are too small. False: it
    /// is as large as it may be.
    ///
    /// # Errors
    /// As [`Datapath::make_room`].
    pub(super) fn make_regions(&mut self, needs: &Needs) -> Result<bool, Error> {
        let before = self.tables.maglev.capacity();
        let more = Needs {
            slots: u64::from(before) * 2,
            ..*needs
        };
        self.make_room(&more)?;
        Ok(self.tables.maglev.capacity() > before)
    }

    fn grow(&mut self, small: &[Size]) -> Result<(), Error> {
        load::begin();
        // As at the first load: a few bytes for each.
        let object = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = XdpLbSkelBuilder::default()
            .open(object)
            .map_err(load::refused)?;
        self.share_maps(&mut open, small)?;
        let mut next = open.load().map_err(load::refused)?;

        let map = |name: &str| handle(&next, name);
        let firewall = self.firewall.moved_to(map)?;
        let policies = Policies::new(map)?;
        let maglev = self.tables.maglev.moved_to(&map("maglev")?)?;
        let names: Vec<&str> = small.iter().map(|size| size.map).collect();
        if let Some(pins) = &self.pins {
            pins.pin_beside(next.object_mut(), &names)?;
        }
        // No sweep gives back claims in the one map while they are taken over to the other.
        let sweepers: Vec<SharedSweeper> = self.sweepers.iter().filter_map(Weak::upgrade).collect();
        let held: Vec<MutexGuard<'_, Sweeper>> = sweepers.iter().map(lock).collect();
        let former = std::mem::replace(&mut self.skeleton, next);
        match self.go_over(&former, &names, held.len()) {
            Ok(sweepers) => {
                for (mut held, sweeper) in held.into_iter().zip(sweepers) {
                    *held = sweeper;
                }
            }
            Err(error) => {
                self.skeleton = former;
                if let Some(pins) = &self.pins {
                    pins.remove_beside(&names);
                }
                return Err(error);
            }
        }
        self.firewall = firewall;
        self.policies = policies;
        self.tables.maglev = maglev;
        if let Some(pins) = &self.pins {
            pins.take_over(&names);
        }
        Ok(())
    }

    /// Lets the object have all maps of this one but the small ones, and gives those their new sizes.
    fn share_maps(&self, open: &mut OpenXdpLbSkel<'_>, small: &[Size]) -> Result<(), Error> {
        for mut map in open.open_object_mut().maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            match small.iter().find(|size| size.map == name) {
                Some(size) => map.set_max_entries(size.created),
                None => map.reuse_fd(handle(&self.skeleton, &name)?.as_fd()),
            }
            .map_err(load::refused)?;
        }
        Ok(())
    }

    /// Has all interfaces run the programs of this object and no longer those of `former`, once its maps hold
    /// what the former ones do. Gives back so many sweepers of its tables.
    ///
    /// # Errors
    /// When the kernel refuses; the interfaces run the programs of `former` then.
    fn go_over(
        &self,
        former: &XdpLbSkel<'_>,
        names: &[&str],
        sweepers: usize,
    ) -> Result<Vec<Sweeper>, Error> {
        let sweepers = (0..sweepers).map(|_| self.sweeper());
        let sweepers = sweepers.collect::<Result<_, _>>()?;
        let mut claims = Vec::new();
        for name in CLAIMS.into_iter().filter(|name| names.contains(name)) {
            let (from, to) = (handle(former, name)?, handle(&self.skeleton, name)?);
            claims.push(Claims::copy(from, to)?);
        }
        let (before, after) = (&former.progs.xdp_lb, &self.skeleton.progs.xdp_lb);
        attach::exchange(&self.interfaces, before.as_fd(), after.as_fd())?;
        let settled = self
            .tables
            .grace
            .wait()
            .and_then(|()| claims.iter().try_for_each(Claims::settle));
        if let Err(error) = settled {
            attach::exchange(&self.interfaces, after.as_fd(), before.as_fd())?;
            return Err(error);
        }
        Ok(sweepers)
    }
}

/// The claims of a map that are taken over to another one.
struct Claims<Map> {
    from: Map,
    to: Map,
    /// What was copied, by key.
    copied: Elements,
}

impl<Map: MapCore> Claims<Map> {
    /// Copies all claims, which go on changing in `from`.
    fn copy(from: Map, to: Map) -> Result<Self, Error> {
        let copied = read(&from)?;
        let keys: Vec<u8> = copied.keys().flatten().copied().collect();
        let values: Vec<u8> = copied.values().flatten().copied().collect();
        batch::update(&to, &keys, &values).map_err(|(_, error)| error)?;
        Ok(Claims { from, to, copied })
    }

    /// Follows what has changed in `from` since, now that nothing changes there any more.
    fn settle(&self) -> Result<(), Error> {
        let Claims { from, to, copied } = self;
        let late = late(copied, &read(from)?, &read(to)?);
        for (key, value) in &late.put {
            let written = to.update(key, value, MapFlags::ANY);
            written.map_err(|error| Error::map(to, "write", io::Error::other(error)))?;
        }
        batch::delete(to, &late.gone.concat())
    }
}

type Elements = HashMap<Vec<u8>, Vec<u8>>;

/// Changes that came too late to be copied.
#[derive(Debug, PartialEq, Eq)]
struct Late {
    put: Elements,
    gone: Vec<Vec<u8>>,
}

/// Those that were made in a map, which holds `settled` now, after it was `copied` to one that holds `live`. What
/// has changed there as well is the newer.
fn late(copied: &Elements, settled: &Elements, live: &Elements) -> Late {
    let untouched = |key: &Vec<u8>| live.get(key) == copied.get(key);
    let put = settled
        .iter()
        .filter(|(key, value)| copied.get(*key) != Some(value) && untouched(key));
    let gone = copied
        .keys()
        .filter(|key| !settled.contains_key(*key) && untouched(key));
    Late {
        put: put
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        gone: gone.cloned().collect(),
    }
}

fn read(map: &impl MapCore) -> Result<Elements, Error> {
    let mut elements = Elements::new();
    batch::for_each(map, |key, value| {
        elements.insert(key.to_vec(), value.to_vec());
    })?;
    Ok(elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(of: &[(u8, u8)]) -> Elements {
        let pairs = of.iter();
        pairs
            .map(|&(key, value)| (vec![key], vec![value]))
            .collect()
    }

    #[test]
    fn what_changed_while_it_was_copied_follows_and_what_is_newer_stays() {
        let copied = elements(&[(1, 10), (2, 10), (3, 10), (4, 10), (5, 10)]);
        // The old program has changed 2 and 3, given back 4 and 5, and made 6 and 7.
        let settled = elements(&[(1, 10), (2, 20), (3, 20), (6, 20), (7, 20)]);
        // The new one has changed 3 and 5, and made 7 and 8.
        let live = elements(&[
            (1, 10),
            (2, 10),
            (3, 30),
            (4, 10),
            (5, 30),
            (7, 30),
            (8, 30),
        ]);
        let late = late(&copied, &settled, &live);
        assert_eq!(late.put, elements(&[(2, 20), (6, 20)]));
        assert_eq!(late.gone, [vec![4]]);
    }

    #[test]
    fn what_the_new_program_gave_back_does_not_come_again() {
        let copied = elements(&[(1, 10), (2, 10)]);
        let settled = elements(&[(1, 20), (2, 10)]);
        let late = late(&copied, &settled, &Elements::new());
        assert_eq!((late.put, late.gone), (Elements::new(), Vec::new()));
    }
}
