//! What the daemon and its commands take by themselves: memory, time at rest, and time to print a million
//! connections.
//!
//! Runs the daemon itself, in a network namespace of its own, with 4,096 services of four backends each, and
//! opens a million connections by running frames through its program, as clients and backends would send them.
//! Memory is what the kernel counts for the process; maps are not in it but for what of them is mapped into
//! it. Commands print into a pipe that is read as fast as they write; their memory is at its largest.
//!
//! Goals: 64 MB for the daemon, 0.5 % of a core at rest; for `conns` 3 s and 32 MB, and its first line at once.
//!
//! Needs root. `cargo bench --bench footprint`; `-- PROGRAM` measures another build of xdplb.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::libc;
use nix::sched::{setns, CloneFlags};
use serde_json::Value;
use xdplb::datapath::abi;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SERVICES: u32 = 4096;
const BACKENDS: u32 = 4 * SERVICES;
const CONNECTIONS: u32 = 1_000_000;
/// How long the daemon may take to start.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than the time between two sweeps.
const REST: Duration = Duration::from_secs(35);
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// XDP_TX and XDP_REDIRECT.
const SENT: [u32; 2] = [3, 4];

/// A signal has asked for the end: everything that was made goes first.
static STOPPED: AtomicBool = AtomicBool::new(false);

fn main() -> Result<()> {
    ctrlc::set_handler(|| STOPPED.store(true, Ordering::Relaxed))?;
    // cargo adds --bench.
    let program = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let program = program.map_or_else(|| env!("CARGO_BIN_EXE_xdplb").into(), PathBuf::from);
    let lab = Lab::new()?;
    lab.write(1)?;
    println!("{SERVICES} services, {BACKENDS} backends");
    let began = Instant::now();
    let daemon = Daemon::start(&lab, &program)?;
    daemon.wait_for_backends(&lab)?;
    println!("{:<44} {:>8.1} s", "started", began.elapsed().as_secs_f64());
    daemon.at_rest("at rest")?;
    lab.write(2)?;
    daemon.output(&["reload", "--run-dir", &lab.run_dir().display().to_string()])?;
    daemon.at_rest("at rest after a reload of all backends")?;

    let began = Instant::now();
    lab.open_connections()?;
    println!(
        "{:<44} {:>8.1} s",
        format!("{CONNECTIONS} connections opened"),
        began.elapsed().as_secs_f64()
    );
    daemon.at_rest("at rest with them")?;
    for arguments in [
        &["conns"][..],
        &["conns", "--json"],
        &["conns", "--service", "s7"],
        &["conns", "--count"],
        &["list"],
        &["stats"],
    ] {
        Run::of(&program, &lab, arguments, false)?.print(&arguments.join(" "));
    }
    Run::of(&program, &lab, &["conns"], true)?.print("conns | head -1");
    Ok(())
}

fn go_on() -> std::result::Result<(), String> {
    match STOPPED.load(Ordering::Relaxed) {
        true => Err("stopped by a signal".into()),
        false => Ok(()),
    }
}

fn pause(time: Duration) -> std::result::Result<(), String> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        go_on()?;
        thread::sleep(Duration::from_millis(50).min(end - Instant::now().min(end)));
    }
    go_on()
}

/// A namespace with an interface and everybody on its network, and a directory; both go with it.
struct Lab {
    name: String,
    directory: PathBuf,
}

impl Lab {
    fn new() -> Result<Self> {
        let name = format!("xdplb-footprint-{}", std::process::id());
        let lab = Lab {
            directory: std::env::temp_dir().join(&name),
            name,
        };
        fs::create_dir_all(&lab.directory)?;
        run("ip", &["netns", "add", &lab.name])?;
        lab.ip(&[
            "link", "add", "eth0", "type", "veth", "peer", "name", "peer",
        ])?;
        for device in ["eth0", "peer"] {
            lab.ip(&["link", "set", device, "up"])?;
        }
        lab.ip(&["address", "add", "10.64.0.1/10", "dev", "eth0"])?;
        let neighbours = lab.directory.join("neighbours");
        let mut batch = String::new();
        for backend in 0..BACKENDS {
            writeln!(
                batch,
                "neighbour add {} dev eth0 lladdr {} nud permanent",
                address(backend),
                text_of(mac(backend))
            )?;
        }
        fs::write(&neighbours, batch)?;
        lab.ip(&["-batch", &neighbours.display().to_string()])?;
        Ok(lab)
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        run("ip", &[&["-n", &self.name], arguments].concat())
    }

    fn config(&self) -> PathBuf {
        self.directory.join("lb.toml")
    }

    fn run_dir(&self) -> PathBuf {
        self.directory.join("run")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    fn write(&self, weight: u32) -> Result<()> {
        let mut text = format!(
            "[datapath]\ninterfaces = [\"eth0\"]\nxdp_mode = \"generic\"\npin_dir = {:?}\nrun_dir = {:?}\n\
             [limits]\nconnections = {CONNECTIONS}\n",
            self.pins(),
            self.run_dir()
        );
        for service in 0..SERVICES {
            writeln!(
                text,
                "[[service]]\nname = \"s{service}\"\nvip = \"{}\"\nprotocol = \"tcp\"\nport = 443\nforward = \"nat\"",
                vip(service).ip()
            )?;
            for backend in (service..BACKENDS).step_by(SERVICES as usize) {
                writeln!(
                    text,
                    "[[service.backend]]\nname = \"b{backend}\"\naddress = \"{}\"\nport = 8443\nweight = {weight}",
                    address(backend)
                )?;
            }
        }
        fs::write(self.config(), text)?;
        Ok(())
    }

    /// Opens, answers and establishes each of the connections by frames through the program that is attached.
    fn open_connections(&self) -> Result<()> {
        self.let_in_as_many_as_come()?;
        let shown = Command::new("ip")
            .args(["-n", &self.name, "-d", "-j", "link", "show", "eth0"])
            .output()?;
        let shown: Value = serde_json::from_slice(&shown.stdout)?;
        let link = &shown[0];
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        let ifindex = number(&link["ifindex"]).ok_or("eth0 has no index")?;
        let id = number(&link["xdp"]["prog"]["id"]).ok_or("no program is attached to eth0")?;
        let ours = link["address"].as_str().ok_or("eth0 has no address")?;
        let ours = mac_of(ours)?;
        let namespace = File::open(Path::new("/run/netns").join(&self.name))?;
        thread::scope(|scope| {
            let opening = scope.spawn(|| -> std::result::Result<(), String> {
                // Frames come in by an interface of the thread's own namespace.
                setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| error.to_string())?;
                let program = Program::of(id, ifindex)?;
                (0..CONNECTIONS).try_for_each(|number| {
                    go_on()?;
                    open(&program, ours, number)
                })
            });
            opening.join().map_err(|_| "the opening thread panicked")?
        })?;
        Ok(())
    }

    /// A million connections in seconds are a flood to the datapath, which would make no entries for most.
    fn let_in_as_many_as_come(&self) -> Result<()> {
        let map = MapHandle::from_pinned_path(self.pins().join("settings"))?;
        let key = 0_u32.to_ne_bytes();
        let bytes = map.lookup(&key, MapFlags::ANY)?.ok_or("no settings")?;
        let settings: abi::settings = abi::from_bytes(&bytes).ok_or("other settings")?;
        let settings = abi::settings {
            new_flows: u32::MAX,
            ..settings
        };
        Ok(map.update(&key, abi::bytes_of(&settings), MapFlags::ANY)?)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "delete", &self.name]);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn address(backend: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 1, 0)) + backend)
}

fn mac(backend: u32) -> [u8; 6] {
    let [_, _, high, low] = backend.to_be_bytes();
    [2, 0, 0, 1, high, low]
}

fn vip(service: u32) -> SocketAddrV4 {
    let address = u32::from(Ipv4Addr::new(203, 0, 0, 1)) + service;
    SocketAddrV4::new(address.into(), 443)
}

fn client(number: u32) -> SocketAddrV4 {
    let address = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number / 16;
    SocketAddrV4::new(address.into(), 1024 + (number % 16) as u16)
}

fn text_of(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn mac_of(text: &str) -> Result<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<std::result::Result<_, _>>()?;
    bytes
        .try_into()
        .map_err(|_| format!("no MAC address: {text}").into())
}

/// The attached program.
struct Program {
    descriptor: OwnedFd,
    ifindex: u32,
}

impl Program {
    fn of(id: u32, ifindex: u32) -> std::result::Result<Self, String> {
        // SAFETY: a call with a number.
        let descriptor = unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) };
        if descriptor < 0 {
            return Err(format!("program {id}: error {descriptor}"));
        }
        // SAFETY: it was made just now, and is nobody else's.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Program {
            descriptor,
            ifindex,
        })
    }

    /// The frame as it is sent on.
    fn forward(&self, frame: &[u8]) -> std::result::Result<Vec<u8>, String> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame.len() as u32, 0, self.ifindex, 0, 0];
        let mut out = vec![0; frame.len() + 64];
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
            data_in: frame.as_ptr().cast(),
            data_size_in: frame.len() as u32,
            data_out: out.as_mut_ptr().cast(),
            data_size_out: out.len() as u32,
            ctx_in: context.as_ptr().cast(),
            ctx_size_in: size_of_val(&context) as u32,
            repeat: 1,
            ..Default::default()
        };
        // SAFETY: the descriptor is a program's, and `options` points to what outlives the call.
        let result = unsafe {
            libbpf_sys::bpf_prog_test_run_opts(self.descriptor.as_raw_fd(), &mut options)
        };
        if result != 0 || !SENT.contains(&options.retval) {
            let verdict = options.retval;
            return Err(format!(
                "a frame was not sent on: error {result}, verdict {verdict}"
            ));
        }
        out.truncate(options.data_size_out as usize);
        Ok(out)
    }
}

/// SYN, SYN and ACK, ACK.
fn open(program: &Program, ours: [u8; 6], number: u32) -> std::result::Result<(), String> {
    let (client, vip) = (client(number), vip(number % SERVICES));
    let frame = |from: SocketAddrV4, to: SocketAddrV4, mac, syn: bool, ack: bool| {
        let packet = PacketBuilder::ethernet2(mac, ours)
            .ipv4(from.ip().octets(), to.ip().octets(), 64)
            .tcp(from.port(), to.port(), 1, 65_535);
        let packet = if syn { packet.syn() } else { packet };
        let packet = if ack { packet.ack(1) } else { packet };
        let mut bytes = Vec::with_capacity(64);
        packet
            .write(&mut bytes, &[])
            .map_err(|error| error.to_string())?;
        Ok::<_, String>(bytes)
    };
    let sent = program.forward(&frame(client, vip, CLIENT_MAC, true, false)?)?;
    let (Some(&[a, b, c, d]), Some(&[high, low])) = (
        sent.get(30..34).and_then(<[u8]>::first_chunk),
        sent.get(36..38).and_then(<[u8]>::first_chunk),
    ) else {
        return Err("a frame that was sent on is too short".into());
    };
    let backend = SocketAddrV4::new([a, b, c, d].into(), u16::from_be_bytes([high, low]));
    let index = u32::from(*backend.ip()).wrapping_sub(u32::from(address(0)));
    program.forward(&frame(backend, client, mac(index), true, true)?)?;
    program.forward(&frame(client, vip, CLIENT_MAC, false, true)?)?;
    Ok(())
}

/// xdplb, until this is dropped.
struct Daemon {
    child: Child,
    program: PathBuf,
}

impl Daemon {
    fn start(lab: &Lab, program: &Path) -> Result<Self> {
        let log = File::create(lab.log())?;
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", lab.name))
            .arg("--")
            .arg(program)
            .arg("--config")
            .arg(lab.config())
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut daemon = Daemon {
            child,
            program: program.into(),
        };
        let late = Instant::now() + PATIENCE;
        while !fs::read_to_string(lab.log())?.contains("balancing") {
            if daemon.child.try_wait()?.is_some() || Instant::now() > late {
                let said = fs::read_to_string(lab.log())?;
                return Err(format!("xdplb does not start:\n{said}").into());
            }
            pause(Duration::from_millis(50))?;
        }
        Ok(daemon)
    }

    fn wait_for_backends(&self, lab: &Lab) -> Result<()> {
        let late = Instant::now() + PATIENCE;
        // Not parsed: this process is to stay small, see `Run::of`.
        const UP: &str = "\"health\": \"up\"";
        loop {
            let pins = lab.pins().display().to_string();
            let listed = self.output(&["list", "--json", "--pin-dir", &pins])?;
            let up = listed
                .windows(UP.len())
                .filter(|part| *part == UP.as_bytes());
            if up.count() == BACKENDS as usize {
                return Ok(());
            }
            if Instant::now() > late {
                return Err("not all backends can be reached".into());
            }
            pause(Duration::from_millis(500))?;
        }
    }

    fn output(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let output = Command::new(&self.program).args(arguments).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("xdplb {}: {said}", arguments.join(" ")).into());
        }
        Ok(output.stdout)
    }

    /// Prints what it takes while nothing happens.
    fn at_rest(&self, name: &str) -> Result<()> {
        let process = Path::new("/proc").join(self.child.id().to_string());
        // What comes just before is not at rest.
        pause(Duration::from_secs(3))?;
        // The largest is counted from here on.
        fs::write(process.join("clear_refs"), "5")?;
        let before = busy(&process)?;
        let began = Instant::now();
        pause(REST)?;
        let share = (busy(&process)? - before).as_secs_f64() / began.elapsed().as_secs_f64();
        let status = fields(&process.join("status"))?;
        let shared = fields(&process.join("smaps_rollup"))?;
        let of = |fields: &BTreeMap<String, u64>, name: &str| -> Result<String> {
            let kilobytes = fields.get(name).ok_or_else(|| format!("no {name}"))?;
            Ok(format!("{:.1} MB", *kilobytes as f64 * 1024.0 / 1e6))
        };
        println!("{name:<44} {:>8.2} % of a core", share * 100.0);
        for (name, value) in [
            ("VmRSS", of(&status, "VmRSS")?),
            ("  anonymous", of(&status, "RssAnon")?),
            ("  of files, maps included", of(&status, "RssFile")?),
            ("largest meanwhile", of(&status, "VmHWM")?),
            ("Pss", of(&shared, "Pss")?),
        ] {
            println!("  {name:<42} {value:>11}");
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = run("kill", &["-TERM", &self.child.id().to_string()]);
        let _ = self.child.wait();
    }
}

/// How long all its threads have run.
fn busy(process: &Path) -> Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(process.join("task"))? {
        let schedstat = fs::read_to_string(task?.path().join("schedstat"))?;
        let time = schedstat.split_whitespace().next().ok_or("no schedstat")?;
        sum += time.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

/// The numbers of a file of lines such as `VmRSS: 12 kB`.
fn fields(path: &Path) -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string(path)?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let numbers = lines.filter_map(|(name, value)| {
        let number = value.split_whitespace().next()?.parse().ok()?;
        Some((name.to_owned(), number))
    });
    Ok(numbers.collect())
}

/// A command that has ended.
struct Run {
    /// Until the first byte came, and until it had ended.
    first: Duration,
    took: Duration,
    lines: usize,
    largest: u64,
}

impl Run {
    /// Reads what it prints, or `only_first` what it prints at once, and then closes the pipe.
    fn of(program: &Path, lab: &Lab, arguments: &[&str], only_first: bool) -> Result<Run> {
        // A process's largest memory is no less than what its parent had when it was made.
        fs::write("/proc/self/clear_refs", "5")?;
        let began = Instant::now();
        let mut child = Command::new(program)
            .args(arguments)
            .arg("--pin-dir")
            .arg(lab.pins())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut pipe = child.stdout.take().ok_or("no pipe")?;
        let mut buffer = vec![0; 64 << 10];
        let (mut lines, mut first) = (0, None);
        loop {
            let length = pipe.read(&mut buffer)?;
            first.get_or_insert_with(|| began.elapsed());
            lines += buffer[..length]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count();
            if length == 0 || only_first {
                break;
            }
        }
        drop(pipe);
        let mut usage = MaybeUninit::<libc::rusage>::uninit();
        let mut status = 0;
        // SAFETY: the process is a child that nobody has waited for, and the results have places.
        let waited =
            unsafe { libc::wait4(child.id().cast_signed(), &mut status, 0, usage.as_mut_ptr()) };
        let took = began.elapsed();
        if waited != child.id().cast_signed() || status != 0 {
            return Err(format!("xdplb {} failed: {status}", arguments.join(" ")).into());
        }
        // SAFETY: the call has succeeded, and so has written it.
        let usage = unsafe { usage.assume_init() };
        Ok(Run {
            first: first.unwrap_or(took),
            took,
            lines,
            largest: usage.ru_maxrss.unsigned_abs() * 1024,
        })
    }

    fn print(&self, name: &str) {
        println!(
            "{name:<44} {:>8.2} s, {:>5.1} MB, first output after {:>6.3} s, {} lines",
            self.took.as_secs_f64(),
            self.largest as f64 / 1e6,
            self.first.as_secs_f64(),
            self.lines
        );
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}; it comes with iproute2 or util-linux"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{program} {}: {said}This needs root and network namespaces",
            arguments.join(" ")
        )
        .into());
    }
    Ok(())
}
