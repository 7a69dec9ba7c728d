//! The words between the control loop and the writer: orders in, outcomes back.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::Arc;

use log::debug;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Error;
use crate::control::Answer;
use crate::neighbours::{Target, Update};

/// An order of the control loop to the writer.
pub enum Order {
    /// The network has changed. The next such order comes after [`Outcome::Taken`].
    Network(Update, Changes),
    /// Read the file again and put it in force.
    Reload,
    /// Let go of everything and end.
    Stop,
}

/// A change of the network.
#[derive(Debug, Default)]
pub struct Changes {
    /// A link or an address of this host.
    pub links: bool,
    /// Targets that resolve otherwise than before.
    pub targets: BTreeSet<Target>,
}

impl Changes {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.links || !self.targets.is_empty()
    }

    /// At most so many targets of them, and links in any case; the others stay.
    pub fn take(&mut self, most: usize) -> Changes {
        let rest = match self.targets.iter().nth(most).cloned() {
            Some(first) => self.targets.split_off(&first),
            None => BTreeSet::new(),
        };
        Changes {
            links: std::mem::take(&mut self.links),
            targets: std::mem::replace(&mut self.targets, rest),
        }
    }

    /// With those of `later`.
    pub fn add(&mut self, mut later: Changes) {
        self.links |= later.links;
        self.targets.append(&mut later.targets);
    }
}

/// A report of the writer to the control loop.
pub enum Outcome {
    /// The datapath is attached.
    Started,
    /// It has the network of the last order.
    Taken,
    /// These backends are to be kept resolved, in place of those before.
    Track(BTreeSet<Target>),
    /// The result of a reload.
    Reloaded(Answer),
    /// It has ended, and everything that it made is gone.
    Ended(Result<(), Error>),
}

/// Where the loop hears of outcomes.
pub struct Outcomes {
    outcomes: Receiver<Outcome>,
    wake: Arc<EventFd>,
}

/// Where the writer sends them.
pub struct Outbox {
    // Gone before the loop is woken for the last time.
    outcomes: Option<Sender<Outcome>>,
    wake: Arc<EventFd>,
}

/// A way for outcomes.
///
/// # Errors
/// When the system has no eventfd for us.
pub fn outcomes() -> Result<(Outbox, Outcomes), Errno> {
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let wake = Arc::new(EventFd::from_value_and_flags(0, flags)?);
    let (sender, receiver) = mpsc::channel();
    let outbox = Outbox {
        outcomes: Some(sender),
        wake: Arc::clone(&wake),
    };
    let outcomes = Outcomes {
        outcomes: receiver,
        wake,
    };
    Ok((outbox, outcomes))
}

impl Outbox {
    /// Sends one, and wakes the loop. If the loop has ended, nobody needs it.
    pub fn send(&self, outcome: Outcome) {
        if let Some(outcomes) = &self.outcomes {
            let _ = outcomes.send(outcome);
        }
        self.wake();
    }

    fn wake(&self) {
        // That it fails on a full counter does not matter: the loop is awake then.
        let _ = self.wake.write(1);
    }
}

impl Drop for Outbox {
    /// A writer that has panicked is noticed at once.
    fn drop(&mut self) {
        drop(self.outcomes.take());
        self.wake();
    }
}

impl Outcomes {
    /// Readable when [`Outcomes::next`] has something to give.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Forgets that it was woken; call it before [`Outcomes::next`].
    pub fn clear(&self) {
        match self.wake.read() {
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(error) => debug!("eventfd: {error}"),
        }
    }

    /// The next outcome, without waiting.
    ///
    /// # Errors
    /// When the writer is gone without a word.
    pub fn next(&self) -> Result<Option<Outcome>, Error> {
        match self.outcomes.try_recv() {
            Ok(outcome) => Ok(Some(outcome)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Error::WriterEnded),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::waiting::wait;

    #[test]
    fn changes_are_taken_a_part_at_a_time() {
        let target = |last| Target {
            address: [192, 0, 2, last].into(),
            interface: None,
            mac: None,
        };
        let mut changes = Changes {
            links: true,
            targets: (0..5).map(target).collect(),
        };
        let first = changes.take(3);
        assert_eq!(
            (first.links, first.targets),
            (true, (0..3).map(target).collect())
        );
        assert!(changes.any() && !changes.links);
        assert_eq!(changes.take(3).targets, (3..5).map(target).collect());
        assert!(!changes.any());
        assert!(!changes.take(3).any());
    }

    fn wait_for(outcomes: &Outcomes) {
        let late = Instant::now() + Duration::from_secs(10);
        wait(&[outcomes.as_fd()], late).expect("a wait");
        assert!(Instant::now() < late, "nobody woke the loop");
        outcomes.clear();
    }

    #[test]
    fn an_outcome_wakes_the_loop_and_so_does_a_panic() {
        let (outbox, outcomes) = outcomes().expect("an eventfd");
        assert!(matches!(outcomes.next(), Ok(None)));
        let writer = thread::spawn(move || {
            outbox.send(Outcome::Started);
            // Not a panic, whose message would look like a failure; it drops no less.
            drop(outbox);
        });
        wait_for(&outcomes);
        writer.join().expect("no panic");
        assert!(matches!(outcomes.next(), Ok(Some(Outcome::Started))));
        assert!(matches!(outcomes.next(), Err(Error::WriterEnded)));
    }

    #[test]
    fn the_last_wake_comes_after_the_end() {
        for _ in 0..1000 {
            let (outbox, outcomes) = outcomes().expect("an eventfd");
            let writer = thread::spawn(move || drop(outbox));
            wait_for(&outcomes);
            assert!(matches!(outcomes.next(), Err(Error::WriterEnded)));
            writer.join().expect("no panic");
        }
    }
}
