//! Arrays that the kernel lets user space map into memory (`BPF_F_MMAPABLE`).
//!
//! Owns the mapping, and the order in which packets see writes to it.
//!
//! Elements are read and written as 64-bit words, each in one access: a packet on another CPU sees a word
//! either before or after a change. So values that must change together share a word, and the datapath reads
//! that word in one access too: a region's offset and size, a next hop's address and interface, the
//! firewall's switch and the stamp of its rules.
//!
//! Between words there is an order only where somebody makes one: arm64 lets other CPUs see plain stores in
//! any order. There are three cases.
//!
//! - **A word says where others are**: a service's region, a backend's slice of `nat_pool`, a next hop's
//!   interface, a slot's backend. [`Array::set`] stores with Release, so that a reader that sees the word
//!   also sees all that was written before it. The reader needs no barrier: it computes the address of the second
//!   load from the first, and every CPU that Linux runs on keeps such loads in order. (The Linux kernel's
//!   own readers under RCU count on the same.)
//! - **A map that is written by a system call says so**: a node of `fw_prefixes` names a level. The kernel
//!   publishes the node with Release as well, after everything this thread has stored before the call.
//! - **Neither**: the datapath tests a word and then reads something at an address of its own, as it does
//!   with the stamp of the rules and `fw_prefixes`, or with the policies' bits and `dos_policies`. A test
//!   does not hold the second load back. There the writer waits for a grace period between the data and the
//!   word that publishes it: a packet that sees the word began after the wait had begun.
//!
//! Reading back is ordered likewise: [`Array::get`] ends with an Acquire fence, so that later reads are at
//! least as new.

use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{fence, AtomicU64, Ordering};

use libbpf_rs::MapCore;
use nix::sys::mman::{mmap, munmap, MapFlags, ProtFlags};
use plain::Plain;

use super::abi::bytes_of;
use super::Error;

const WORD: usize = size_of::<u64>();

/// A BPF array of `T` in memory. `T` is a whole number of words.
pub struct Array<T> {
    base: NonNull<AtomicU64>,
    bytes: NonZeroUsize,
    length: u32,
    writable: bool,
    element: PhantomData<T>,
}

// SAFETY: the mapping belongs to this value alone and is valid in any thread.
unsafe impl<T> Send for Array<T> {}

impl<T: Plain + Copy + Default> Array<T> {
    /// Maps the array for reading and writing.
    ///
    /// # Errors
    /// When its value is not of `T`'s size, or the kernel refuses.
    pub fn map(map: &impl MapCore) -> Result<Self, Error> {
        Self::map_with(map, true)
    }

    /// Maps the array for reading.
    ///
    /// # Errors
    /// As [`Array::map`].
    pub fn map_read_only(map: &impl MapCore) -> Result<Self, Error> {
        Self::map_with(map, false)
    }

    fn map_with(map: &impl MapCore, writable: bool) -> Result<Self, Error> {
        const { assert!(size_of::<T>().is_multiple_of(WORD)) };
        let name = || map.name().to_string_lossy().into_owned();
        let length = map.max_entries();
        let bytes = NonZeroUsize::new(size_of::<T>() * length as usize)
            .filter(|_| map.value_size() as usize == size_of::<T>())
            .ok_or_else(|| Error::Layout { map: name() })?;
        let protection = if writable {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else is touched.
        let base = unsafe {
            mmap(
                None,
                bytes,
                protection,
                MapFlags::MAP_SHARED,
                map.as_fd(),
                0,
            )
        }
        .map_err(|error| Error::Map {
            map: name(),
            action: "map into memory",
            source: error.into(),
        })?;
        Ok(Array {
            base: base.cast(),
            bytes,
            length,
            writable,
            element: PhantomData,
        })
    }

    /// Another map that holds what this one does, in memory: of the same element, and at least as large. Nobody
    /// else may write this one meanwhile.
    ///
    /// # Errors
    /// As [`Array::map`].
    pub(super) fn moved_to(&self, map: &impl MapCore) -> Result<Self, Error> {
        let moved = Self::map(map)?;
        for (to, from) in moved.words().iter().zip(self.words()) {
            // Packets are led there by a program that does not run yet.
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Ok(moved)
    }

    /// How many elements there are.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// The element, or `None` beyond the end.
    pub fn get(&self, index: u32) -> Option<T> {
        let mut value = T::default();
        // SAFETY: `T` is plain: all its bytes are initialised, and any values of them are valid.
        let bytes = unsafe { plain::as_mut_bytes(&mut value) };
        for (word, bytes) in self
            .element(index)?
            .iter()
            .zip(bytes.chunks_exact_mut(WORD))
        {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        // A fence, since a load with Acquire is not promised to work on memory that is mapped for reading.
        fence(Ordering::Acquire);
        Some(value)
    }

    /// Writes those words of the element that differ, in order, each seen no sooner than everything written
    /// before it; true if any did. An index beyond the end, or an array mapped for reading, is left alone.
    pub fn set(&mut self, index: u32, value: &T) -> bool {
        match self.get(index) {
            Some(live) => self.replace(index, &live, value),
            None => false,
        }
    }

    /// Writes those words in which `after` differs from `before`, in order, and leaves the others to
    /// their other writers; true if there are any. Otherwise as [`Array::set`].
    pub fn replace(&mut self, index: u32, before: &T, after: &T) -> bool {
        match self.element(index).filter(|_| self.writable) {
            Some(words) => publish(words, words_of(before).zip(words_of(after))),
            None => false,
        }
    }

    /// Adds to the element's first word, which wraps, atomically. As [`Array::set`] beyond the end.
    pub fn add(&self, index: u32, count: u64) {
        let first = self.element(index).and_then(<[AtomicU64]>::first);
        if let Some(word) = first.filter(|_| self.writable) {
            word.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn element(&self, index: u32) -> Option<&[AtomicU64]> {
        let count = size_of::<T>() / WORD;
        let first = index as usize * count;
        self.words().get(first..first + count)
    }
}

impl<T> Array<T> {
    /// The array's words, for those who read or write many: with Relaxed, and then publish what leads there
    /// with [`Array::set`]. Only an array that is mapped for writing may be written.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has so many bytes, is aligned to a page, lives as long as `self`, and is
        // accessed by everybody, the kernel's side included, in whole words or parts of one.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.bytes.get() / WORD) }
    }
}

/// A word in memory that others read while it is written.
trait Word {
    /// Stores in one access, after all that was stored before.
    fn publish(&self, value: u64);
}

impl Word for AtomicU64 {
    fn publish(&self, value: u64) {
        self.store(value, Ordering::Release);
    }
}

/// Stores those of `words` whose value is to change, in order; `changes` has the value before and after for
/// each. True if there are any.
fn publish(words: &[impl Word], changes: impl Iterator<Item = (u64, u64)>) -> bool {
    let mut changed = false;
    for (word, (before, after)) in words.iter().zip(changes) {
        if before != after {
            word.publish(after);
            changed = true;
        }
    }
    changed
}

fn words_of<T: Plain>(value: &T) -> impl Iterator<Item = u64> + '_ {
    let words = bytes_of(value).chunks_exact(WORD);
    words.map(|bytes| u64::from_ne_bytes(std::array::from_fn(|i| bytes[i])))
}

impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map_with`, of that size, which nothing refers to any more. It cannot
        // fail for such a mapping, and nothing could be done if it did.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::mem::{offset_of, size_of_val};

    use super::*;
    use crate::datapath::abi;

    /// A memory that remembers each store.
    struct Recorded<'a> {
        at: usize,
        stores: &'a RefCell<Vec<(usize, u64)>>,
    }

    impl Word for Recorded<'_> {
        fn publish(&self, value: u64) {
            self.stores.borrow_mut().push((self.at, value));
        }
    }

    /// The words that writing `after` over `before` stores.
    fn stores<T: Plain>(before: &T, after: &T) -> Vec<(usize, u64)> {
        let stores = RefCell::default();
        let words: Vec<Recorded<'_>> = (0..size_of::<T>() / WORD)
            .map(|at| Recorded {
                at,
                stores: &stores,
            })
            .collect();
        let any = publish(&words, words_of(before).zip(words_of(after)));
        assert_eq!(any, !stores.borrow().is_empty());
        drop(words);
        stores.into_inner()
    }

    #[test]
    fn only_the_words_that_differ_are_stored_each_once_and_in_order() {
        let before = abi::backend::default();
        let mut after = before;
        after.hop = abi::hop {
            mac: [2, 0, 0, 0, 0, 7],
            slot: 3,
        };
        after.generation = 9;
        after.weight = 5;
        after.nat_pool = abi::region(4096, 12);
        let hop = u64::from_ne_bytes([2, 0, 0, 0, 0, 7, 3, 0]);
        assert_eq!(
            stores(&before, &after),
            [
                (offset_of!(abi::backend, hop) / WORD, hop),
                (offset_of!(abi::backend, generation) / WORD, 5 << 48 | 9),
                (offset_of!(abi::backend, nat_pool) / WORD, 12 << 32 | 4096),
            ]
        );
        assert_eq!(stores(&after, &after), []);
    }

    /// All that the datapath reads in one access lies in one word.
    #[test]
    fn what_is_read_as_one_is_one_word() {
        fn word(offset: usize, size: usize) -> Option<usize> {
            let (first, last) = (offset / WORD, (offset + size - 1) / WORD);
            (first == last).then_some(first)
        }
        let backend = abi::backend::default();
        for (offset, size) in [
            (offset_of!(abi::backend, hop), size_of_val(&backend.hop)),
            (
                offset_of!(abi::backend, nat_pool),
                size_of_val(&backend.nat_pool),
            ),
            (offset_of!(abi::service, table), 8),
            (offset_of!(abi::interface, mac), 8),
            (offset_of!(abi::slots, backend), 8),
            (offset_of!(abi::epoch, number), 8),
        ] {
            assert_eq!(size, WORD);
            assert!(word(offset, size).is_some(), "at {offset}");
        }
        let settings = [
            offset_of!(abi::settings, admission),
            offset_of!(abi::settings, firewall),
        ];
        let [stamp, switch] = settings.map(|offset| word(offset, 4));
        assert_eq!(stamp, switch);
        let ports = [
            offset_of!(abi::settings, nat_port_first),
            offset_of!(abi::settings, nat_port_last),
        ];
        let [first, last] = ports.map(|offset| word(offset, 2));
        assert_eq!(first, last);
    }
}
