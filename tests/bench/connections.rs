//! Opens and closes TCP connections as fast as it can, or is their other end.
//! tests/bench/live_connections.sh starts it in the client's namespace, and with `--listen` at the backend.
//!
//! Owns both ends. A connection counts when it has been opened, and ended as `--end` says: `close`, when the
//! server's FIN has come, so that TIME_WAIT is the server's, which takes the client's next SYN of the same
//! port for a new connection; `reset`, when it was connected, and no TIME_WAIT is anybody's. Prints a line
//! of JSON: how many, how many failed, and in how many seconds.

use std::collections::HashMap;
use std::error::Error;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    accept4, bind, connect, getsockopt, listen, setsockopt, socket, sockopt, AddressFamily,
    Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage,
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Connections that a thread has under way at once.
const AT_ONCE: usize = 64;
/// After that a connection has failed: a lost SYN is sent again after a second.
const PATIENCE: Duration = Duration::from_secs(4);
/// How often the clock is looked at while nothing comes.
const TICK: u16 = 100;

const USAGE: &str =
    "connections: needs --listen=ADDRESS:PORT, or --connect=ADDRESS:PORT --end=close|reset --seconds=N \
     --from=ADDRESS,...; tests/bench/live_connections.sh says them";

fn main() -> Result<()> {
    if let Some(address) = argument("--listen=") {
        return serve(address.parse()?);
    }
    // `cargo bench` runs this along with the others.
    let Some(to) = argument("--connect=") else {
        println!("{USAGE}");
        return Ok(());
    };
    let needed = |name: &str| argument(name).ok_or_else(|| format!("no {name}; {USAGE}"));
    let sources: Vec<IpAddr> = needed("--from=")?
        .split(',')
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    let client = Client {
        to: to.parse()?,
        sources,
        resets: match needed("--end=")?.as_str() {
            "close" => false,
            "reset" => true,
            other => return Err(format!("no end \"{other}\"; {USAGE}").into()),
        },
        until: Instant::now() + Duration::from_secs(needed("--seconds=")?.parse()?),
    };
    let began = Instant::now();
    let counts: Vec<Counts> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads())
            .map(|number| {
                let client = &client;
                scope.spawn(move || client.run(number))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a thread panicked")?)
            .collect::<Result<_>>()
    })?;
    let (done, failed) = counts.iter().fold((0, 0), |(done, failed), counts| {
        (done + counts.done, failed + counts.failed)
    });
    let reasons: Vec<&String> = counts
        .iter()
        .flat_map(|counts| counts.last.iter())
        .collect();
    println!(
        "{{\"connections\": {done}, \"failed\": {failed}, \"seconds\": {:.3}, \"reasons\": {reasons:?}}}",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

fn argument(name: &str) -> Option<String> {
    std::env::args().find_map(|argument| Some(argument.strip_prefix(name)?.to_owned()))
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn stream_socket(address: SocketAddr, flags: SockFlag) -> Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    Ok(socket(family, SockType::Stream, flags, SockProtocol::Tcp)?)
}

/// Takes every connection and closes it, until a signal ends the process.
fn serve(address: SocketAddr) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads())
            .map(|_| {
                scope.spawn(move || -> Result<()> {
                    // A queue for each thread, which the kernel spreads connections over.
                    let queue = stream_socket(address, SockFlag::empty())?;
                    setsockopt(&queue, sockopt::ReusePort, &true)?;
                    bind(queue.as_raw_fd(), &SockaddrStorage::from(address))?;
                    listen(&queue, Backlog::new(4096)?)?;
                    println!("ready");
                    loop {
                        match accept4(queue.as_raw_fd(), SockFlag::empty()) {
                            Ok(connection) => nix::unistd::close(connection)?,
                            // One that was reset before it was taken.
                            Err(Errno::ECONNABORTED | Errno::EINTR) => {}
                            Err(error) => return Err(error.into()),
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })
}

struct Client {
    to: SocketAddr,
    /// They take turns: each has ports of its own.
    sources: Vec<IpAddr>,
    resets: bool,
    until: Instant,
}

#[derive(Default)]
struct Counts {
    done: u64,
    failed: u64,
    /// Why the last one failed.
    last: Option<String>,
}

impl Counts {
    fn fail(&mut self, reason: String) {
        self.failed += 1;
        self.last = Some(reason);
    }
}

/// One that is under way.
struct Attempt {
    socket: TcpStream,
    began: Instant,
}

impl Client {
    fn run(&self, thread: usize) -> Result<Counts> {
        let poll = Epoll::new(EpollCreateFlags::empty())?;
        let mut counts = Counts::default();
        let mut attempts: HashMap<u64, Attempt> = HashMap::new();
        let mut next = thread as u64;
        let mut events = [EpollEvent::empty(); AT_ONCE];
        loop {
            let now = Instant::now();
            if now >= self.until && attempts.is_empty() {
                return Ok(counts);
            }
            while now < self.until && attempts.len() < AT_ONCE {
                next += 1;
                match self.begin(&poll, next) {
                    Ok(socket) => attempts.insert(next, Attempt { socket, began: now }),
                    Err(error) => {
                        counts.fail(error.to_string());
                        break;
                    }
                };
            }
            let ready = poll.wait(&mut events, EpollTimeout::from(TICK))?;
            for event in &events[..ready] {
                let Some(attempt) = attempts.get_mut(&event.data()) else {
                    continue;
                };
                match self.advance(&mut attempt.socket) {
                    Ok(false) => continue,
                    Ok(true) => counts.done += 1,
                    Err(error) => counts.fail(error.to_string()),
                }
                // Closes it.
                attempts.remove(&event.data());
            }
            if ready == 0 {
                let waiting = attempts.len();
                attempts.retain(|_, attempt| attempt.began.elapsed() < PATIENCE);
                for _ in attempts.len()..waiting {
                    counts.fail(format!("no answer in {} s", PATIENCE.as_secs()));
                }
            }
        }
    }

    fn begin(&self, poll: &Epoll, number: u64) -> Result<TcpStream> {
        let socket = stream_socket(self.to, SockFlag::SOCK_NONBLOCK)?;
        if self.resets {
            let at_once = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&socket, sockopt::Linger, &at_once)?;
        }
        // The port is chosen when the destination is known: one for each destination, not one for all.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        let source = self.sources[number as usize % self.sources.len()];
        bind(
            socket.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(source, 0)),
        )?;
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(self.to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let wanted = if self.resets {
            EpollFlags::EPOLLOUT
        } else {
            EpollFlags::EPOLLIN
        };
        poll.add(socket.as_fd(), EpollEvent::new(wanted, number))?;
        Ok(socket.into())
    }

    /// Whether the connection is to be closed: it is connected, or the server has ended it.
    fn advance(&self, socket: &mut TcpStream) -> Result<bool> {
        let error = getsockopt(&socket.as_fd(), sockopt::SocketError)?;
        if error != 0 {
            return Err(Errno::from_raw(error).into());
        }
        if self.resets {
            return Ok(true);
        }
        match socket.read(&mut [0; 16]) {
            Ok(0) => Ok(true),
            Ok(_) => Err("the server has sent something".into()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
