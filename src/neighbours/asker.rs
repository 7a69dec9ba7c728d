//! The thread that asks the kernel and waits for its answers.
//!
//! The kernel answers at once, unless somebody else holds its lock for links and routes: then a
//! question takes as long as that does. So that the control loop need not wait, one order at a time
//! is handed to this thread, and its report is taken when it has come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::facts::Facts;
use super::netlink::{Answer, Request, RequestSocket};
use super::Error;
use crate::capabilities;

/// An order to the thread.
pub(super) enum Order {
    /// Ask these, and give the answers in their order.
    Ask(Vec<Request>),
    /// List everything anew.
    Reread,
}

/// Its result.
pub(super) enum Report {
    Answers(Result<Vec<Answer>, Error>),
    Facts(Result<Facts, Error>),
}

/// The thread; dropping it ends it, when the order that it is at is done.
pub(super) struct Asker {
    orders: Option<Sender<Order>>,
    reports: Receiver<Report>,
    /// Readable when a report has come.
    ready: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    busy: bool,
}

impl Asker {
    /// Starts the thread. It sees the network namespace of the socket, and needs no privilege to start.
    pub fn start(mut socket: RequestSocket) -> io::Result<Self> {
        let ready = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC,
        )?);
        let (orders, inbox) = mpsc::channel();
        let (outbox, reports) = mpsc::channel();
        let done = Arc::clone(&ready);
        let thread = thread::Builder::new()
            .name("netlink".into())
            .spawn(move || {
                capabilities::keep_for_netlink();
                for order in inbox {
                    let report = match order {
                        Order::Ask(requests) => Report::Answers(socket.ask(&requests)),
                        Order::Reread => Report::Facts(socket.dump()),
                    };
                    if outbox.send(report).is_err() {
                        return;
                    }
                    // Fails only when the counter is full, and then it is readable.
                    let _ = done.write(1);
                }
            })?;
        Ok(Asker {
            orders: Some(orders),
            reports,
            ready,
            thread: Some(thread),
            busy: false,
        })
    }

    /// Readable when a report waits.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// Whether an order has not been reported on yet.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Gives an order. To be done only when it is not busy.
    pub fn order(&mut self, order: Order) {
        if let Some(orders) = &self.orders {
            // Should the thread be gone, `report` says so.
            let _ = orders.send(order);
            self.busy = true;
        }
    }

    /// The report on the last order, if it has come. Does not wait.
    ///
    /// # Errors
    /// When the thread has ended by itself.
    pub fn report(&mut self) -> Result<Option<Report>, Error> {
        // Nothing to read where nothing has come.
        let _ = self.ready.read();
        match self.reports.try_recv() {
            Ok(report) => {
                self.busy = false;
                Ok(Some(report))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Error::Ended),
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
