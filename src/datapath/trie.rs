//! Tries: changes of several elements of which the kernel may refuse one, for want of room or memory.
//!
//! Owns the way back. A trie has no whole to swap, so packets meet each element as it is written; but a change
//! that is refused halfway is led back, by the way that it came: every state in between was one that packets
//! may meet, and needs no more room than it did on the way there.

use std::io;

use libbpf_rs::{ErrorKind, MapCore, MapFlags};
use log::warn;
use plain::Plain;

use super::abi::bytes_of;
use super::{batch, Error};

/// Elements to write and to delete, in this order.
pub(super) struct Changes<K, V> {
    put: Vec<Put<K, V>>,
    gone: Vec<(K, V)>,
}

/// An element to write.
struct Put<K, V> {
    key: K,
    /// Its value before; `None`: it is new.
    before: Option<V>,
    after: V,
}

impl<K, V> Default for Changes<K, V> {
    fn default() -> Self {
        Changes {
            put: Vec::new(),
            gone: Vec::new(),
        }
    }
}

impl<K: Plain, V: Plain> Changes<K, V> {
    pub(super) fn put(&mut self, key: K, before: Option<V>, after: V) {
        self.put.push(Put { key, before, after });
    }

    /// `before` is the value that it had.
    pub(super) fn remove(&mut self, key: K, before: V) {
        self.gone.push((key, before));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.put.is_empty() && self.gone.is_empty()
    }

    /// Makes the changes in a trie that holds `held` elements.
    ///
    /// # Errors
    /// When there is no room for the new elements beside the old ones, or the kernel refuses one; the trie is
    /// then as it was.
    pub(super) fn make(&self, map: &impl MapCore, held: usize) -> Result<(), Error> {
        let new = self.put.iter().filter(|put| put.before.is_none()).count();
        let (needed, room) = (held + new, map.max_entries() as usize);
        if new > 0 && needed > room {
            return Err(Error::Beside {
                map: map.name().to_string_lossy().into_owned(),
                needed,
                room,
            });
        }
        let keys = joined(self.put.iter().map(|put| &put.key));
        let values = joined(self.put.iter().map(|put| &put.after));
        if let Err((written, error)) = batch::update(map, &keys, &values) {
            self.take_back(map, written);
            return Err(error);
        }
        batch::delete(map, &joined(self.gone.iter().map(|(key, _)| key))).inspect_err(|_| {
            for (key, before) in self.gone.iter().rev() {
                tell(map, restore(map, key, before));
            }
            self.take_back(map, self.put.len());
        })
    }

    /// Takes back the first `written` elements.
    fn take_back(&self, map: &impl MapCore, written: usize) {
        for Put { key, before, .. } in self.put.iter().take(written).rev() {
            let back = match before {
                Some(before) => restore(map, key, before),
                None => match map.delete(bytes_of(key)) {
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                    back => back,
                },
            };
            tell(map, back);
        }
    }
}

fn restore(map: &impl MapCore, key: &impl Plain, value: &impl Plain) -> libbpf_rs::Result<()> {
    map.update(bytes_of(key), bytes_of(value), MapFlags::ANY)
}

/// Of an element that cannot be led back. The next change compares with what the map holds.
fn tell(map: &impl MapCore, back: libbpf_rs::Result<()>) {
    if let Err(error) = back {
        warn!("{}", Error::map(map, "restore", io::Error::other(error)));
    }
}

fn joined<'a, T: Plain + 'a>(values: impl Iterator<Item = &'a T>) -> Vec<u8> {
    values.flat_map(bytes_of).copied().collect()
}
