//! How long the control loop stands still: the time from a wake-up until it waits again.

use std::time::{Duration, Instant};

use log::debug;

/// The loop does not mean to stand still for longer.
const LONGEST: Duration = Duration::from_millis(10);

/// The longest stops so far.
pub struct Stops {
    began: Instant,
    /// Since it was last taken.
    longest: Duration,
}

impl Stops {
    /// The loop begins to work.
    pub fn new() -> Self {
        Stops {
            began: Instant::now(),
            longest: Duration::ZERO,
        }
    }

    /// It has been woken.
    pub fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// It is about to wait.
    pub fn end(&mut self) {
        let stop = self.began.elapsed();
        if stop > LONGEST {
            debug!("the control loop stood still for {stop:.1?}");
        }
        self.longest = self.longest.max(stop);
    }

    /// The longest since the last call.
    pub fn take(&mut self) -> Duration {
        std::mem::take(&mut self.longest)
    }
}
