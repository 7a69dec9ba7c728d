//! How long the control loop stands still while a large file is put in force: 16,384 backends, each resolved
//! through netlink, and a blocklist of 500,000 prefixes.
//!
//! Runs the daemon itself, in a network namespace of its own, and prints for each reload how long it took
//! (`xdplb reload`), the longest stop that the loop measured in it, the longest work between two waits (the
//! rest of a stop is the scheduler's, where the machine is busy), and the longest time that another client of
//! the control socket waited for an answer meanwhile. The goal is 10 ms for the stop.
//!
//! Needs root. `cargo bench --bench loop`

use std::error::Error;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SERVICES: u32 = 64;
const BACKENDS: u32 = 16_384;
const PREFIXES: u32 = 500_000;
/// Between the two figures that the loop logs.
const BETWEEN: &str = " at most, and worked for ";
/// How long the daemon may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let lab = Lab::new()?;
    lab.write(1, 1, 1000, 1)?;
    let daemon = Daemon::start(&lab)?;
    println!(
        "{:<44} {:>9} {:>13} {:>13} {:>13}",
        "reload to", "took", "longest stop", "longest work", "longest wait"
    );
    for (name, backends, prefixes, weight) in [
        ("one backend and 1,000 prefixes", 1, 1000, 2),
        (
            "16,384 backends and 500,000 prefixes",
            BACKENDS,
            PREFIXES,
            1,
        ),
        ("the same", BACKENDS, PREFIXES, 1),
        (
            "other weights and 500,000 other prefixes",
            BACKENDS,
            PREFIXES,
            2,
        ),
        ("one backend and 1,000 prefixes again", 1, 1000, 1),
    ] {
        let services = SERVICES.min(backends);
        lab.write(services, backends, prefixes, weight)?;
        let (took, stops, wait) = daemon.reload(&lab)?;
        let (stop, work) = stops
            .split_once(BETWEEN)
            .ok_or("the log tells of stops in another way")?;
        println!("{name:<44} {took:>9.1?} {stop:>13} {work:>13} {wait:>13.1?}");
    }
    Ok(())
}

/// A namespace with an interface and everybody on its network, and a directory; both go with it.
struct Lab {
    name: String,
    directory: PathBuf,
}

impl Lab {
    fn new() -> Result<Self> {
        let name = format!("xdplb-loop-{}", std::process::id());
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
                "neighbour add {} dev eth0 lladdr 02:00:00:00:{:02x}:{:02x} nud permanent",
                address(backend),
                backend >> 8,
                backend & 255
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

    /// `weight` makes a difference to all backends, and to all prefixes.
    fn write(&self, services: u32, backends: u32, prefixes: u32, weight: u32) -> Result<()> {
        let list = self.directory.join("list.txt");
        let mut text = String::new();
        for number in 0..prefixes {
            let prefix = Ipv4Addr::from((20 + weight) << 24 | number << 3);
            writeln!(text, "{prefix}/29")?;
        }
        fs::write(&list, text)?;
        let mut text = format!(
            "[datapath]\ninterfaces = [\"eth0\"]\nxdp_mode = \"generic\"\npin_dir = \"/sys/fs/bpf/{}\"\n\
             run_dir = \"{}\"\n[limits]\nconnections = 65536\n[firewall]\nblocklists = [\"{}\"]\n",
            self.name,
            self.run_dir().display(),
            list.display()
        );
        for service in 0..services {
            writeln!(
                text,
                "[[service]]\nname = \"s{service}\"\nvip = \"203.0.113.{}\"\nprotocol = \"tcp\"\nport = {}\n\
                 forward = \"nat\"",
                1 + service % 200,
                80 + service / 200
            )?;
            for backend in (service..backends).step_by(services as usize) {
                writeln!(
                    text,
                    "[[service.backend]]\nname = \"b{backend}\"\naddress = \"{}\"\nport = 8080\nweight = {weight}",
                    address(backend)
                )?;
            }
        }
        fs::write(self.config(), text)?;
        Ok(())
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

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}; it comes with iproute2"))?;
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

/// xdplb, until this is dropped.
struct Daemon(Child);

impl Daemon {
    fn start(lab: &Lab) -> Result<Self> {
        let log = File::create(lab.log())?;
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", lab.name))
            .arg("--")
            .arg(env!("CARGO_BIN_EXE_xdplb"))
            .arg("--config")
            .arg(lab.config())
            .env("RUST_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut daemon = Daemon(child);
        let late = Instant::now() + PATIENCE;
        while !fs::read_to_string(lab.log())?.contains("balancing") {
            if daemon.0.try_wait()?.is_some() || Instant::now() > late {
                let said = fs::read_to_string(lab.log())?;
                return Err(format!("xdplb does not start:\n{said}").into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(daemon)
    }

    /// How long it took, the longest stop and work as the loop logs them, and the longest wait of another client.
    fn reload(&self, lab: &Lab) -> Result<(Duration, String, Duration)> {
        const STOP: &str = "the control loop stood still for ";
        let told = fs::read_to_string(lab.log())?.len();
        let done = AtomicBool::new(false);
        let socket = lab.run_dir().join("control.sock");
        let (took, wait) = thread::scope(|scope| -> Result<_> {
            let other = scope.spawn(|| longest_wait(&socket, &done));
            let began = Instant::now();
            let reload = Command::new(env!("CARGO_BIN_EXE_xdplb"))
                .arg("reload")
                .arg("--run-dir")
                .arg(lab.run_dir())
                .output();
            let took = began.elapsed();
            done.store(true, Ordering::Relaxed);
            let wait = other.join().map_err(|_| "the other client panicked")?;
            let reload = reload?;
            if !reload.status.success() {
                return Err(String::from_utf8_lossy(&reload.stderr).into_owned().into());
            }
            let wait = wait.map_err(|error| format!("the other client: {error}"))?;
            Ok((took, wait))
        })?;
        // The line comes just behind the answer.
        let late = Instant::now() + Duration::from_secs(10);
        loop {
            let log = fs::read_to_string(lab.log())?;
            let line = log[told..]
                .lines()
                .find(|line| line.contains("during the reload") && line.contains(STOP));
            if let Some((_, stop)) = line.and_then(|line| line.split_once(STOP)) {
                let stop = stop.trim_end_matches(" at most");
                return Ok((took, stop.to_owned(), wait));
            }
            if Instant::now() > late {
                return Err("the log does not tell how long the loop stood still".into());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = run("kill", &["-TERM", &self.0.id().to_string()]);
        let _ = self.0.wait();
    }
}

/// Asks for something that is answered at once, again and again.
fn longest_wait(socket: &Path, done: &AtomicBool) -> std::io::Result<Duration> {
    let mut client = UnixStream::connect(socket)?;
    let mut answers = BufReader::new(client.try_clone()?);
    let mut longest = Duration::ZERO;
    let mut line = String::new();
    while !done.load(Ordering::Relaxed) {
        let began = Instant::now();
        client.write_all(b"{\"request\":\"nothing\"}\n")?;
        line.clear();
        answers.read_line(&mut line)?;
        longest = longest.max(began.elapsed());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(longest)
}
