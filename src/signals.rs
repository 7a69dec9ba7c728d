//! Signals, as something that a poll loop can wait for: SIGINT and SIGTERM ask to stop, SIGHUP to reload.
//!
//! They are blocked and read from a descriptor, so that none is lost and none interrupts anything, from
//! the moment of [`Signals::install`] on.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The requests that signals have made since the last call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// To stop.
    pub stop: bool,
    /// To reload; several in a row count as one.
    pub reload: bool,
}

impl Asked {
    /// With what `other` asks for as well.
    pub fn add(&mut self, other: Asked) {
        self.stop |= other.stop;
        self.reload |= other.reload;
    }
}

/// The descriptor that signals are read from.
pub struct Signals(SignalFd);

/// Signals could not be set up, or not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot handle signals: {0}")]
pub struct Error(#[from] Errno);

impl Signals {
    /// Takes over SIGINT, SIGTERM and SIGHUP. Call it before there is a second thread: threads that are
    /// started later inherit the block, a thread that was there before would still be ended by them.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn install() -> Result<Self, Error> {
        let mask = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        mask.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Signals(SignalFd::with_flags(&mask, flags)?))
    }

    /// Readable when [`Signals::take`] has something to give.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The requests since the last call, without waiting.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub fn take(&self) -> Result<Asked, Error> {
        let mut asked = Asked::default();
        while let Some(signal) = self.0.read_signal()? {
            let hangup = signal.ssi_signo == Signal::SIGHUP as u32;
            asked.reload |= hangup;
            asked.stop |= !hangup;
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    /// To this thread alone, which is the only one that has them blocked.
    fn send(signal: Signal) {
        raise(signal).expect("a signal to this thread");
    }

    #[test]
    fn signals_are_kept_until_they_are_taken() {
        let signals = Signals::install().expect("a descriptor");
        assert_eq!(signals.take().expect("nothing"), Asked::default());
        send(Signal::SIGHUP);
        send(Signal::SIGHUP);
        let reload = Asked {
            reload: true,
            ..Asked::default()
        };
        assert_eq!(signals.take().expect("signals"), reload);
        assert_eq!(signals.take().expect("nothing"), Asked::default());
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            send(signal);
            let stop = Asked {
                stop: true,
                ..Asked::default()
            };
            assert_eq!(signals.take().expect("a signal"), stop);
        }
    }
}
