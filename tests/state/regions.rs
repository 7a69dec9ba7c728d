//! Regions: where tables lie in the map that holds them.

use proptest::prelude::*;
use xdplb::config::Limits;
use xdplb::state::maglev::{size_for, MAX_SLOTS};
use xdplb::state::regions::{capacity_for, Regions};

#[test]
fn a_released_region_rests_and_is_joined_again() {
    let mut regions = Regions::new(1000);
    assert_eq!(regions.allocate(400), Some(0));
    assert_eq!(regions.allocate(600), Some(400));
    assert_eq!(regions.allocate(1), None);
    assert!(!regions.has_released());
    assert!(regions.release(0, 400));
    assert!(!regions.release(0, 400), "it is not in use any more");
    assert!(regions.has_released());
    assert_eq!(regions.allocate(1), None);
    regions.reclaim();
    assert!(!regions.has_released());
    assert_eq!(regions.allocate(400), Some(0));
    assert!(regions.release(400, 600) && regions.release(0, 400));
    regions.reclaim();
    assert_eq!(regions.allocate(1000), Some(0));
}

#[test]
fn odd_requests_change_nothing() {
    let mut regions = Regions::new(100);
    assert_eq!(regions.allocate(0), None);
    assert_eq!(regions.allocate(101), None);
    assert!(
        !regions.reserve(50, 51) && !regions.reserve(u32::MAX, u32::MAX) && !regions.reserve(0, 0)
    );
    assert!(regions.reserve(10, 20));
    assert!(!regions.reserve(29, 1));
    assert!(!regions.release(10, 19));
    assert_eq!(regions.allocate(10), Some(0));
    assert_eq!(regions.allocate(70), Some(30));
    assert_eq!(Regions::new(0).allocate(1), None);
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(u32),
    Release(prop::sample::Index),
    Reclaim,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop_oneof![Just(251), Just(2039), Just(16_381), 1..5000u32].prop_map(Step::Allocate),
        2 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => Just(Step::Reclaim),
    ]
}

fn overlap(one: (u32, u32), other: (u32, u32)) -> bool {
    one.0 < other.0 + other.1 && other.0 < one.0 + one.1
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn regions_never_overlap_and_none_is_lost(steps in prop::collection::vec(step(), 0..200)) {
        const CAPACITY: u32 = 60_000;
        let mut regions = Regions::new(CAPACITY);
        let mut live: Vec<(u32, u32)> = Vec::new();
        let mut resting: Vec<(u32, u32)> = Vec::new();
        for step in steps {
            match step {
                Step::Allocate(size) => {
                    let allocated = regions.allocate(size);
                    let taken = || live.iter().chain(&resting);
                    if let Some(offset) = allocated {
                        prop_assert!(offset + size <= CAPACITY);
                        prop_assert!(taken().all(|region| !overlap(*region, (offset, size))));
                        live.push((offset, size));
                    } else {
                        let used: u32 = taken().map(|region| region.1).sum();
                        let gaps = taken().count() as u32 + 1;
                        prop_assert!((CAPACITY - used).div_ceil(gaps) < size, "some gap was large enough");
                    }
                }
                Step::Release(which) if !live.is_empty() => {
                    let (offset, size) = live.swap_remove(which.index(live.len()));
                    prop_assert!(regions.release(offset, size));
                    resting.push((offset, size));
                }
                Step::Release(_) => {}
                Step::Reclaim => {
                    regions.reclaim();
                    resting.clear();
                }
            }
        }
        for (offset, size) in live {
            prop_assert!(regions.release(offset, size));
        }
        regions.reclaim();
        prop_assert_eq!(regions.allocate(CAPACITY), Some(0));
    }

    /// However backends are spread over services, their tables fit, the two largest twice.
    #[test]
    fn every_configuration_has_room(
        services in 1..6000u32,
        backends in 1..40_000u32,
        sizes in prop::collection::vec(
            (prop_oneof![Just(1u32), Just(2), Just(23), Just(181), 1..400u32], 1..3000usize),
            1..6,
        ),
    ) {
        let capacity = capacity_for(&Limits { services, backends, connections: 1, ..Limits::default() });
        let mut left = backends;
        let mut total = 2 * u64::from(MAX_SLOTS);
        let wanted = sizes.into_iter().flat_map(|(size, times)| std::iter::repeat_n(size, times));
        for size in wanted.take(services as usize) {
            let count = size.min(left);
            left -= count;
            total += u64::from(size_for(count as usize));
        }
        prop_assert!(total <= u64::from(capacity));
    }
}

/// Regions in use stay where they are, and those that packets may still read are not given out.
#[test]
fn an_array_that_becomes_larger_has_free_slots_behind() {
    let mut regions = Regions::new(100);
    assert_eq!(regions.allocate(40), Some(0));
    assert_eq!(regions.allocate(40), Some(40));
    assert!(regions.release(0, 40));
    assert_eq!(regions.used(), 40);
    assert_eq!(regions.allocate(50), None);
    regions.extend(200);
    assert_eq!(regions.allocate(120), Some(80), "joined with what was free");
    assert_eq!(regions.allocate(1), None);
    regions.reclaim();
    assert_eq!(regions.allocate(40), Some(0));
    assert_eq!(regions.used(), 200);
    regions.extend(100);
    assert_eq!(regions.allocate(1), None);
}

#[test]
fn capacity_allows_for_mixed_sizes() {
    let limits = Limits {
        services: 4096,
        backends: 16384,
        connections: 1,
        ..Limits::default()
    };
    // The worst case: 45 services of 181 backends beside 4,051 of two.
    let worst: u64 = 45 * 131_071 + 4_051 * 2_039;
    let capacity = u64::from(capacity_for(&limits));
    assert!(capacity >= worst * 5 / 4 + 2 * 131_071);
    assert!(capacity < worst * 5 / 4 + 3 * 131_071);
    let endless = Limits {
        services: u32::MAX,
        backends: u32::MAX,
        connections: 1,
        ..Limits::default()
    };
    assert_eq!(capacity_for(&endless), u32::MAX);
    assert_eq!(
        capacity_for(&Limits {
            services: 0,
            backends: 0,
            connections: 0,
            ..Limits::default()
        }),
        2 * MAX_SLOTS
    );
}
