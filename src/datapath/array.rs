//! Arrays that the kernel lets user space map into memory (`BPF_F_MMAPABLE`).
//!
//! Owns the mapping, whole or in windows, and the order in which packets see writes to it.
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

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{fence, AtomicU64, Ordering};

use libbpf_rs::MapCore;
use nix::sys::mman::{mmap, munmap, MapFlags, ProtFlags};
use nix::unistd::{sysconf, SysconfVar};
use plain::Plain;

use super::abi::bytes_of;
use super::Error;

const WORD: usize = size_of::<u64>();

/// A window's size, about: mapping and unmapping cost little beside reading so much.
const WINDOW: usize = 4 << 20;

/// A BPF array of `T` in memory, or a run of its elements, counted from 0. `T` is a whole number of words.
///
/// The kernel inserts every page as the mapping is made, and so all of it counts as this process's memory
/// at once: what is large and seldom looked at as a whole is for [`Windows`].
pub struct Array<T> {
    mapping: Mapping,
    /// Where in the mapping the first element begins.
    skip: usize,
    length: u32,
    writable: bool,
    element: PhantomData<T>,
}

impl<T: Plain + Copy + Default> Array<T> {
    /// Maps the array for reading and writing.
    ///
    /// # Errors
    /// When its value is not of `T`'s size, or the kernel refuses.
    pub fn map(map: &impl MapCore) -> Result<Self, Error> {
        Windows::new(map)?.whole()
    }

    /// Maps the array for reading.
    ///
    /// # Errors
    /// As [`Array::map`].
    pub fn map_read_only(map: &impl MapCore) -> Result<Self, Error> {
        Windows::read_only(map)?.whole()
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
        let count = self.length as usize * (size_of::<T>() / WORD);
        // SAFETY: the mapping has all elements behind `skip`, which is a whole number of words; it is aligned
        // to a page, lives as long as `self`, and is accessed by everybody, the kernel's side included, in
        // whole words or parts of one.
        unsafe {
            let first = self.mapping.base.cast::<u8>().add(self.skip);
            std::slice::from_raw_parts(first.cast().as_ptr(), count)
        }
    }
}

/// A BPF array of `T` of which no more than a window is in memory at a time.
pub struct Windows<T> {
    map: OwnedFd,
    name: String,
    length: u32,
    writable: bool,
    element: PhantomData<T>,
}

impl<T: Plain + Copy + Default> Windows<T> {
    /// Windows for reading and writing.
    ///
    /// # Errors
    /// When its value is not of `T`'s size, or the kernel has no more file descriptors.
    pub fn new(map: &impl MapCore) -> Result<Self, Error> {
        Self::of(map, true)
    }

    /// Windows for reading.
    ///
    /// # Errors
    /// As [`Windows::new`].
    pub fn read_only(map: &impl MapCore) -> Result<Self, Error> {
        Self::of(map, false)
    }

    fn of(map: &impl MapCore, writable: bool) -> Result<Self, Error> {
        const { assert!(size_of::<T>() > 0 && size_of::<T>().is_multiple_of(WORD)) };
        let name = map.name().to_string_lossy().into_owned();
        if map.value_size() as usize != size_of::<T>() || map.max_entries() == 0 {
            return Err(Error::Layout { map: name });
        }
        let descriptor = map.as_fd().try_clone_to_owned();
        Ok(Windows {
            map: descriptor.map_err(|error| Error::map(map, "open", error))?,
            name,
            length: map.max_entries(),
            writable,
            element: PhantomData,
        })
    }

    /// How many elements there are.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Calls `visit` with the elements of `range`, in order, a window at a time: the index of the window's
    /// first element, and the window, whose own indices begin at 0. What is beyond the end is left out.
    ///
    /// # Errors
    /// When the kernel refuses a window, or with the first error of `visit`, which ends it.
    pub fn for_each<E: From<Error>>(
        &self,
        range: Range<u32>,
        mut visit: impl FnMut(u32, &mut Array<T>) -> Result<(), E>,
    ) -> Result<(), E> {
        let step = (WINDOW / size_of::<T>()).max(1);
        for first in (range.start..range.end.min(self.length)).step_by(step) {
            let end = first.saturating_add(step as u32).min(range.end);
            visit(first, &mut self.window(first..end)?)?;
        }
        Ok(())
    }

    /// The elements of `range` in memory, which are counted from 0 there. What is beyond the end is left
    /// out.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn window(&self, range: Range<u32>) -> Result<Array<T>, Error> {
        let end = range.end.min(self.length);
        let elements = range.start.min(end)..end;
        let refused = |source| Error::Map {
            map: self.name.clone(),
            action: "map into memory",
            source,
        };
        let page = page_size().map_err(refused)?;
        let (offset, skip, bytes) = span(&elements, size_of::<T>(), page);
        Ok(Array {
            mapping: Mapping::new(&self.map, offset, bytes, self.writable).map_err(refused)?,
            skip,
            length: elements.end - elements.start,
            writable: self.writable,
            element: PhantomData,
        })
    }

    fn whole(&self) -> Result<Array<T>, Error> {
        self.window(0..self.length)
    }
}

/// Where elements of that size lie: the offset of the page in which the first begins, how far behind that it
/// does, and the bytes from there to the end of the last.
fn span(elements: &Range<u32>, size: usize, page: usize) -> (usize, usize, usize) {
    let [first, end] = [elements.start, elements.end].map(|index| index as usize * size);
    let skip = first % page;
    (first - skip, skip, end - first + skip)
}

/// Architectures have pages of 4 to 64 KiB.
fn page_size() -> io::Result<usize> {
    let size = sysconf(SysconfVar::PAGE_SIZE)?;
    let size = size.and_then(|size| usize::try_from(size).ok());
    size.filter(|size| size.is_power_of_two())
        .ok_or_else(|| io::Error::other("the system does not say how large a page is"))
}

/// Pages in memory, until it is dropped.
struct Mapping {
    base: NonNull<c_void>,
    bytes: NonZeroUsize,
}

// SAFETY: the mapping belongs to this value alone and is valid in any thread.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(map: &impl AsFd, offset: usize, bytes: usize, writable: bool) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = offset.try_into().map_err(io::Error::other)?;
        let protection = if writable {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else is touched.
        let base = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, map, offset) }?;
        Ok(Mapping { base, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, of that size, which nothing refers to any more. It cannot fail
        // for such a mapping, and nothing could be done if it did.
        let _ = unsafe { munmap(self.base, self.bytes.get()) };
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::mem::{offset_of, size_of_val};

    use nix::sys::memfd::{memfd_create, MFdFlags};
    use nix::unistd::ftruncate;

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

    /// Its words do not divide a page: elements lie across the edges of pages.
    type Element = abi::traffic;

    const ELEMENTS: u32 = 70_000;

    /// As a BPF array is mapped, a file in memory is too.
    fn windows(writable: bool) -> Windows<Element> {
        let file = memfd_create(c"windows", MFdFlags::MFD_CLOEXEC).expect("a file in memory");
        let bytes = i64::from(ELEMENTS) * size_of::<Element>() as i64;
        ftruncate(&file, bytes).expect("room");
        Windows {
            map: file,
            name: "windows".into(),
            length: ELEMENTS,
            writable,
            element: PhantomData,
        }
    }

    fn numbered(number: u32) -> Element {
        Element {
            opened: number.into(),
            closed: u64::from(number) << 32,
            ..Element::default()
        }
    }

    /// Its number, by two of its words.
    fn number(element: &Element) -> (u64, u64) {
        (element.opened, element.closed >> 32)
    }

    /// What windows over `range` show: the indices and numbers of its elements.
    fn seen(windows: &Windows<Element>, range: Range<u32>) -> Vec<(u32, (u64, u64))> {
        let mut seen = Vec::new();
        windows
            .for_each(range, |first, window| {
                let elements = (0..window.length()).map(|at| (first + at, window.get(at)));
                seen.extend(
                    elements.map(|(index, element)| (index, number(&element.expect("inside")))),
                );
                assert!(window.get(window.length()).is_none());
                Ok::<(), Error>(())
            })
            .expect("all windows");
        seen
    }

    #[test]
    fn windows_show_every_element_once() {
        let windows = windows(true);
        let mut whole = windows.whole().expect("a mapping");
        for index in 0..ELEMENTS {
            assert!(whole.set(index, &numbered(index + 1)));
        }
        for range in [
            0..ELEMENTS,
            0..1,
            1..2,
            17..ELEMENTS - 13,
            ELEMENTS - 1..ELEMENTS,
            ELEMENTS - 2..u32::MAX,
            ELEMENTS..u32::MAX,
            u32::MAX..u32::MAX,
            5..5,
        ] {
            let expected: Vec<_> = (range.start..range.end.min(ELEMENTS))
                .map(|index| (index, number(&numbered(index + 1))))
                .collect();
            assert_eq!(seen(&windows, range.clone()), expected, "{range:?}");
        }
    }

    #[test]
    fn windows_write_their_own_elements_alone() {
        let windows = windows(true);
        for range in [3..4, 40..50_000, ELEMENTS - 1..ELEMENTS] {
            windows
                .for_each(range, |first, window| {
                    for at in 0..window.length() {
                        window.set(at, &numbered(first + at + 1));
                    }
                    assert!(!window.set(window.length(), &numbered(9)));
                    Ok::<(), Error>(())
                })
                .expect("all windows");
        }
        for (index, element) in seen(&windows, 0..ELEMENTS) {
            let written = matches!(index, 3 | 40..50_000) || index == ELEMENTS - 1;
            let expected = if written {
                number(&numbered(index + 1))
            } else {
                (0, 0)
            };
            assert_eq!(element, expected, "{index}");
        }
    }

    #[test]
    fn windows_end_with_the_first_error_and_leave_alone_what_is_for_reading() {
        let windows = windows(false);
        let mut calls = 0;
        let ended: Result<(), Error> = windows.for_each(0..ELEMENTS, |_, window| {
            calls += 1;
            assert!(!window.set(0, &numbered(1)));
            Err(Error::Layout { map: "mine".into() })
        });
        assert!(matches!(ended, Err(Error::Layout { map }) if map == "mine"));
        assert_eq!(calls, 1);
    }

    /// Of pages that this machine may not have.
    #[test]
    fn a_window_begins_at_a_page_and_ends_with_its_elements() {
        for page in [4096, 16_384, 65_536] {
            for size in [8, 512, 960, 200_000] {
                for elements in [0..1, 0..7, 1..2, 8..9, 17..300, 4369..8738] {
                    let (offset, skip, bytes) = span(&elements, size, page);
                    assert_eq!(offset % page, 0);
                    assert!(skip < page);
                    assert_eq!(offset + skip, elements.start as usize * size);
                    assert_eq!(offset + bytes, elements.end as usize * size);
                }
            }
        }
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
