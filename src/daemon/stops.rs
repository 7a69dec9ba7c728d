//! How long the control loop stands still: the time from a wake-up until it waits again, by the clock, and how
//! much of that it had a CPU for. On a busy host the rest is the scheduler's.

use std::fmt;
use std::time::{Duration, Instant};

use log::debug;
use nix::time::{clock_gettime, ClockId};

/// The loop does not mean to stand still for longer.
const LONGEST: Duration = Duration::from_millis(10);

/// The stops so far.
pub struct Stops {
    began: Instant,
    /// The thread's CPU time then.
    used: Duration,
    /// Since they were last taken.
    longest: Longest,
}

/// The longest stops of a time; the two need not be the same one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Longest {
    stop: Duration,
    work: Duration,
}

impl fmt::Display for Longest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Longest { stop, work } = self;
        write!(
            f,
            "the control loop stood still for {stop:.1?} at most, and worked for {work:.1?} at most"
        )
    }
}

impl Stops {
    /// The loop begins to work.
    pub fn new() -> Self {
        Stops {
            began: Instant::now(),
            used: cpu_time(),
            longest: Longest::default(),
        }
    }

    /// It has been woken.
    pub fn begin(&mut self) {
        self.began = Instant::now();
        self.used = cpu_time();
    }

    /// It is about to wait.
    pub fn end(&mut self) {
        let now = Longest {
            stop: self.began.elapsed(),
            work: cpu_time().saturating_sub(self.used),
        };
        if now.stop > LONGEST {
            debug!(
                "the control loop stood still for {:.1?}, {:.1?} of it at work",
                now.stop, now.work
            );
        }
        self.longest.stop = self.longest.stop.max(now.stop);
        self.longest.work = self.longest.work.max(now.work);
    }

    /// The longest since the last call.
    pub fn take(&mut self) -> Longest {
        std::mem::take(&mut self.longest)
    }
}

fn cpu_time() -> Duration {
    // A clock of every Linux.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}
