//! Live frames through topology/router.sh: Mpps of a bare XDP redirect, of xdplb and of nftables DNAT, in
//! one run. live.sh puts the topology up and starts this.
//!
//! Method: frames of 60 bytes, made by BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES in one thread
//! for each CPU at the client, counted and dropped by an XDP program at b1. Only what stands between, in
//! lb, differs. Each veth has a queue for each CPU (live.sh), so that a frame's whole way, generator
//! included, is the work of one CPU, and nothing is shared but tables. Each round measures all of them,
//! and the median over the rounds is what counts. The UDP frames carry no checksum, which spares
//! conntrack its check of it.
//!
//! Owns the order of the measurement, xdplb's process and nftables' table in lb. All of it goes when this
//! process does: XDP links with their descriptors, xdplb by its parent's death, the table with lb.

mod live_frames;

use std::error::Error;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::{Ethernet2Header, IpNumber, Ipv4Header, UdpHeader};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, ProgramMut};
use nix::sched::{sched_setaffinity, setns, CloneFlags, CpuSet};
use nix::sys::signal::{kill, Signal};
use nix::time::{clock_gettime, ClockId};
use nix::unistd::Pid;
use xdplb_bench_programs::bench::{BenchSkel, BenchSkelBuilder};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(5);
/// Until everything is in the caches and the queues are full.
const WARM_UP: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(20);

/// Below this share of the CPUs the figures say more about who else is there. ksoftirqd has a few per cent.
const QUIET: f64 = 0.9;
/// How often a measurement is made, at most, until it is a quiet one.
const TRIES: usize = 4;

/// Frames in one system call: ten milliseconds and more.
const RUN: u32 = 1 << 17;

/// The goals, of the bare redirect and of nftables.
const GOAL_OF_REDIRECT: f64 = 0.80;
const GOAL_TIMES_NFTABLES: f64 = 4.5;

// As in bench.bpf.c.
const FLOWS: u64 = 512;
const CPUS: usize = 8;
const FRAME: usize = 60;
const HEADERS: usize = 42;
const SAVED: usize = 72;
const FROM_CLIENT: u32 = 0;
const FROM_BACKEND: u32 = 1;
const TO_BACKEND: u32 = 2;
const AT_VIP: usize = 0;
const AT_BACKEND: usize = 1;
const ELSEWHERE: usize = 2;
const ARRIVALS: usize = 3;

// As in topology/router.sh. The client's port is written by the generators.
const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 2), 0);
const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 11), 80);
const BACKEND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, 2), 8080);

const USAGE: &str = "live: needs the network that tests/bench/live.sh makes; run that";

fn main() -> Result<()> {
    // `cargo bench` runs this along with the others.
    let Some(prefix) =
        std::env::args().find_map(|argument| Some(argument.strip_prefix("--prefix=")?.to_owned()))
    else {
        println!("{USAGE}");
        return Ok(());
    };
    let topology = Topology { prefix };

    let mut storage = MaybeUninit::uninit();
    let bench = load(&mut storage)?;
    let lab = Lab::new(&topology, &bench)?;

    let mut bare = Row::new("bare XDP redirect");
    let mut established = Row::new("xdplb, nat, established flows");
    let mut one_way = Row::new("xdplb, nat, flows without a reply");
    let mut nftables = Row::new("nftables DNAT, conntrack");
    for _ in 0..ROUNDS {
        {
            let _relay = topology.attach("lb", "eth0", &bench.progs.relay)?;
            bare.measure(&lab, AT_VIP)?;
        }
        {
            let _xdplb = Xdplb::start(&topology)?;
            one_way.measure(&lab, AT_BACKEND)?;
            lab.establish()?;
            established.measure(&lab, AT_BACKEND)?;
        }
        {
            let _table = Nftables::new(&topology)?;
            lab.establish()?;
            nftables.measure(&lab, AT_BACKEND)?;
        }
    }

    let rows = [&bare, &established, &one_way, &nftables];
    println!(
        "Live frames of {FRAME} bytes, {} CPUs, {} flows; median of {ROUNDS} rounds of {} s.",
        lab.cpus.len(),
        lab.flows(),
        ROUND.as_secs()
    );
    println!(
        "CPU ns is a frame's whole way, generator to sink; CPU is the share that was to be had."
    );
    println!(
        "{:<34} {:>5}  {:>8}  {:>8}  {:>7}  {:>8}  {:>8}  Mpps, each round",
        "between client and backend", "Mpps", "redirect", "nftables", "offered", "CPU ns", "CPU"
    );
    for row in rows {
        let rounds: Vec<String> = row
            .samples
            .iter()
            .map(|sample| format!("{:.2}", sample.arrived))
            .collect();
        println!(
            "{:<34} {:>5.2}  {:>6.1} %  {:>6.2} x  {:>7.2}  {:>8.0}  {:>6.0} %  {}",
            row.name,
            row.arrived(),
            100.0 * row.arrived() / bare.arrived(),
            row.arrived() / nftables.arrived(),
            row.median(|sample| sample.sent),
            row.median(|sample| sample.cost),
            100.0 * row.median(|sample| sample.busy),
            rounds.join(" "),
        );
    }
    let had = rows
        .map(|row| row.median(|sample| sample.busy))
        .into_iter()
        .fold(1.0, f64::min);
    if had < QUIET {
        println!(
            "Other processes took up to {:.0} % of the CPUs: repeat it on a quiet machine; only CPU ns compares.",
            100.0 * (1.0 - had)
        );
    }
    let of_redirect = established.arrived() / bare.arrived();
    let times = established.arrived() / nftables.arrived();
    for (goal, met) in [
        (
            format!(
                "at least {:.0} % of the bare redirect",
                100.0 * GOAL_OF_REDIRECT
            ),
            of_redirect >= GOAL_OF_REDIRECT,
        ),
        (
            format!("at least {GOAL_TIMES_NFTABLES} times nftables"),
            times >= GOAL_TIMES_NFTABLES,
        ),
    ] {
        println!(
            "goal, established flows: {goal}: {}",
            if met { "met" } else { "missed" }
        );
    }
    Ok(())
}

/// The programs of the live measurement; of the rest of the file, nothing.
fn load(storage: &mut MaybeUninit<libbpf_rs::OpenObject>) -> Result<BenchSkel<'_>> {
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Warn, |_, message| {
        eprint!("{message}")
    })));
    let mut open = BenchSkelBuilder::default().open(storage)?;
    for mut program in open.open_object_mut().progs_mut() {
        let name = program.name().to_string_lossy().into_owned();
        program.set_autoload(["generate", "answer", "relay", "sink"].contains(&name.as_str()));
    }
    for mut map in open.open_object_mut().maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        map.set_autocreate(name.starts_with("live_") || name == "received")?;
    }
    Ok(open.load()?)
}

struct Topology {
    prefix: String,
}

impl Topology {
    fn namespace(&self, host: &str) -> PathBuf {
        Path::new("/run/netns").join(format!("{}-{host}", self.prefix))
    }

    /// Where router.sh keeps its state, and takes what is in it away.
    fn state(&self) -> PathBuf {
        Path::new("/run").join(format!("{}-topology", self.prefix))
    }

    /// Moves this thread into a host, for good.
    fn enter(&self, host: &str) -> Result<()> {
        let path = self.namespace(host);
        let namespace =
            File::open(&path).map_err(|error| format!("{}: {error}; {USAGE}", path.display()))?;
        Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
    }

    fn attach(&self, host: &str, device: &str, program: &ProgramMut<'_>) -> Result<Link> {
        self.enter(host)?;
        let index = nix::net::if_::if_nametoindex(device)?;
        Ok(program.attach_xdp(index.try_into()?)?)
    }

    /// Puts a host's device into `live_ports`; the kernel looks for it where the caller is.
    fn set_port(
        &self,
        bench: &BenchSkel<'_>,
        position: u32,
        host: &str,
        device: &str,
    ) -> Result<()> {
        self.enter(host)?;
        let index = nix::net::if_::if_nametoindex(device)?;
        Ok(bench.maps.live_ports.update(
            &position.to_ne_bytes(),
            &index.to_ne_bytes(),
            MapFlags::ANY,
        )?)
    }

    fn mac(&self, host: &str, device: &str) -> Result<[u8; 6]> {
        self.enter(host)?;
        nix::ifaddrs::getifaddrs()?
            .filter(|address| address.interface_name == device)
            .find_map(|address| address.address?.as_link_addr()?.addr())
            .ok_or_else(|| format!("{host} has no {device} with a MAC address").into())
    }

    /// A command in a host, which gets SIGTERM when this process ends, however it does.
    fn command(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.namespace(host).display()))
            .args(["--", "setpriv", "--pdeathsig", "TERM", program]);
        command
    }
}

/// Both ends: generators and sinks.
struct Lab<'a> {
    topology: &'a Topology,
    bench: &'a BenchSkel<'a>,
    cpus: Vec<usize>,
    _sinks: [Link; 2],
}

impl<'a> Lab<'a> {
    fn new(topology: &'a Topology, bench: &'a BenchSkel<'a>) -> Result<Lab<'a>> {
        let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
        let cpus = (0..CpuSet::count())
            .filter(|cpu| allowed.is_set(*cpu).unwrap_or(false))
            .take(CPUS)
            .collect();

        let ends = [
            (
                FROM_CLIENT,
                "client",
                topology.mac("lb", "eth0")?,
                CLIENT,
                VIP,
            ),
            (
                FROM_BACKEND,
                "b1",
                topology.mac("lb", "eth1")?,
                BACKEND,
                CLIENT,
            ),
        ];
        for (position, host, towards, from, to) in ends {
            let frame = frame(topology.mac(host, "eth0")?, towards, from, to)?;
            bench
                .maps
                .live_frames
                .update(&position.to_ne_bytes(), &frame, MapFlags::ANY)?;
            topology.set_port(bench, position, host, "eth0")?;
        }
        topology.set_port(bench, TO_BACKEND, "lb", "eth1")?;
        let sinks = [
            topology.attach("client", "eth0", &bench.progs.sink)?,
            topology.attach("b1", "eth0", &bench.progs.sink)?,
        ];
        Ok(Lab {
            topology,
            bench,
            cpus,
            _sinks: sinks,
        })
    }

    fn flows(&self) -> u64 {
        FLOWS * self.cpus.len() as u64
    }

    /// Frames counted by the sinks so far, by where they were addressed to.
    fn received(&self) -> Result<[u64; ARRIVALS]> {
        let mut sums = [0; ARRIVALS];
        for (position, sum) in (0_u32..).zip(&mut sums) {
            let values = self
                .bench
                .maps
                .received
                .lookup_percpu(&position.to_ne_bytes(), MapFlags::ANY)?
                .ok_or("the counters have gone")?;
            for value in values {
                *sum += u64::from_ne_bytes(value.as_slice().try_into()?);
            }
        }
        Ok(sums)
    }

    /// Runs `program` in a host, on each CPU in a thread of its own: until `body` returns, or `frames`
    /// times each. `body` is given how far they are.
    fn generate<T>(
        &self,
        host: &str,
        program: &ProgramMut<'_>,
        frames: Option<u32>,
        body: impl FnOnce(&Progress) -> Result<T>,
    ) -> Result<T> {
        let (topology, program) = (self.topology, program.as_fd());
        let (progress, stop) = (&Progress::default(), &AtomicBool::new(false));
        thread::scope(|scope| {
            let generators: Vec<_> = self
                .cpus
                .iter()
                .map(|cpu| {
                    scope.spawn(move || -> Result<()> {
                        topology.enter(host)?;
                        let mut only = CpuSet::new();
                        only.set(*cpu)?;
                        sched_setaffinity(Pid::from_raw(0), &only)?;
                        let mut busy = Duration::ZERO;
                        loop {
                            let run = frames.unwrap_or(RUN);
                            live_frames::send(program, FRAME, run)?;
                            let now =
                                Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
                            progress.sent.fetch_add(run.into(), Ordering::Relaxed);
                            progress
                                .busy
                                .fetch_add((now - busy).as_nanos().try_into()?, Ordering::Relaxed);
                            busy = now;
                            if frames.is_some() || stop.load(Ordering::Relaxed) {
                                return Ok(());
                            }
                        }
                    })
                })
                .collect();
            let result = body(progress);
            stop.store(true, Ordering::Relaxed);
            for generator in generators {
                generator.join().map_err(|_| "a generator panicked")??;
            }
            result
        })
    }

    /// One frame of each flow to the backend and one back, so that both directions have been seen.
    fn establish(&self) -> Result<()> {
        let flows = self.flows();
        let frames = Some(FLOWS as u32);
        for (host, program, arrival) in [
            ("client", &self.bench.progs.generate, AT_BACKEND),
            ("b1", &self.bench.progs.answer, ELSEWHERE),
        ] {
            // Queues overflow when the machine is busy.
            let before = self.received()?;
            let give_up = Instant::now() + PATIENCE;
            loop {
                self.generate(host, program, frames, |_| Ok(()))?;
                thread::sleep(Duration::from_millis(50));
                let arrived = self.received()?[arrival] - before[arrival];
                if arrived >= flows {
                    break;
                }
                if Instant::now() > give_up {
                    return Err(
                        format!("of {flows} flows {arrived} frames from {host} arrived").into(),
                    );
                }
            }
        }
        Ok(())
    }

    /// What arrives, and what that takes.
    fn measure(&self, arrival: usize) -> Result<Sample> {
        let generate = &self.bench.progs.generate;
        let (sent, busy, arrived, time) = self.generate("client", generate, None, |progress| {
            thread::sleep(WARM_UP);
            let start = Instant::now();
            let (sent, busy) = progress.read();
            let before = self.received()?;
            thread::sleep(ROUND);
            let (sent_after, busy_after) = progress.read();
            let after = self.received()?;
            let time = start.elapsed();
            let arrived: Vec<u64> = before
                .iter()
                .zip(after)
                .map(|(before, after)| after - before)
                .collect();
            Ok((sent_after - sent, busy_after - busy, arrived, time))
        })?;
        let total: u64 = arrived.iter().sum();
        if total == 0 {
            return Err("no frame arrived at the backend".into());
        }
        if arrived[arrival] != total {
            return Err(format!(
                "{} of {total} frames arrived with another destination port than expected",
                total - arrived[arrival]
            )
            .into());
        }
        let seconds = time.as_secs_f64();
        Ok(Sample {
            arrived: total as f64 / seconds / 1e6,
            sent: sent as f64 / seconds / 1e6,
            cost: busy as f64 / sent as f64,
            busy: busy as f64 / 1e9 / seconds / self.cpus.len() as f64,
        })
    }
}

/// How far the generators are, all together.
#[derive(Default)]
struct Progress {
    sent: AtomicU64,
    /// Nanoseconds that they had a CPU for, which the receivers that run on them are part of.
    busy: AtomicU64,
}

impl Progress {
    fn read(&self) -> (u64, u64) {
        (
            self.sent.load(Ordering::Relaxed),
            self.busy.load(Ordering::Relaxed),
        )
    }
}

struct Sample {
    /// Mpps.
    arrived: f64,
    /// Mpps; more than arrived if queues overflow.
    sent: f64,
    /// ns of CPU for a frame, from the generator to the sink.
    cost: f64,
    /// The generators' share of the CPUs, 0 to 1.
    busy: f64,
}

/// The headers that the generators copy.
fn frame(
    source: [u8; 6],
    destination: [u8; 6],
    from: SocketAddrV4,
    to: SocketAddrV4,
) -> Result<[u8; SAVED]> {
    let payload = FRAME - HEADERS;
    let mut headers = Vec::new();
    Ethernet2Header {
        source,
        destination,
        ether_type: etherparse::EtherType::IPV4,
    }
    .write(&mut headers)?;
    let udp = UdpHeader {
        source_port: from.port(),
        destination_port: to.port(),
        length: (UdpHeader::LEN + payload).try_into()?,
        checksum: 0,
    };
    Ipv4Header::new(
        udp.length,
        64,
        IpNumber::UDP,
        from.ip().octets(),
        to.ip().octets(),
    )?
    .write(&mut headers)?;
    udp.write(&mut headers)?;
    let mut saved = [0; SAVED];
    saved[..HEADERS].copy_from_slice(&headers);
    Ok(saved)
}

/// xdplb in lb, from when it balances until this is dropped.
struct Xdplb(Child);

impl Xdplb {
    fn start(topology: &Topology) -> Result<Xdplb> {
        let (config, log) = (
            topology.state().join("live.toml"),
            topology.state().join("live.log"),
        );
        fs::write(
            &config,
            format!(
                r#"
[datapath]
interfaces = ["eth0", "eth1"]
xdp_mode = "native"
pin_dir = "/sys/fs/bpf/{0}"
run_dir = "/run/{0}-daemon"
[limits]
services = 16
backends = 64
connections = 65536
[[service]]
name = "live"
vip = ["{1}"]
protocol = "udp"
port = {2}
forward = "nat"
[[service.backend]]
name = "b1"
address = "{3}"
port = {4}
"#,
                topology.prefix,
                VIP.ip(),
                VIP.port(),
                BACKEND.ip(),
                BACKEND.port()
            ),
        )?;
        let child = topology
            .command("lb", env!("CARGO_BIN_EXE_xdplb"))
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .spawn()?;
        let mut xdplb = Xdplb(child);
        let give_up = Instant::now() + PATIENCE;
        loop {
            let said = fs::read_to_string(&log)?;
            if said.to_lowercase().contains("balancing") {
                return Ok(xdplb);
            }
            if xdplb.0.try_wait()?.is_some() || Instant::now() > give_up {
                return Err(format!("xdplb does not balance. It said:\n{said}").into());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Xdplb {
    fn drop(&mut self) {
        let Ok(pid) = self.0.id().try_into() else {
            return;
        };
        // Not reaped yet, so that the number is still its own.
        if let Ok(None) = self.0.try_wait() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let _ = self.0.wait();
        }
    }
}

/// What a user would have instead, in lb until this is dropped.
struct Nftables<'a>(&'a Topology);

const TABLE: &str = "xdplb_live";

impl Nftables<'_> {
    fn new(topology: &Topology) -> Result<Nftables<'_>> {
        run(topology.command("lb", "nft").arg(format!(
            "table ip {TABLE} {{ chain prerouting {{ type nat hook prerouting priority dstnat; \
             ip daddr {} udp dport {} dnat to {}:{}; }}; }}",
            VIP.ip(),
            VIP.port(),
            BACKEND.ip(),
            BACKEND.port()
        )))?;
        Ok(Nftables(topology))
    }
}

impl Drop for Nftables<'_> {
    fn drop(&mut self) {
        if let Err(error) = run(self
            .0
            .command("lb", "nft")
            .args(["delete", "table", "ip", TABLE]))
        {
            eprintln!("live: {error}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if !status.success() {
        return Err(format!("{command:?} failed").into());
    }
    Ok(())
}

struct Row {
    name: &'static str,
    samples: Vec<Sample>,
}

impl Row {
    fn new(name: &'static str) -> Row {
        Row {
            name,
            samples: Vec::new(),
        }
    }

    fn measure(&mut self, lab: &Lab<'_>, arrival: usize) -> Result<()> {
        let mut best = lab.measure(arrival)?;
        for _ in 1..TRIES {
            if best.busy >= QUIET {
                break;
            }
            let again = lab.measure(arrival)?;
            if again.busy > best.busy {
                best = again;
            }
        }
        self.samples.push(best);
        Ok(())
    }

    fn median(&self, field: impl Fn(&Sample) -> f64) -> f64 {
        let mut values: Vec<f64> = self.samples.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    fn arrived(&self) -> f64 {
        self.median(|sample| sample.arrived)
    }
}
