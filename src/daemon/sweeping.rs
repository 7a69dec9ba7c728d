//! The thread that sweeps the connection tables, so that the control loop never waits for a million
//! entries.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{info, warn};
use nix::time::{clock_gettime, ClockId};

use super::in_force::Bindings;
use super::slots::SlotUse;
use crate::config::Timeouts;
use crate::datapath::sweep::StillBound;
use crate::datapath::{self, SharedSweeper};
use crate::number;

/// The shortest and the longest time between sweeps, for any timeouts.
const INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A sweep takes at most this part of one CPU's time.
const LARGEST_SHARE: u32 = 20;

/// A message from the control loop to the thread.
enum Order {
    /// Sweep as these timeouts ask for.
    Timeouts(Timeouts),
    /// Services or VIPs have changed: connections made under bindings that are gone have to go, now.
    Purge,
}

/// The thread; dropping it ends it.
pub struct Sweeping {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeping {
    /// Starts sweeping, and notes in `slot_use` which interface slots entries name.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start(
        sweeper: SharedSweeper,
        timeouts: &Timeouts,
        bindings: Arc<Bindings>,
        slot_use: SlotUse,
    ) -> std::io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let mut schedule = Schedule::new(timeouts, Instant::now());
        let thread = thread::Builder::new()
            .name("sweep".into())
            .spawn(move || loop {
                let wait = schedule.due.saturating_duration_since(Instant::now());
                let took = match inbox.recv_timeout(wait) {
                    Ok(Order::Timeouts(timeouts)) => {
                        schedule.follow(&timeouts, Instant::now());
                        continue;
                    }
                    // By the plan that is in force when an entry is looked at, not by the one that asked.
                    Ok(Order::Purge) => {
                        let still_bound = |client: &_, backend| bindings.is_bound(client, backend);
                        sweep(&sweeper, &still_bound, &slot_use)
                    }
                    Err(RecvTimeoutError::Timeout) => sweep(&sweeper, &|_, _| true, &slot_use),
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                schedule.swept(took, Instant::now());
            })?;
        Ok(Sweeping {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Follows a change of `[timeouts]`.
    pub fn set_timeouts(&self, timeouts: &Timeouts) {
        self.send(Order::Timeouts(*timeouts));
    }

    /// Takes out connections whose service no longer has their VIP and port.
    pub fn purge(&self) {
        self.send(Order::Purge);
    }

    fn send(&self, order: Order) {
        if self
            .orders
            .as_ref()
            .is_none_or(|orders| orders.send(order).is_err())
        {
            warn!("the sweep of the connection tables has ended; restart xdplb");
        }
    }
}

impl Drop for Sweeping {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// When the tables are swept next.
struct Schedule {
    /// Between sweeps, as the timeouts have it.
    interval: Duration,
    due: Instant,
}

impl Schedule {
    fn new(timeouts: &Timeouts, now: Instant) -> Self {
        let interval = interval_for(timeouts);
        Schedule {
            interval,
            due: now + interval,
        }
    }

    /// Shorter timeouts bring the next sweep forward; none puts it off.
    fn follow(&mut self, timeouts: &Timeouts, now: Instant) {
        self.interval = interval_for(timeouts);
        self.due = self.due.min(now + self.interval);
    }

    /// A sweep has taken so much of a CPU's time. One that took long puts off the next one, and no other.
    fn swept(&mut self, took: Duration, now: Instant) {
        self.due = now + self.interval.max(took * LARGEST_SHARE);
    }
}

/// Twice in the shortest timeout, so that tables hold at most half as much again as they need.
fn interval_for(timeouts: &Timeouts) -> Duration {
    let shortest = timeouts.each().into_iter().min().unwrap_or_default();
    (shortest / 2).clamp(INTERVALS.0, INTERVALS.1)
}

/// The CPU time that it took: a sweep that had to wait for its turn has taken no more of it.
fn sweep(sweeper: &SharedSweeper, still_bound: &StillBound<'_>, slot_use: &SlotUse) -> Duration {
    let (start, used) = (Instant::now(), cpu_time());
    let swept = datapath::lock(sweeper).sweep(still_bound);
    if let Ok(swept) = &swept {
        slot_use.note(start, swept.interface_slots);
    }
    match swept {
        Ok(swept) if swept.unbound > 0 => {
            info!(
                "forgot {} of services that no longer have their port",
                number::count(swept.unbound, "connection entry", "connection entries")
            );
        }
        Ok(_) => {}
        Err(error) => warn!("connection tables not swept: {error}"),
    }
    cpu_time().saturating_sub(used)
}

/// Of this thread. Every Linux has this clock; zero would only make a sweep look cheap.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn shortest(tcp_opening: Duration) -> Timeouts {
        Timeouts {
            tcp_opening,
            ..Timeouts::default()
        }
    }

    #[test]
    fn a_slow_sweep_puts_off_the_next_one_only() {
        let mut now = Instant::now();
        let mut schedule = Schedule::new(&shortest(20 * SECOND), now);
        assert_eq!(schedule.due, now + 10 * SECOND);
        for (took, wait) in [(10, 200), (0, 10), (1, 20), (0, 10)] {
            now = schedule.due;
            schedule.swept(took * SECOND, now);
            assert_eq!(schedule.due, now + wait * SECOND, "{took}");
        }
    }

    #[test]
    fn no_order_puts_a_sweep_off() {
        let start = Instant::now();
        let mut schedule = Schedule::new(&shortest(20 * SECOND), start);
        for seconds in 1..30 {
            schedule.follow(&shortest(20 * SECOND), start + seconds * SECOND);
            assert_eq!(schedule.due, start + 10 * SECOND);
        }
        schedule.swept(Duration::ZERO, start);
        schedule.follow(&shortest(2 * SECOND), start + 3 * SECOND);
        assert_eq!(
            schedule.due,
            start + 4 * SECOND,
            "shorter ones count at once"
        );
        schedule.follow(&shortest(60 * SECOND), start + 3 * SECOND);
        assert_eq!(schedule.due, start + 4 * SECOND);
        schedule.swept(Duration::ZERO, start);
        assert_eq!(schedule.due, start + 15 * SECOND, "half of tcp_closing");
    }
}
