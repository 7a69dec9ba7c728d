//! The daemon's end of the control socket: takes requests and gives answers without ever waiting for a client.
//!
//! A client costs a bounded amount of memory, and of work in each turn; how many there are is bounded too.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use log::{debug, warn};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use super::run_dir::RunDir;
use super::{line, parse, Answer, Request};

/// The longest line that a client may send, in bytes.
const LONGEST_LINE: usize = 4096;
/// Answers that a client has not taken, in bytes: beyond, it gets no more requests through.
const LARGEST_BACKLOG: usize = 1 << 20;
/// Clients at a time.
const MOST_CLIENTS: usize = 64;
/// How long a client may take to send a whole request, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections taken in one turn, and clients served.
const EACH_TURN: usize = 16;
/// The listener's, among the clients' numbers.
const LISTENER: u64 = 0;

/// A client, for as long as it is connected. Numbers are not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(u64);

/// The socket and those connected to it.
pub struct Server {
    epoll: Epoll,
    listener: UnixListener,
    /// Besides root.
    user: u32,
    clients: BTreeMap<ClientId, Client>,
    last_id: u64,
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// One of its requests is being worked on.
    busy: bool,
    /// It has shut its sending side.
    ended: bool,
    /// To be disconnected once it has taken its answer.
    dismissed: bool,
    /// The events that epoll watches it for.
    interest: EpollFlags,
    /// When it is disconnected for being slow, unless it is busy.
    deadline: Instant,
}

impl Server {
    /// Listens in a run directory. A socket that lies there is one that a killed instance left: nobody else
    /// has the directory.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn bind(run_dir: &RunDir) -> io::Result<Self> {
        let path = run_dir.socket();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Server {
            epoll,
            listener,
            user: geteuid().as_raw(),
            clients: BTreeMap::new(),
            last_id: LISTENER,
        })
    }

    /// When it is readable, call [`Server::turn`].
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// When to call [`Server::turn`] even if nothing is readable.
    pub fn deadline(&self) -> Option<Instant> {
        let waiting = self.clients.values().filter(|client| !client.busy);
        waiting.map(|client| client.deadline).min()
    }

    /// Takes in what clients have sent, sends what they have not taken yet, and lets go of those whose time is
    /// up. Gives back requests, which [`Server::answer`] is to be called for: at most one of each client, and
    /// none of one whose last has not been answered.
    pub fn turn(&mut self, now: Instant) -> Vec<(ClientId, Request)> {
        let mut requests = Vec::new();
        let mut events = [EpollEvent::empty(); EACH_TURN];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(error) => {
                debug!("control socket: {error}");
                0
            }
        };
        for event in &events[..count] {
            if event.data() == LISTENER {
                self.accept(now);
            } else {
                self.serve(ClientId(event.data()), event.events(), now, &mut requests);
            }
        }
        let late: Vec<ClientId> = self
            .clients
            .iter()
            .filter(|(_, client)| !client.busy && client.deadline <= now)
            .map(|(&id, _)| id)
            .collect();
        for id in late {
            debug!("control socket: a client took too long");
            self.clients.remove(&id);
        }
        requests
    }

    /// Answers the request of a client; one that has gone is none any more.
    pub fn answer(&mut self, id: ClientId, answer: &Answer, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.busy = false;
        client.deadline = now + PATIENCE;
        client.output.extend(line(answer));
        client.send();
        // Requests that it sent meanwhile have been read or will be; either wakes the next turn.
        self.settle(id);
    }

    /// Whether a client's request is still waited for.
    pub fn is_waiting(&self, id: ClientId) -> bool {
        self.clients.get(&id).is_some_and(|client| client.busy)
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..EACH_TURN {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Of the connection, or for want of descriptors: the next turn tries again.
                    debug!("control socket: {error}");
                    return;
                }
            };
            if let Err(error) = self.admit(stream, now) {
                debug!("control socket: {error}");
            }
        }
    }

    fn admit(&mut self, stream: UnixStream, now: Instant) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let peer = getsockopt(&stream, sockopt::PeerCredentials)?;
        if peer.uid() != 0 && peer.uid() != self.user {
            warn!(
                "control socket: refused process {} of user {}",
                peer.pid(),
                peer.uid()
            );
            return turn_away(stream, "only root and the user that xdplb runs as may ask");
        }
        if self.clients.len() >= MOST_CLIENTS {
            return turn_away(stream, "too many clients at a time; try again");
        }
        let interest = EpollFlags::EPOLLIN;
        let id = self.last_id + 1;
        self.epoll.add(&stream, EpollEvent::new(interest, id))?;
        self.last_id = id;
        let client = Client {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            busy: false,
            ended: false,
            dismissed: false,
            interest,
            deadline: now + PATIENCE,
        };
        self.clients.insert(ClientId(id), client);
        Ok(())
    }

    fn serve(
        &mut self,
        id: ClientId,
        events: EpollFlags,
        now: Instant,
        requests: &mut Vec<(ClientId, Request)>,
    ) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if events.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) && client.busy {
            // The client has gone: nobody would read the answer.
            self.clients.remove(&id);
            return;
        }
        if events.contains(EpollFlags::EPOLLOUT) {
            client.send();
        }
        if client.wants_input() {
            client.receive();
        }
        match client.next_request() {
            Some(Ok(request)) => {
                client.busy = true;
                requests.push((id, request));
            }
            Some(Err(error)) => {
                if client.output.is_empty() {
                    client.deadline = now + PATIENCE;
                }
                client.output.extend(line(&Answer::Error { error }));
                client.send();
            }
            None => {}
        }
        self.settle(id);
    }

    /// Has a client watched for what it can be served with next, or lets go of it.
    fn settle(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.is_done() {
            self.clients.remove(&id);
            return;
        }
        let mut interest = EpollFlags::empty();
        // Its next request has been read already: waiting for "writable" wakes the next turn at once.
        let has_request = client.may_ask() && client.has_line();
        interest.set(EpollFlags::EPOLLIN, client.wants_input());
        interest.set(
            EpollFlags::EPOLLOUT,
            !client.output.is_empty() || has_request,
        );
        if interest != client.interest {
            client.interest = interest;
            let mut event = EpollEvent::new(interest, id.0);
            if let Err(error) = self.epoll.modify(&client.stream, &mut event) {
                debug!("control socket: {error}");
                self.clients.remove(&id);
            }
        }
    }
}

/// Says why, as far as that can be said at once, and closes.
fn turn_away(mut stream: UnixStream, why: &str) -> io::Result<()> {
    stream.write_all(&line(&Answer::Error { error: why.into() }))
}

impl Client {
    fn may_ask(&self) -> bool {
        !self.busy && !self.dismissed && self.output.len() < LARGEST_BACKLOG
    }

    fn wants_input(&self) -> bool {
        self.may_ask() && !self.ended && self.input.len() <= LONGEST_LINE
    }

    fn is_done(&self) -> bool {
        let nothing_more = self.dismissed || (self.ended && !self.has_line());
        nothing_more && !self.busy && self.output.is_empty()
    }

    fn has_line(&self) -> bool {
        self.input.contains(&b'\n')
    }

    /// Once: what else there is wakes the next turn.
    fn receive(&mut self) {
        let mut buffer = [0; LONGEST_LINE];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.ended = true,
            Ok(count) => self.input.extend(&buffer[..count]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => {
                self.ended = true;
                self.input.clear();
            }
        }
    }

    /// As much as it takes.
    fn send(&mut self) {
        match self.stream.write(&self.output) {
            Ok(count) => drop(self.output.drain(..count)),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => {
                // It has gone.
                self.output.clear();
                self.input.clear();
                self.dismissed = true;
            }
        }
    }

    /// The next line that is here, if it is its turn.
    fn next_request(&mut self) -> Option<Result<Request, String>> {
        if !self.may_ask() {
            return None;
        }
        let Some(end) = self.input.iter().position(|&byte| byte == b'\n') else {
            if self.input.len() > LONGEST_LINE {
                self.input.clear();
                self.dismissed = true;
                return Some(Err(format!("lines may be up to {LONGEST_LINE} bytes long")));
            }
            return None;
        };
        let line: Vec<u8> = self.input.drain(..=end).collect();
        Some(parse(&line[..end]))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::Shutdown;
    use std::path::PathBuf;
    use std::thread;

    use super::*;
    use crate::control::client;

    const RELOAD: &[u8] = b"{\"request\":\"reload\"}\n";

    struct Lab {
        server: Server,
        run_dir: RunDir,
        now: Instant,
    }

    impl Lab {
        fn new(name: &str) -> Lab {
            let path = std::env::temp_dir().join(format!("xdplb-{name}-{}", std::process::id()));
            let run_dir = RunDir::open(&path).expect("a run directory");
            Lab {
                server: Server::bind(&run_dir).expect("a socket"),
                run_dir,
                now: Instant::now(),
            }
        }

        fn connect(&self) -> UnixStream {
            UnixStream::connect(self.run_dir.socket()).expect("a connection")
        }

        /// Turns until nothing is left to be done.
        fn turns(&mut self) -> Vec<(ClientId, Request)> {
            let mut requests = Vec::new();
            for _ in 0..100 {
                requests.extend(self.server.turn(self.now));
            }
            requests
        }
    }

    fn done(services: usize) -> Answer {
        Answer::InForce {
            file: PathBuf::from("lb.toml"),
            services,
            warnings: vec![],
        }
    }

    fn read(stream: &UnixStream) -> Option<Answer> {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        let mut text = String::new();
        // Byte by byte: the reader may not take what belongs to the next line.
        BufReader::with_capacity(1, stream)
            .read_line(&mut text)
            .expect("an answer or the end");
        (!text.is_empty()).then(|| serde_json::from_str(&text).expect("an answer"))
    }

    fn error(stream: &UnixStream) -> String {
        match read(stream) {
            Some(Answer::Error { error }) => error,
            other => panic!("no error: {other:?}"),
        }
    }

    #[test]
    fn a_request_is_answered_when_its_answer_is_there() {
        let mut lab = Lab::new("control-answer");
        let mut client = lab.connect();
        client.write_all(&RELOAD[..7]).expect("half a line");
        assert_eq!(lab.turns(), []);
        client.write_all(&RELOAD[7..]).expect("the rest");
        let requests = lab.turns();
        let [(id, Request::Reload {})] = requests[..] else {
            panic!("{requests:?}");
        };
        assert!(lab.server.is_waiting(id));
        // It may wait for as long as the work takes.
        assert_eq!(lab.server.deadline(), None);
        lab.now += 100 * PATIENCE;
        assert_eq!(lab.turns(), []);
        lab.server.answer(id, &done(3), lab.now);
        assert_eq!(read(&client), Some(done(3)));
        assert!(!lab.server.is_waiting(id));
        // And ask again.
        client.write_all(RELOAD).expect("a line");
        assert_eq!(lab.turns(), [(id, Request::Reload {})]);
    }

    #[test]
    fn requests_sent_ahead_come_one_after_the_other() {
        let mut lab = Lab::new("control-ahead");
        let mut client = lab.connect();
        client.write_all(RELOAD).expect("a line");
        client.write_all(b"nonsense\n").expect("a line");
        client.write_all(RELOAD).expect("a line");
        client.shutdown(Shutdown::Write).expect("half a close");
        for services in [1, 2] {
            let requests = lab.turns();
            let [(id, Request::Reload {})] = requests[..] else {
                panic!("{requests:?}");
            };
            if services == 2 {
                assert!(error(&client).starts_with("not a request"));
            }
            lab.server.answer(id, &done(services), lab.now);
            assert_eq!(read(&client), Some(done(services)));
        }
        lab.turns();
        assert_eq!(read(&client), None);
        assert!(lab.server.clients.is_empty());
    }

    #[test]
    fn who_goes_away_is_forgotten() {
        let mut lab = Lab::new("control-gone");
        let mut client = lab.connect();
        client.write_all(RELOAD).expect("a line");
        let requests = lab.turns();
        drop(client);
        assert_eq!(lab.turns(), []);
        assert!(lab.server.clients.is_empty());
        lab.server.answer(requests[0].0, &done(1), lab.now);
        drop(lab.connect());
        lab.turns();
        assert!(lab.server.clients.is_empty());
    }

    #[test]
    fn long_lines_and_slow_clients_are_let_go() {
        let mut lab = Lab::new("control-slow");
        let mut long = lab.connect();
        long.write_all(&[b'x'; 3 * LONGEST_LINE]).expect("no end");
        lab.turns();
        assert!(error(&long).contains("up to 4096 bytes"));
        assert_eq!(lab.server.clients.len(), 0);

        let mut slow = lab.connect();
        slow.write_all(&RELOAD[..3]).expect("half a line");
        assert_eq!(lab.turns(), []);
        assert_eq!(lab.server.deadline(), Some(lab.now + PATIENCE));
        lab.now += PATIENCE / 2;
        slow.write_all(&RELOAD[3..4]).expect("a byte more");
        lab.turns();
        assert_eq!(lab.server.clients.len(), 1);
        lab.now += PATIENCE / 2;
        lab.turns();
        assert_eq!(read(&slow), None);
        assert!(lab.server.clients.is_empty());
    }

    #[test]
    fn who_takes_no_answers_gets_no_more_requests_through() {
        let mut lab = Lab::new("control-deaf");
        let mut deaf = lab.connect();
        deaf.set_nonblocking(true).expect("a mode");
        let mut sent = 0;
        for _ in 0..100_000 {
            match deaf.write(b"x\n") {
                Ok(_) => sent += 1,
                Err(_) => break,
            }
            lab.server.turn(lab.now);
        }
        let client = lab.server.clients.values().next().expect("a client");
        assert!(sent > 1000, "{sent}");
        let most = LARGEST_BACKLOG + LONGEST_LINE;
        assert!(client.output.len() <= most, "{}", client.output.len());
        assert!(client.input.len() <= 2 * LONGEST_LINE);
        lab.now += PATIENCE;
        lab.server.turn(lab.now);
        assert!(lab.server.clients.is_empty());
    }

    #[test]
    fn there_are_only_so_many_clients() {
        let mut lab = Lab::new("control-many");
        let clients: Vec<UnixStream> = (0..MOST_CLIENTS)
            .map(|_| {
                let client = lab.connect();
                lab.turns();
                client
            })
            .collect();
        let one_more = lab.connect();
        lab.turns();
        assert!(error(&one_more).contains("too many"));
        assert_eq!(read(&one_more), None);
        drop(clients);
        for _ in 0..MOST_CLIENTS / EACH_TURN {
            lab.turns();
        }
        let mut next = lab.connect();
        next.write_all(RELOAD).expect("a line");
        assert_eq!(lab.turns().len(), 1);
    }

    #[test]
    fn another_user_is_turned_away() {
        let mut lab = Lab::new("control-user");
        // As if it ran as another user; root may always ask.
        lab.server.user = lab.server.user.wrapping_add(1);
        let mut client = lab.connect();
        lab.turns();
        if geteuid().is_root() {
            client.write_all(RELOAD).expect("a line");
            assert_eq!(lab.turns().len(), 1);
        } else {
            assert!(error(&client).contains("only root"));
        }
    }

    #[test]
    fn a_socket_that_was_left_is_replaced_and_is_the_owners() {
        let lab = Lab::new("control-stale");
        let path = lab.run_dir.socket();
        let mode = |path| fs::metadata(path).expect("a file").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        // Its listener ends as with a process that is killed; the file stays.
        drop(lab.server);
        assert!(path.exists());
        let run_dir = path.parent().expect("a directory");
        let refused = client::ask(run_dir, &Request::Reload {});
        assert!(matches!(refused, Err(client::Error::NoDaemon(_))));
        let mut server = Server::bind(&lab.run_dir).expect("a new one");
        let asked = thread::spawn({
            let run_dir = run_dir.to_owned();
            move || client::ask(&run_dir, &Request::Reload {})
        });
        let answered = (0..1000).any(|_| {
            thread::sleep(Duration::from_millis(10));
            let requests = server.turn(Instant::now());
            for (id, _) in &requests {
                server.answer(*id, &done(7), Instant::now());
            }
            !requests.is_empty()
        });
        assert!(answered);
        let answer = asked.join().expect("a client");
        assert_eq!(answer.expect("an answer"), done(7));
    }
}
