//! Arrays that the kernel lets user space map into memory (`BPF_F_MMAPABLE`).
//!
//! Owns the mapping. Elements are read and written as 64-bit words, each in one access, so that a
//! packet sees a word either before or after a change; what must change together shares a word.

use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_rs::MapCore;
use nix::sys::mman::{mmap, munmap, MapFlags, ProtFlags};
use plain::Plain;

use super::abi::bytes_of;
use super::Error;

const WORD: usize = size_of::<u64>();

/// A BPF array of `T` in memory. `T` is a whole number of words.
pub struct Array<T> {
    base: NonNull<u64>,
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

    /// How many elements there are.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// The element, or `None` beyond the end.
    pub fn get(&self, index: u32) -> Option<T> {
        let mut value = T::default();
        // SAFETY: `T` is plain: all its bytes are initialised, and any values of them are valid.
        let bytes = unsafe { plain::as_mut_bytes(&mut value) };
        for (at, bytes) in self.words(index)?.zip(bytes.chunks_exact_mut(WORD)) {
            bytes.copy_from_slice(&Self::load(at).to_ne_bytes());
        }
        Some(value)
    }

    /// Writes those words of the element that differ, in order; true if any did. An index beyond the
    /// end, or an array mapped for reading, is left alone.
    pub fn set(&mut self, index: u32, value: &T) -> bool {
        match self.get(index) {
            Some(live) => self.replace(index, &live, value),
            None => false,
        }
    }

    /// Writes those words in which `after` differs from `before`, in order, and leaves the others to
    /// whoever else writes them; true if there are any. Otherwise as [`Array::set`].
    pub fn replace(&mut self, index: u32, before: &T, after: &T) -> bool {
        let Some(words) = self.words(index).filter(|_| self.writable) else {
            return false;
        };
        let mut changed = false;
        let pairs = words_of(before).zip(words_of(after));
        for (at, (before, word)) in words.zip(pairs) {
            if before != word {
                // SAFETY: `words` yields aligned addresses within the mapping, which is writable; the kernel
                // and other CPUs access it concurrently, hence volatile, one word at a time.
                unsafe { at.as_ptr().write_volatile(word) };
                changed = true;
            }
        }
        changed
    }

    /// Adds one to the element's first word, whoever else does so too. As [`Array::set`] beyond the end.
    pub fn increment(&self, index: u32) {
        let first = self.words(index).and_then(|mut words| words.next());
        if let Some(at) = first.filter(|_| self.writable) {
            // SAFETY: an aligned address within the mapping, which is writable and lives as long as `self`;
            // others access it with atomic instructions or as whole words.
            let word = unsafe { AtomicU64::from_ptr(at.as_ptr()) };
            word.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn words(&self, index: u32) -> Option<impl Iterator<Item = NonNull<u64>>> {
        if index >= self.length {
            return None;
        }
        let count = size_of::<T>() / WORD;
        // SAFETY: index < length, and the mapping holds length * count words.
        let first = unsafe { self.base.add(index as usize * count) };
        // SAFETY: within the element, likewise.
        Some((0..count).map(move |i| unsafe { first.add(i) }))
    }

    fn load(at: NonNull<u64>) -> u64 {
        // SAFETY: callers pass addresses from `words`; volatile, since others write.
        unsafe { at.as_ptr().read_volatile() }
    }
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
