//! Attaching to an interface that refuses: when it is tried again.

use std::fmt;
use std::time::{Duration, Instant};

/// How long after a failed attempt the next one is made: from the first on, twice as long each time, up to the
/// second.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The last of the attempts that failed one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The kernel's index of the interface.
    ifindex: u32,
    again: Instant,
    wait: Duration,
}

impl Refused {
    /// An attempt that failed just now, after the one `before`, if there was one. Another interface under the
    /// name begins anew.
    pub fn new(before: Option<Refused>, ifindex: u32, now: Instant) -> Self {
        let (first, longest) = WAITS;
        let before = before.filter(|before| before.ifindex == ifindex);
        let wait = before.map_or(first, |before| (before.wait * 2).min(longest));
        Refused {
            ifindex,
            again: now + wait,
            wait,
        }
    }

    /// Whether it is too early to try that interface again.
    pub fn waits(self, ifindex: u32, now: Instant) -> bool {
        self.ifindex == ifindex && now < self.again
    }

    /// When to try again.
    pub fn again(self) -> Instant {
        self.again
    }
}

/// For the log, after the reason.
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xdplb tries again in {} s", self.wait.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_waits_twice_as_long_up_to_a_minute() {
        let mut now = Instant::now();
        let mut refused = None;
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            let next = Refused::new(refused, 7, now);
            let wait = Duration::from_secs(seconds);
            assert_eq!(next.again(), now + wait);
            assert_eq!(
                next.to_string(),
                format!("xdplb tries again in {seconds} s")
            );
            assert!(next.waits(7, now + wait - Duration::from_millis(1)));
            assert!(!next.waits(7, now + wait));
            now += wait;
            refused = Some(next);
        }
    }

    #[test]
    fn another_interface_of_the_name_does_not_wait_for_the_one_before() {
        let now = Instant::now();
        let third = (0..3).fold(None, |before, _| Some(Refused::new(before, 7, now)));
        let third = third.expect("three attempts");
        assert!(third.waits(7, now) && !third.waits(8, now));
        assert_eq!(
            Refused::new(Some(third), 8, now),
            Refused::new(None, 8, now)
        );
    }
}
