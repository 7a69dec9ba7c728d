//! The datapath's clock: what its jiffies mean in time.
//!
//! The datapath stamps entries with jiffies, since reading them costs nothing; how many there are in a
//! second is a choice of the kernel's build that it does not tell user space.

use std::thread;
use std::time::Duration;

use libbpf_rs::{ProgramInput, ProgramMut};
use nix::time::{clock_gettime, ClockId};

use super::abi::{bytes_of, clock_reading, from_bytes, settings};
use super::Error;

/// Long enough to tell 250 from 300 when both ends are off by one.
const CALIBRATION: Duration = Duration::from_millis(120);
/// What kernels are built with (Kconfig.hz; 1024 and 128 on some).
const USUAL: [u32; 6] = [100, 128, 250, 300, 1000, 1024];
/// Timeouts are compared as signed differences; entries older than this are swept long before.
const LONGEST: u32 = 1 << 30;

/// Jiffies and CLOCK_MONOTONIC at one moment, and how fast the one goes by the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Jiffies a second.
    pub hz: u32,
    /// The moment in jiffies.
    pub jiffies: u64,
    /// The moment in ns.
    pub monotonic: u64,
}

impl Clock {
    /// Asks the kernel, for about a tenth of a second.
    ///
    /// # Errors
    /// When the `clock` program cannot be run.
    pub fn calibrate(program: &ProgramMut<'_>) -> Result<Self, Error> {
        let start = read(program)?;
        thread::sleep(CALIBRATION);
        let end = read(program)?;
        let ticks = end.jiffies.saturating_sub(start.jiffies) as f64;
        let seconds =
            Duration::from_nanos(end.monotonic.saturating_sub(start.monotonic)).as_secs_f64();
        Ok(Clock {
            hz: usual_rate(ticks / seconds),
            jiffies: end.jiffies,
            monotonic: end.monotonic,
        })
    }

    /// As the daemon left it in `settings`; `None` if it has not.
    pub fn from_settings(settings: &settings) -> Option<Self> {
        (settings.hz != 0).then_some(Clock {
            hz: settings.hz,
            jiffies: settings.clock_jiffies,
            monotonic: settings.clock_monotonic,
        })
    }

    /// Now, in jiffies.
    pub fn jiffies_now(&self) -> u64 {
        let elapsed = monotonic().saturating_sub(Duration::from_nanos(self.monotonic));
        let ticks = elapsed.as_nanos() * u128::from(self.hz) / 1_000_000_000;
        self.jiffies.wrapping_add(ticks as u64)
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

fn read(program: &ProgramMut<'_>) -> Result<clock_reading, Error> {
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

/// The usual rate that is nearest, unless the measurement is far from all of them.
fn usual_rate(measured: f64) -> u32 {
    let nearest = USUAL
        .into_iter()
        .min_by(|a, b| {
            (f64::from(*a) - measured)
                .abs()
                .total_cmp(&(f64::from(*b) - measured).abs())
        })
        .unwrap_or(USUAL[0]);
    if (f64::from(nearest) - measured).abs() <= f64::from(nearest) * 0.15 {
        nearest
    } else {
        (measured.round() as u32).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_usual_rate() {
        for (measured, rate) in [
            (99.2, 100),
            (241.7, 250),
            (258.0, 250),
            (291.7, 300),
            (1008.3, 1000),
            (2000.0, 2000),
            (0.0, 1),
        ] {
            assert_eq!(usual_rate(measured), rate, "{measured}");
        }
    }

    #[test]
    fn durations() {
        let clock = Clock {
            hz: 250,
            jiffies: 0,
            monotonic: 0,
        };
        assert_eq!(clock.jiffies_of(Duration::from_secs(30)), 7500);
        assert_eq!(clock.jiffies_of(Duration::from_nanos(1)), 1);
        assert_eq!(clock.jiffies_of(Duration::from_secs(u64::MAX)), LONGEST);
        assert_eq!(clock.duration_of(7500), Duration::from_secs(30));
    }
}
