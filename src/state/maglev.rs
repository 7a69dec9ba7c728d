//! Maglev tables: which backend each slot of a service belongs to.
//!
//! Owns the permutations, the order in which backends take slots, and the sizes of tables. Which
//! backends take part is [`super::plan`]'s choice, where a table lies in the flat array is
//! [`super::regions`]'.
//!
//! The scheme is that of Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4: each backend goes through the slots in a permutation of its own
//! and takes, at its turn, the first that is free. The paper leaves weights open. Here a backend of
//! weight w takes its first slot at time 0 and its k-th further one at time (k + u) / w, where u in
//! [0, 1) comes from its hash; turns go in order of time. What measuring the alternatives showed:
//!
//! - The order of two backends' turns depends on these two only. Rounds in which a backend has a
//!   turn whenever its credit reaches the largest weight depend on who is the largest: with 5,000
//!   backends of weights 1 to 5, changing one weight moved up to 3.8 % of the slots more than the
//!   change asked for, against 0.2 % in order of time.
//! - Rounds against a fixed weight of 1,000 avoid that, but visit every backend 1,000 times for each
//!   slot that it takes when all weights are 1: 175 ms for 500 backends, against 20 ms here.
//! - Without u, equal weights take their turns at the same instant, and where the table is full in the
//!   middle of such a crowd, the others pay: one backend of weight 1,000 among 499 of weight 10 came
//!   out 81 slots short, against less than one here.
//! - The paper's permutations are an offset and a step. Two backends whose steps are alike, or simple
//!   multiples, follow each other through the table: removing one of 3 moved 5 % of the slots too
//!   many in one case of a thousand, and 23 % at worst. The paper allows better permutations; the
//!   first occurrences in a sequence of random slots are one, and the worst case became 1.3 %.
//!
//! A share differs from its exact value q = M * w / W by less than 1 + q * N / M slots (N backends, M
//! slots, W the sum of weights), though nobody gets less than one; the worst seen was 1.9. Beyond the
//! slots that must move when a backend comes, goes or changes its weight, others follow in chains:
//! for equal weights about 0.4 % of the table with 3 backends, 2 % with 12, 2.6 % with 22, 1 % with
//! 40, 1.8 % with 180, 0.5 % with 200, 0.15 % with 5,000, and never seen above 4.2 %. That is the
//! price of even shares, however weights are handled.
//!
//! The size of a table follows the backends that the file gives the service, of any state and
//! weight, not those that can be chosen at the moment. Another size moves nearly everything: if it
//! followed the backends' health, one of 23 that fails would move nearly every flow without an entry, and
//! two instances of which one does not see a backend would agree on nothing. Only a file that takes the
//! service from one size class to another does so; tracked connections do not notice.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;

use xxhash_rust::xxh64::xxh64;

/// One size of table: what it serves and how many slots it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeClass {
    /// Fewest backends in the file that get this size.
    pub backends: u32,
    /// Slots: at least 90 for each backend up to 1,400 of them, which keeps shares within about one
    /// per cent. A prime, so that no regularity of the flows' hashes favours some slots.
    pub slots: u32,
}

/// All sizes, ascending.
pub const SIZE_CLASSES: [SizeClass; 4] = [
    SizeClass {
        backends: 1,
        slots: 251,
    },
    SizeClass {
        backends: 2,
        slots: 2_039,
    },
    SizeClass {
        backends: 23,
        slots: 16_381,
    },
    SizeClass {
        backends: 181,
        slots: MAX_SLOTS,
    },
];

/// Slots of the largest table.
pub const MAX_SLOTS: u32 = 131_071;

/// Most backends of one address family that a service may have: with more, a slot or two each, no table
/// could follow the weights.
pub const MAX_BACKENDS: usize = MAX_SLOTS as usize / 2;

/// A backend that takes part in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Decides, with the port, which slots it likes.
    pub address: IpAddr,
    /// In the host's order; 0 keeps the packet's own.
    pub port: u16,
    /// Its share relative to the others; with 0 it does not take part.
    pub weight: u16,
    /// The id that is written into its slots; it has no part in the choice.
    pub id: u32,
}

/// The number of slots for a service with so many backends in the file, of any state and weight; 0 for
/// none.
pub fn size_for(backends: usize) -> u32 {
    SIZE_CLASSES
        .iter()
        .rev()
        .find(|class| backends >= class.backends as usize)
        .map_or(0, |class| class.slots)
}

/// The slots of a service, `size` of them, each holding the id of a candidate.
///
/// Depends on the candidates' addresses, ports and weights, on the size and on the seed, and neither on
/// their order nor on their ids. Each candidate with a weight above 0 gets at least one slot, as long as
/// there are no more of them than slots. No candidate: no slots.
pub fn table(backends: &[Candidate], size: u32, seed: u64) -> Vec<u32> {
    let size = size as usize;
    let candidates = backends.iter().filter(|candidate| candidate.weight > 0);
    let mut walks: Vec<Walk> = candidates
        .map(|candidate| Walk::new(candidate, seed))
        .collect();
    // The place in this order decides between turns at the same instant, above all the first ones.
    walks.sort_unstable_by_key(|walk| {
        let Candidate {
            address,
            port,
            weight,
            ..
        } = *walk.candidate;
        (walk.key, address, port, weight)
    });

    let mut slots = vec![None; size];
    let mut turns: BinaryHeap<Reverse<(u64, usize)>> =
        (0..walks.len()).map(|index| Reverse((0, index))).collect();
    for _ in 0..size {
        let Some(mut turn) = turns.peek_mut() else {
            break;
        };
        let Reverse((_, index)) = *turn;
        let walk = &mut walks[index];
        walk.take(&mut slots);
        *turn = Reverse((walk.next_turn(), index));
    }
    slots.into_iter().flatten().collect()
}

/// A candidate on its way through its permutation of the slots.
struct Walk<'a> {
    candidate: &'a Candidate,
    /// The hash of the candidate, seed of its permutation.
    key: u64,
    /// Slots looked at.
    steps: u64,
    /// Slots taken.
    taken: u64,
}

impl<'a> Walk<'a> {
    fn new(candidate: &'a Candidate, seed: u64) -> Self {
        let address = match candidate.address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let mut name = [0; 18];
        name[..16].copy_from_slice(&address.octets());
        name[16..].copy_from_slice(&candidate.port.to_be_bytes());
        Walk {
            candidate,
            key: xxh64(&name, seed),
            steps: 0,
            taken: 0,
        }
    }

    /// Takes the first free slot on the way, if any is free.
    fn take(&mut self, slots: &mut [Option<u32>]) {
        let mut free = None;
        // Random slots find the last free one in so many steps more often than not. Whoever does not
        // takes one that is left: this bounds the time and concerns a slot or two of a table.
        for _ in 0..slots.len() {
            let at = (xxh64(&self.steps.to_le_bytes(), self.key) % slots.len() as u64) as usize;
            self.steps += 1;
            if slots[at].is_none() {
                free = Some(at);
                break;
            }
        }
        if let Some(at) = free.or_else(|| slots.iter().position(Option::is_none)) {
            slots[at] = Some(self.candidate.id);
            self.taken += 1;
        }
    }

    /// u of the module's description, in units of 2^-40.
    fn phase(&self) -> u64 {
        self.key >> 24
    }

    /// When it takes its next slot, in units of 2^-40: below 2^58, since no table has 2^18 slots.
    fn next_turn(&self) -> u64 {
        ((self.taken << 40) + self.phase()) / u64::from(self.candidate.weight)
    }
}
