//! The datapath's clock: converts its jiffies to time.
//!
//! The datapath stamps entries with jiffies, since reading them costs nothing. How long one lasts is a choice
//! of the kernel's build (CONFIG_HZ); it is the resolution of the coarse clocks, which the kernel tells.

use std::time::Duration;

use libbpf_rs::{ProgramInput, ProgramMut};
use nix::time::{clock_getres, clock_gettime, ClockId};

use super::abi::{bytes_of, clock_reading, from_bytes, settings};
use super::Error;

/// Timeouts are compared as signed differences; entries older than this are swept long before.
const LONGEST: u32 = 1 << 30;

/// How jiffies and CLOCK_MONOTONIC go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Jiffies a second.
    pub hz: u32,
    /// CLOCK_MONOTONIC at jiffy 0, in ns, wrapped.
    pub zero: u64,
}

impl Clock {
    /// Asks the kernel. To be repeated now and then: where the tick comes from a timer that a busy host loses
    /// interrupts of, jiffies fall behind.
    ///
    /// # Errors
    /// When the `clock` program cannot be run, or the kernel does not tell its clock's resolution.
    pub fn read(program: &ProgramMut<'_>) -> Result<Self, Error> {
        let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
            .map(Duration::from)
            .map_err(|error| Error::Tick(error.into()))?;
        let clock_reading { jiffies, monotonic } = reading(program)?;
        let hz = rate_of(tick);
        let zero = monotonic.wrapping_sub(jiffies.wrapping_mul(tick_of(hz)));
        Ok(Clock { hz, zero })
    }

    /// As the daemon left it in `settings`; `None` if it has not.
    pub fn from_settings(settings: &settings) -> Option<Self> {
        (settings.hz != 0).then_some(Clock {
            hz: settings.hz,
            zero: settings.clock_zero,
        })
    }

    /// Now, in jiffies.
    pub fn jiffies_now(&self) -> u64 {
        // Some 584 years after the start it would begin anew.
        let monotonic = monotonic().as_nanos() as u64;
        monotonic.wrapping_sub(self.zero) / tick_of(self.hz)
    }

    /// The low 32 bits of [`Clock::jiffies_now`], as entries hold them.
    pub fn now(&self) -> u32 {
        self.jiffies_now() as u32
    }

    /// A duration in jiffies, rounded up.
    pub fn ticks_of(&self, duration: Duration) -> u64 {
        let ticks = (duration.as_nanos() * u128::from(self.hz)).div_ceil(1_000_000_000);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// A duration in jiffies as entries are compared by: at least one, at most what the sign leaves.
    pub fn jiffies_of(&self, duration: Duration) -> u32 {
        u32::try_from(self.ticks_of(duration))
            .unwrap_or(LONGEST)
            .clamp(1, LONGEST)
    }

    /// Jiffies as a duration.
    pub fn duration_of(&self, jiffies: u64) -> Duration {
        let nanoseconds = u128::from(jiffies) * 1_000_000_000 / u128::from(self.hz.max(1));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

fn monotonic() -> Duration {
    // CLOCK_MONOTONIC exists on every Linux; zero would only make entries look young.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .unwrap_or_default()
}

fn reading(program: &ProgramMut<'_>) -> Result<clock_reading, Error> {
    let mut context = bytes_of(&clock_reading::default()).to_vec();
    let input = ProgramInput {
        context_in: Some(&mut context),
        ..Default::default()
    };
    program
        .test_run(input)
        .map_err(|source| Error::Clock { source })?;
    from_bytes(&context).ok_or_else(|| Error::Layout {
        map: "clock".into(),
    })
}

/// How long a jiffy lasts, in ns: TICK_NSEC of the kernel, which counts them by CLOCK_MONOTONIC.
fn tick_of(hz: u32) -> u64 {
    let hz = u64::from(hz.max(1));
    ((1_000_000_000 + hz / 2) / hz).max(1)
}

/// Ticks a second of ticks so long, rounded: 300 a second last 3,333,333 ns each.
fn rate_of(tick: Duration) -> u32 {
    let second = Duration::from_secs(1).as_nanos();
    let tick = tick.as_nanos().clamp(1, second);
    u32::try_from((second + tick / 2) / tick).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_rates() {
        // TICK_NSEC of kernels built with each of Kconfig.hz's choices.
        for (nanoseconds, rate) in [
            (10_000_000, 100),
            (7_812_500, 128),
            (4_000_000, 250),
            (3_906_250, 256),
            (3_333_333, 300),
            (1_000_000, 1000),
            (976_563, 1024),
            (833_333, 1200),
        ] {
            assert_eq!(rate_of(Duration::from_nanos(nanoseconds)), rate);
            assert_eq!(tick_of(rate), nanoseconds);
        }
        assert_eq!(rate_of(Duration::ZERO), 1_000_000_000);
        assert_eq!(rate_of(Duration::MAX), 1);
    }

    #[test]
    fn durations() {
        let clock = Clock { hz: 250, zero: 0 };
        assert_eq!(clock.jiffies_of(Duration::from_secs(30)), 7500);
        assert_eq!(clock.jiffies_of(Duration::from_nanos(1)), 1);
        assert_eq!(clock.jiffies_of(Duration::from_secs(u64::MAX)), LONGEST);
        assert_eq!(clock.duration_of(7500), Duration::from_secs(30));
    }
}
