//! The thread that sweeps the connection tables, so that the control loop never waits for a million
//! entries.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{info, warn};

use super::in_force::Bindings;
use super::slots::SlotUse;
use crate::config::Timeouts;
use crate::datapath::sweep::{StillBound, Sweeper};
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
        sweeper: Sweeper,
        timeouts: &Timeouts,
        bindings: Arc<Bindings>,
        slot_use: SlotUse,
    ) -> std::io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let mut interval = interval_for(timeouts);
        let thread = thread::Builder::new()
            .name("sweep".into())
            .spawn(move || loop {
                let took = match inbox.recv_timeout(interval) {
                    Ok(Order::Timeouts(timeouts)) => {
                        interval = interval_for(&timeouts);
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
                interval = interval.max(took * LARGEST_SHARE);
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

/// Twice in the shortest timeout, so that tables hold at most half as much again as they need.
fn interval_for(timeouts: &Timeouts) -> Duration {
    let shortest = timeouts.each().into_iter().min().unwrap_or_default();
    (shortest / 2).clamp(INTERVALS.0, INTERVALS.1)
}

/// Gives back how long it took.
fn sweep(sweeper: &Sweeper, still_bound: &StillBound<'_>, slot_use: &SlotUse) -> Duration {
    let start = Instant::now();
    let swept = sweeper.sweep(still_bound);
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
    start.elapsed()
}
