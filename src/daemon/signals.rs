//! Signals, as something that a poll loop can wait for.
//!
//! SIGINT and SIGTERM stop, SIGHUP reloads. Handlers only count and wake; the loop does the work.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal};

/// The eventfd that SIGHUP's handler writes to; a handler has no other way to it.
static WAKE: AtomicI32 = AtomicI32::new(-1);
static RELOAD: AtomicBool = AtomicBool::new(false);

/// What signals have asked for.
pub struct Signals {
    wake: Arc<EventFd>,
    stop: Arc<AtomicBool>,
}

/// Signals could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot handle signals: {0}")]
pub struct Error(String);

extern "C" fn on_hangup(_: libc::c_int) {
    RELOAD.store(true, Ordering::SeqCst);
    let one = 1_u64.to_ne_bytes();
    // SAFETY: write(2) is safe in a handler (signal-safety(7)); the descriptor is never closed. That it
    // fails on a full counter does not matter: the loop is awake then.
    unsafe { libc::write(WAKE.load(Ordering::SeqCst), one.as_ptr().cast(), one.len()) };
}

impl Signals {
    /// Installs the handlers; once in a process.
    ///
    /// # Errors
    /// When the system refuses, or handlers are installed already.
    pub fn install() -> Result<Self, Error> {
        let refused = |error: &dyn std::fmt::Display| Error(error.to_string());
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake =
            Arc::new(EventFd::from_value_and_flags(0, flags).map_err(|error| refused(&error))?);
        let stop = Arc::new(AtomicBool::new(false));
        let (handler_wake, handler_stop) = (Arc::clone(&wake), Arc::clone(&stop));
        ctrlc::set_handler(move || {
            handler_stop.store(true, Ordering::SeqCst);
            // As in `on_hangup`.
            let _ = handler_wake.write(1);
        })
        .map_err(|error| refused(&error))?;

        // After set_handler, which takes SIGHUP as one more wish to stop. One reference is given away, so
        // that the descriptor stays open for as long as the handler may run.
        WAKE.store(Arc::clone(&wake).as_fd().as_raw_fd(), Ordering::SeqCst);
        std::mem::forget(Arc::clone(&wake));
        let action = SigAction::new(
            SigHandler::Handler(on_hangup),
            SaFlags::SA_RESTART,
            SigSet::empty(),
        );
        // SAFETY: the handler does only what signal-safety(7) allows.
        unsafe { sigaction(Signal::SIGHUP, &action) }.map_err(|error| refused(&error))?;
        Ok(Signals { wake, stop })
    }

    /// Readable when there is something to ask for.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Forgets that it was woken.
    pub fn clear(&self) {
        match self.wake.read() {
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(error) => log::debug!("eventfd: {error}"),
        }
    }

    /// Whether to stop.
    pub fn stop(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Whether to reload; true once for each time it was asked for, several in a row counting as one.
    pub fn take_reload(&self) -> bool {
        RELOAD.swap(false, Ordering::SeqCst)
    }
}
