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
    let candidates = backends.iter().filter(|candidate| candidate.weight > 0);
    let mut order: Vec<(u64, &Candidate)> = candidates
        .map(|candidate| (key(candidate, seed), candidate))
        .collect();
    // The place in this order decides between turns at the same instant, above all the first ones.
    order.sort_unstable_by(|(key, one), (other_key, other)| {
        let rest = |candidate: &Candidate| (candidate.address, candidate.port, candidate.weight);
        key.cmp(other_key).then_with(|| rest(one).cmp(&rest(other)))
    });
    let walks = order
        .into_iter()
        .map(|(key, candidate)| Walk::new(key, candidate))
        .collect();
    // A remainder by a constant is a multiplication, and the largest tables are what takes time.
    if size == MAX_SLOTS {
        fill(walks, size, |hash| hash % u64::from(MAX_SLOTS))
    } else {
        fill(walks, size, |hash| hash % u64::from(size))
    }
}

/// Lets each walk take slots, in order of their turns, until none is free. `remainder` is that by `size`.
fn fill(mut walks: Vec<Walk>, size: u32, remainder: impl Fn(u64) -> u64) -> Vec<u32> {
    if walks.is_empty() {
        return Vec::new();
    }
    let mut table = vec![0; size as usize];
    let mut free = Free::new(size);
    let mut take = |walk: &mut Walk| {
        if let Some(slot) = walk.next_free(&mut free, &remainder) {
            table[slot] = walk.id;
        }
        free.count > 0
    };
    // The first turns are all at time 0.
    if walks.iter_mut().all(&mut take) {
        // The others are put in order a stretch of time after the other, in which each has one turn on
        // average. With equal weights they come in order by themselves.
        let weights: u64 = walks.iter().map(|walk| u64::from(walk.weight)).sum();
        let stretch = ((walks.len() as u64) << TIME_BITS) / weights;
        let mut turns: Vec<u64> = Vec::with_capacity(2 * walks.len());
        for from in (0..).step_by(stretch as usize) {
            turns.clear();
            for (index, walk) in (0..).zip(&mut walks) {
                while walk.turn < from + stretch {
                    turns.push((walk.turn - from) << INDEX_BITS | index);
                    walk.set_next_turn();
                }
            }
            turns.sort_unstable();
            let mut in_order = turns.iter().map(|turn| turn & ((1 << INDEX_BITS) - 1));
            if !in_order.all(|index| take(&mut walks[index as usize])) {
                break;
            }
        }
    }
    table
}

/// The hash of a candidate, seed of its permutation.
fn key(candidate: &Candidate, seed: u64) -> u64 {
    let address = match candidate.address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut name = [0; 18];
    name[..16].copy_from_slice(&address.octets());
    name[16..].copy_from_slice(&candidate.port.to_be_bytes());
    xxh64(&name, seed)
}

/// [`xxh64`] of the eight bytes of a number, lowest first. A large table takes more than a million of them.
fn xxh64_of_number(number: u64, seed: u64) -> u64 {
    const PRIMES: [u64; 5] = [
        0x9e37_79b1_85eb_ca87,
        0xc2b2_ae3d_27d4_eb4f,
        0x1656_67b1_9e37_79f9,
        0x85eb_ca77_c2b2_ae63,
        0x27d4_eb2f_1656_67c5,
    ];
    let [one, two, three, four, five] = PRIMES;
    let bytes = size_of_val(&number) as u64;
    let mut hash = seed.wrapping_add(five).wrapping_add(bytes);
    hash ^= number.wrapping_mul(two).rotate_left(31).wrapping_mul(one);
    hash = hash.rotate_left(27).wrapping_mul(one).wrapping_add(four);
    hash = (hash ^ hash >> 33).wrapping_mul(two);
    hash = (hash ^ hash >> 29).wrapping_mul(three);
    hash ^ hash >> 32
}

/// Which slots nobody has taken, a bit for each: few enough bytes to stay in the CPU's nearest cache.
struct Free {
    words: Vec<u64>,
    /// Slots of the table.
    size: u32,
    /// Those that are free.
    count: u32,
}

impl Free {
    fn new(size: u32) -> Self {
        let mut words = vec![u64::MAX; size.div_ceil(u64::BITS) as usize];
        if let (Some(last), beyond @ 1..) = (words.last_mut(), size % u64::BITS) {
            *last = (1 << beyond) - 1;
        }
        Free {
            words,
            size,
            count: size,
        }
    }

    /// Whether the slot was free.
    fn take(&mut self, slot: usize) -> bool {
        let bit = 1 << (slot % u64::BITS as usize);
        let word = &mut self.words[slot / u64::BITS as usize];
        let was_free = *word & bit != 0;
        if was_free {
            *word ^= bit;
            self.count -= 1;
        }
        was_free
    }

    /// The first slot that is free, if one is.
    fn take_first(&mut self) -> Option<usize> {
        let (index, word) = (0..).zip(&self.words).find(|(_, word)| **word != 0)?;
        let slot = index * u64::BITS as usize + word.trailing_zeros() as usize;
        self.take(slot).then_some(slot)
    }
}

/// Bits of a time behind the point: times are in units of 2^-40. Below 2^58, since no table has 2^18 slots.
const TIME_BITS: u32 = 40;

/// Bits that a candidate's place in the order takes, where each has a slot.
const INDEX_BITS: u32 = 18;

/// A candidate on its way through its permutation of the slots.
struct Walk {
    key: u64,
    /// Slots looked at.
    steps: u64,
    /// When its next turn is, of those that have not been put in order, and the rest of that division by
    /// the weight.
    turn: u64,
    rest: u64,
    /// Between two turns, likewise.
    between: (u64, u64),
    id: u32,
    weight: u16,
}

impl Walk {
    /// One that is about to have its first turn, at time 0.
    fn new(key: u64, candidate: &Candidate) -> Self {
        let weight = u64::from(candidate.weight);
        let divided = |time: u64| (time / weight, time % weight);
        // u of the module's description.
        let phase = key >> (u64::BITS - TIME_BITS);
        let (turn, rest) = divided((1 << TIME_BITS) + phase);
        Walk {
            key,
            steps: 0,
            turn,
            rest,
            between: divided(1 << TIME_BITS),
            id: candidate.id,
            weight: candidate.weight,
        }
    }

    fn set_next_turn(&mut self) {
        self.turn += self.between.0;
        self.rest += self.between.1;
        if self.rest >= u64::from(self.weight) {
            self.rest -= u64::from(self.weight);
            self.turn += 1;
        }
    }

    /// Takes the first free slot on the way, if any is free.
    fn next_free(&mut self, free: &mut Free, remainder: &impl Fn(u64) -> u64) -> Option<usize> {
        // Random slots find the last free one in so many steps more often than not. One that does not
        // takes one that is left: this bounds the time and concerns a slot or two of a table.
        let last = self.steps + u64::from(free.size);
        while self.steps < last {
            let slot = remainder(xxh64_of_number(self.steps, self.key)) as usize;
            self.steps += 1;
            if free.take(slot) {
                return Some(slot);
            }
        }
        free.take_first()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_hash_of_a_number_is_that_of_its_bytes(number: u64, seed: u64) {
            prop_assert_eq!(xxh64_of_number(number, seed), xxh64(&number.to_le_bytes(), seed));
        }
    }
}
