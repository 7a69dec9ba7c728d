//! What a change costs on its way to the maps: a backend that becomes unreachable and comes back, and a file
//! that is reloaded with one backend changed.
//!
//! Drives the parts as the daemon does over the loaded datapath, in one thread: `config::Reader`,
//! `state::plan` and `Datapath::follow` for a file, behind which `Datapath::apply` mends what drifted;
//! `state::replan` and `Datapath::follow` for a change of the network. What is not in these figures is what the daemon does around them: hearing of the event, and
//! looking up next hops through netlink. Times are on the clock, and behind them of the CPU, which others that
//! run on the machine make no longer.
//!
//! Goals, with 4,096 services and 16,384 backends: below 5 ms from the event to the maps, and 50 ms from
//! the file to the maps.
//!
//! Needs root. `cargo bench --bench control`

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::time::{clock_gettime, ClockId};
use xdplb::config::{self, Config, MacAddress, Reader};
use xdplb::datapath::{Datapath, Settings};
use xdplb::state::{self, Desired, Hop, World};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How often each change is measured.
const FLAPS: usize = 200;
const RELOADS: usize = 30;

fn main() -> Result<()> {
    for (services, backends) in [(4096, 4), (512, 32), (64, 256), (1, 16_384)] {
        println!("{services} services with {backends} backends each");
        Control::start(services, backends)?.run()?;
    }
    Ok(())
}

/// A file in a directory of its own, which goes with it.
struct File {
    directory: PathBuf,
    path: PathBuf,
}

impl File {
    fn new() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("xdplb-control-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let path = directory.join("lb.toml");
        Ok(File { directory, path })
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // Nothing can be done about it, and the next run writes to another.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// What a daemon has.
struct Control {
    services: u32,
    backends: u32,
    file: File,
    reader: Reader,
    config: Config,
    hops: HashMap<IpAddr, Hop>,
    desired: Desired,
    datapath: Datapath,
}

impl Control {
    fn start(services: u32, backends: u32) -> Result<Self> {
        let file = File::new()?;
        fs::write(&file.path, text(services, backends, None))?;
        let mut reader = Reader::default();
        let config = reader.load(&file.path)?.config;
        let datapath = Datapath::load(&config.limits)?;
        let all = config.services.iter().flat_map(|service| &service.backends);
        let hops = all
            .map(|backend| (backend.address, hop(backend.address)))
            .collect();
        let mut control = Control {
            services,
            backends,
            file,
            reader,
            config,
            hops,
            desired: Desired::default(),
            datapath,
        };
        let begin = Instant::now();
        control.desired = control.plan()?;
        let planned = begin.elapsed();
        control
            .datapath
            .apply(&control.desired, &settings(&control.config))?;
        println!(
            "  first: plan {:.1} ms, apply {:.1} ms",
            ms(planned),
            ms(begin.elapsed() - planned)
        );
        Ok(control)
    }

    fn run(&mut self) -> Result<()> {
        self.flaps()?;
        self.reloads(false)?;
        self.reloads(true)
    }

    fn plan(&self) -> Result<Desired> {
        self.with_world(|world| state::plan(&self.desired, &self.config, world))
    }

    fn with_world(
        &self,
        plan: impl FnOnce(&World<'_>) -> std::result::Result<Desired, state::PlanError>,
    ) -> Result<Desired> {
        let hop = |backend: &config::Backend| self.hops.get(&backend.address).copied();
        Ok(plan(&World {
            hop: &hop,
            own_addresses: &[],
            blocklists: &BTreeMap::new(),
        })?)
    }

    /// Backends become unreachable and come back, one at a time.
    fn flaps(&mut self) -> Result<()> {
        let [mut planning, mut writing, mut whole] = [(); 3].map(|()| Times::default());
        for round in 0..FLAPS as u32 {
            let count = self.services * self.backends;
            let address = address(round / 2 * 7919 % count);
            if round % 2 == 0 {
                self.hops.remove(&address);
            } else {
                self.hops.insert(address, hop(address));
            }
            let changed = BTreeSet::from([address]);
            let begin = Moment::now()?;
            let next = self
                .with_world(|world| state::replan(&self.desired, &self.config, world, &changed))?;
            let planned = Moment::now()?;
            self.datapath.follow(&next, &settings(&self.config))?;
            self.desired = next;
            let done = Moment::now()?;
            planning.add(begin, planned);
            writing.add(planned, done);
            whole.add(begin, done);
        }
        planning.print("a backend's next hop: replan");
        writing.print("                      follow");
        whole.print("                      event to maps");
        Ok(())
    }

    /// The file is written with another weight of one backend, or with none changed, and reloaded.
    fn reloads(&mut self, change: bool) -> Result<()> {
        let mut steps = [(); 5].map(|()| Times::default());
        for round in 0..RELOADS as u32 {
            let changed = change.then_some((
                round * 7919 % (self.services * self.backends),
                2 + round % 2,
            ));
            fs::write(&self.file.path, text(self.services, self.backends, changed))?;
            let begin = Moment::now()?;
            self.config = self.reader.load(&self.file.path)?.config;
            let loaded = Moment::now()?;
            let next = self.plan()?;
            let planned = Moment::now()?;
            self.datapath.follow(&next, &settings(&self.config))?;
            let done = Moment::now()?;
            self.datapath.apply(&next, &settings(&self.config))?;
            self.desired = next;
            let mended = Moment::now()?;
            let spans = [
                (begin, loaded),
                (loaded, planned),
                (planned, done),
                (begin, done),
                (done, mended),
            ];
            for (times, (from, to)) in steps.iter_mut().zip(spans) {
                times.add(from, to);
            }
        }
        let what = if change {
            "one weight changed"
        } else {
            "nothing changed"
        };
        let names = ["load", "plan", "follow", "file to maps", "mend"];
        for (times, name) in steps.iter_mut().zip(names) {
            times.print(&format!("a reload, {what}: {name}"));
        }
        Ok(())
    }
}

/// So many services with so many backends each; `changed`: the number of a backend and its weight.
fn text(services: u32, backends: u32, changed: Option<(u32, u32)>) -> String {
    let mut text = format!(
        "[datapath]\ninterfaces = [\"eth0\"]\n[limits]\nservices = {}\nbackends = {}\nconnections = 1024\n",
        services.max(16),
        services * backends,
    );
    for service in 0..services {
        let vip = Ipv4Addr::from(0xcb00_0000 + service);
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "[[service]]\nname = \"service-{service}\"\nvip = \"{vip}\"\nprotocol = \"tcp\"\nport = 443\nforward = \"nat\"\n"
        );
        for number in service * backends..(service + 1) * backends {
            let weight = changed
                .filter(|(which, _)| *which == number)
                .map_or(1, |(_, weight)| weight);
            let _ = write!(
                text,
                "[[service.backend]]\nname = \"node-{number}\"\naddress = \"{}\"\nport = 8443\nweight = {weight}\n",
                address(number)
            );
        }
    }
    text
}

fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a00_0001 + number))
}

fn hop(address: IpAddr) -> Hop {
    let IpAddr::V4(v4) = address else {
        unreachable!("the file has IPv4 alone")
    };
    let [a, b, c, d] = v4.octets();
    Hop {
        mac: MacAddress([2, 0, a, b, c, d]),
        slot: 0,
        on_link: true,
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        timeouts: config.timeouts,
        unknown_port: config.datapath.unknown_port,
        hash_seed: config.datapath.hash_seed,
        nat_ports: (1024, 32767),
        gue_port: config.tunnel.gue_port,
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// An instant on the clock, and what this thread had used of the CPU by then.
#[derive(Clone, Copy)]
struct Moment {
    clock: Instant,
    cpu: Duration,
}

impl Moment {
    fn now() -> Result<Self> {
        let cpu = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        Ok(Moment {
            clock: Instant::now(),
            cpu: cpu.into(),
        })
    }
}

/// How long something took each time, on the clock and of the CPU.
#[derive(Default)]
struct Times {
    clock: Vec<Duration>,
    cpu: Vec<Duration>,
}

impl Times {
    fn add(&mut self, from: Moment, to: Moment) {
        self.clock.push(to.clock - from.clock);
        self.cpu.push(to.cpu - from.cpu);
    }

    fn print(&mut self, what: &str) {
        let mut line = format!("  {what:<42}");
        for (times, name) in [(&mut self.clock, "ms"), (&mut self.cpu, "CPU ms")] {
            times.sort_unstable();
            let last = times.len().saturating_sub(1);
            let at = |part: usize| ms(times.get(last * part / 100).copied().unwrap_or_default());
            // Writing to a string cannot fail.
            let _ = write!(
                line,
                " {:>8.2} {name}, p95 {:>7.2}, most {:>7.2};",
                at(50),
                at(95),
                at(100)
            );
        }
        println!("{}", line.trim_end_matches(';'));
    }
}
