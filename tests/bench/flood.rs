//! Floods an address with live frames from random sources, as fast as one CPU can: SYNs, datagrams, or
//! fragments of both. tests/e2e/flood.sh starts it in the client's namespace while others talk to the
//! same address, and with `--swallow` at the backend, where all but an eighth of the frames end then.
//!
//! Owns the generator and that end. Prints a line of JSON: how many frames, in how many seconds. On
//! which CPU, and how nicely, is for the caller to say.

mod live_frames;

use std::error::Error;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::thread;
use std::time::Instant;

use etherparse::{IpDscp, IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder, TcpHeader, UdpHeader};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};
use xdplb_bench_programs::flood::{FloodSkel, FloodSkelBuilder};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Frames in one system call; between two, a signal ends the process.
const RUN: u64 = 1 << 16;

// As in flood.bpf.c: frames end with a few bytes of padding.
const FRAME4: usize = 64;
const FRAME6: usize = 80;
/// Type of service or traffic class of what is swallowed.
const MARK: u8 = 4;

/// What IPv6 sources begin with; the rest is the generator's.
const PREFIX6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0);

/// Of a fragment: a header, and what makes it a multiple of 8.
const FRAGMENT: usize = 24;

const USAGE: &str = "flood: needs --device=NAME and either --swallow, or --kind=syn|udp|fragments \
                     --to=ADDRESS:PORT --mac=MAC --frames=N; tests/e2e/flood.sh says them";

fn main() -> Result<()> {
    // `cargo bench` runs this along with the others.
    let Some(device) = argument("--device=") else {
        println!("{USAGE}");
        return Ok(());
    };
    let mut storage = MaybeUninit::uninit();
    let skeleton = FloodSkelBuilder::default().open(&mut storage)?.load()?;
    if std::env::args().any(|argument| argument == "--swallow") {
        swallow(&skeleton, &device)
    } else {
        flood(&skeleton, &Flood::from_arguments(device)?)
    }
}

fn argument(name: &str) -> Option<String> {
    std::env::args().find_map(|argument| Some(argument.strip_prefix(name)?.to_owned()))
}

/// Until a signal ends the process, and the program's link with it.
fn swallow(skeleton: &FloodSkel<'_>, device: &str) -> Result<()> {
    let index = nix::net::if_::if_nametoindex(device)?;
    let _link = skeleton.progs.swallow.attach_xdp(index.try_into()?)?;
    println!("swallowing");
    loop {
        thread::park();
    }
}

fn flood(skeleton: &FloodSkel<'_>, flood: &Flood) -> Result<()> {
    let (maps, programs) = (&skeleton.maps, &skeleton.progs);
    let index = nix::net::if_::if_nametoindex(flood.device.as_str())?;
    let zero = 0_u32.to_ne_bytes();
    maps.port
        .update(&zero, &index.to_ne_bytes(), MapFlags::ANY)?;
    for (position, model) in (0_u32..).zip(flood.models()?) {
        maps.models
            .update(&position.to_ne_bytes(), &model, MapFlags::ANY)?;
    }
    let (program, size) = match (flood.kind, flood.to) {
        (Kind::Fragments, SocketAddr::V4(_)) => (&programs.fragments4, FRAME4),
        (Kind::Fragments, SocketAddr::V6(_)) => return Err("fragments are IPv4 only".into()),
        (_, SocketAddr::V4(_)) => (&programs.flood4, FRAME4),
        (_, SocketAddr::V6(_)) => (&programs.flood6, FRAME6),
    };

    let start = Instant::now();
    let mut left = flood.frames;
    while left > 0 {
        let run = left.min(RUN);
        live_frames::send(program.as_fd(), size, run.try_into()?)?;
        left -= run;
    }
    let seconds = start.elapsed().as_secs_f64();
    let state = maps
        .state
        .lookup(&zero, MapFlags::ANY)?
        .ok_or("the generator's state has gone")?;
    let frames = u64::from_ne_bytes(state[..8].try_into()?);
    println!("{{\"frames\": {frames}, \"seconds\": {seconds:.3}}}");
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Syn,
    Udp,
    Fragments,
}

struct Flood {
    kind: Kind,
    to: SocketAddr,
    device: String,
    /// The next hop's.
    mac: [u8; 6],
    frames: u64,
}

impl Flood {
    fn from_arguments(device: String) -> Result<Flood> {
        let needed = |name: &str| argument(name).ok_or_else(|| format!("no {name}; {USAGE}"));
        let mac = needed("--mac=")?;
        Ok(Flood {
            kind: match needed("--kind=")?.as_str() {
                "syn" => Kind::Syn,
                "udp" => Kind::Udp,
                "fragments" => Kind::Fragments,
                other => return Err(format!("no kind \"{other}\"; {USAGE}").into()),
            },
            to: needed("--to=")?.parse()?,
            device,
            mac: mac_address(&mac).ok_or_else(|| format!("\"{mac}\" is no MAC address"))?,
            frames: needed("--frames=")?.parse()?,
        })
    }

    /// Frames that are right as long as 0 stands where the generator writes.
    fn models(&self) -> Result<Vec<[u8; FRAME6]>> {
        let own = nix::ifaddrs::getifaddrs()?
            .filter(|address| address.interface_name == self.device)
            .find_map(|address| address.address?.as_link_addr()?.addr())
            .ok_or_else(|| format!("{} has no MAC address", self.device))?;
        let ip = match self.to.ip() {
            IpAddr::V4(to) => {
                let mut header = Ipv4Header {
                    dscp: IpDscp::try_new(MARK >> 2)?,
                    time_to_live: 64,
                    destination: to.octets(),
                    ..Default::default()
                };
                header.dont_fragment = self.kind != Kind::Fragments;
                IpHeaders::Ipv4(header, Default::default())
            }
            IpAddr::V6(to) => IpHeaders::Ipv6(
                Ipv6Header {
                    traffic_class: MARK,
                    hop_limit: 64,
                    source: PREFIX6.octets(),
                    destination: to.octets(),
                    ..Default::default()
                },
                Default::default(),
            ),
        };
        let builder = || PacketBuilder::ethernet2(own, self.mac).ip(ip.clone());
        let (mut tcp, mut udp) = ([0; FRAME6], [0; FRAME6]);
        let payload = [0; FRAGMENT - UdpHeader::LEN];
        let (of_tcp, of_udp) = match self.kind {
            Kind::Fragments => (FRAGMENT - TcpHeader::MIN_LEN, payload.len()),
            Kind::Syn | Kind::Udp => (0, 0),
        };
        let port = self.to.port();
        builder()
            .tcp(0, port, 0, u16::MAX)
            .syn()
            .write(&mut tcp.as_mut_slice(), &payload[..of_tcp])?;
        builder()
            .udp(0, port)
            .write(&mut udp.as_mut_slice(), &payload[..of_udp])?;
        Ok(match self.kind {
            Kind::Syn => vec![tcp],
            Kind::Udp => vec![udp],
            Kind::Fragments => vec![tcp, udp],
        })
    }
}

fn mac_address(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect::<Option<_>>()?;
    bytes.try_into().ok()
}
