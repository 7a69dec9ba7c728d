//! The validated configuration: what `lb.toml` means once every rule has been checked.
//!
//! Owns the types that the rest of the program reads and the way from text to them: `document`
//! gives TOML with positions, `value` reads one value, `raw` reads the tables, and `validate` holds
//! the rules between values and turns it all into [`Config`], with `protection` for the tables
//! `[firewall]` and `[[dos]]`, and `checks` for rules that both need. `report` collects faults on the
//! way. `reader` reads a file again at the cost of what has changed. [`blocklist`] reads the files that `firewall.blocklists` names. Nothing here touches the
//! network, the kernel or libbpf.

pub mod blocklist;
mod checks;
mod document;
pub mod duration;
mod error;
mod keyword;
mod memory;
mod place;
mod protection;
mod raw;
mod reader;
mod report;
mod serialize;
mod validate;
mod value;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use keyword::Keyword;

pub use crate::prefix::Prefix;
pub use error::{Diagnostic, Error};
pub use memory::{ConnectionTables, FirewallTables};
pub use place::Place;
pub use reader::Reader;

/// `datapath.pin_dir` without one in the file.
pub const PIN_DIR: &str = "/sys/fs/bpf/xdplb";
/// `datapath.run_dir` without one in the file.
pub const RUN_DIR: &str = "/run/xdplb";
/// The most interfaces that XDP may be attached to; `SLOT_LIMIT` of the datapath.
pub const INTERFACE_LIMIT: usize = 64;
/// The most addresses in the full-nat source pool; `NAT_POOL_LIMIT` of the datapath.
pub const ADDRESS_LIMIT: usize = 4096;
/// The most bytes in the name of a service, backend, rule or policy; `NAME_LENGTH` of the datapath less
/// the NUL.
pub const NAME_LIMIT: usize = 63;
/// The most files in `firewall.blocklists`.
pub const BLOCKLIST_LIMIT: usize = 64;
/// The most `[[dos]]` policies of one protocol; `POLICY_LIMIT` of the datapath.
pub const POLICY_LIMIT: usize = 8;
/// The flags that `dos.tcp_flags` may name, with their bits in the TCP header's fourteenth byte
/// (RFC 9293, section 3.1).
pub const TCP_FLAGS: [(&str, u8); 8] = [
    ("fin", 0x01),
    ("syn", 0x02),
    ("rst", 0x04),
    ("psh", 0x08),
    ("ack", 0x10),
    ("urg", 0x20),
    ("ece", 0x40),
    ("cwr", 0x80),
];

/// A file that has been read and validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The files of `firewall.blocklists`, in its order, with where the file names them.
    pub blocklists: Vec<NamedFile>,
    /// Settings that are allowed but probably not intended, in file order.
    pub warnings: Vec<Diagnostic>,
}

/// A file that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// As it is named.
    pub path: PathBuf,
    /// Where it is named.
    pub place: Place,
}

/// Reads and validates the file at `path`.
///
/// # Errors
///
/// [`Error::Read`] if it cannot be read, [`Error::Invalid`] with every fault that was found.
pub fn load(path: &Path) -> Result<Loaded, Error> {
    Reader::default().load(path)
}

/// Validates `text`, the contents of `file`; the file itself is not touched, its name only goes
/// into the messages.
///
/// # Errors
///
/// [`Error::Invalid`] with every fault that was found; of faults in the TOML itself, the first.
pub fn parse(text: &str, file: &Path) -> Result<Loaded, Error> {
    let mut report = report::Report::new(text, file);
    let raw = toml::de::DeTable::parse(text)
        .map_err(|error| report.syntax(&error))
        .map(|document| raw::read(document.get_ref(), &mut report));
    let valid = raw.ok().map(|raw| {
        let blocklists = protection::blocklists(&raw, &report);
        validate::check(&raw, &mut report);
        (validate::build(raw), blocklists)
    });
    let (errors, warnings) = report.finish();
    match valid {
        Some((config, blocklists)) if errors.is_empty() => Ok(Loaded {
            config,
            blocklists,
            warnings,
        }),
        _ => Err(Error::Invalid(errors)),
    }
}

/// A whole configuration file, validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[datapath]`
    pub datapath: Datapath,
    /// `[limits]`
    pub limits: Limits,
    /// `[timeouts]`
    pub timeouts: Timeouts,
    /// `[tunnel]`
    pub tunnel: Tunnel,
    /// `[[service]]`, in file order.
    pub services: Vec<Service>,
    /// `[firewall]`. `None`: absent.
    pub firewall: Option<Firewall>,
    /// `[[dos]]`, in file order.
    pub dos: Vec<Policy>,
    /// `[log]`
    pub log: Log,
}

/// `[datapath]`: where XDP attaches, and settings for all services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Datapath {
    /// Names of the interfaces, at least one, no duplicates, in file order.
    pub interfaces: Vec<String>,
    /// Native, generic, or whichever works.
    pub xdp_mode: XdpMode,
    /// A directory on a bpffs; one directory is one instance.
    pub pin_dir: PathBuf,
    /// The directory of the lock and the control socket; one directory is one instance.
    pub run_dir: PathBuf,
    /// Our own addresses: the full-nat source pool, and where tunnels begin. Empty: the interfaces' own.
    pub addresses: Vec<IpAddr>,
    /// Seed of the flow hash and of the Maglev permutations.
    pub hash_seed: u64,
    /// The fate of packets to a VIP at a port that no service has.
    pub unknown_port: Refusal,
    /// Whether a ping for a VIP that has a usable backend is answered; otherwise the host's stack has
    /// every ping.
    pub icmp_echo: bool,
}

/// `datapath.xdp_mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// Native, else generic with a warning.
    Auto,
    /// In the driver, or fail.
    Native,
    /// In the stack, on any interface.
    Generic,
}

/// The fate of a packet for a VIP that cannot be balanced: `datapath.unknown_port`,
/// `service.no_backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// To the host's stack.
    Pass,
    /// Dropped and counted.
    Drop,
    /// Answered with a TCP reset or an ICMP port unreachable.
    Reject,
}

/// What becomes of the established connections of a backend that is not usable, `service.on_down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDown {
    /// They wait for it, until they time out.
    Keep,
    /// Their next packet chooses another one, where there is one.
    Rehash,
}

/// `service.on_down`, for each protocol. By default TCP waits, whose ends would be reset elsewhere; UDP,
/// whose senders may never pause, would never leave a dead backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OnDownByProtocol {
    /// TCP.
    pub tcp: OnDown,
    /// UDP.
    pub udp: OnDown,
}

impl OnDownByProtocol {
    /// What the file says for all, or the defaults.
    pub fn new(given: Option<OnDown>) -> Self {
        OnDownByProtocol {
            tcp: given.unwrap_or(OnDown::Keep),
            udp: given.unwrap_or(OnDown::Rehash),
        }
    }

    /// That of a protocol.
    pub fn of(self, protocol: Protocol) -> OnDown {
        match protocol {
            Protocol::Tcp => self.tcp,
            Protocol::Udp => self.udp,
        }
    }
}

/// Table sizes, fixed when the maps are created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Services; a service with VIPs of both families counts twice.
    pub services: u32,
    /// Backends, summed over the services.
    pub backends: u32,
    /// Connections of each address family.
    pub connections: u32,
    /// Rules of the firewall.
    pub firewall_rules: u32,
    /// Sources that `[[dos]]` policies keep count of.
    pub sources: u32,
}

/// How long an idle connection is remembered in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// TCP: SYN seen, handshake not finished.
    #[serde(serialize_with = "serialize::seconds")]
    pub tcp_opening: Duration,
    /// TCP: established.
    #[serde(serialize_with = "serialize::seconds")]
    pub tcp_established: Duration,
    /// TCP: one side has sent its FIN, the other may still speak.
    #[serde(serialize_with = "serialize::seconds")]
    pub tcp_half_closed: Duration,
    /// TCP: both sides have, or one has reset.
    #[serde(serialize_with = "serialize::seconds")]
    pub tcp_closing: Duration,
    /// UDP.
    #[serde(serialize_with = "serialize::seconds")]
    pub udp: Duration,
    /// Everything else.
    #[serde(serialize_with = "serialize::seconds")]
    pub other: Duration,
}

/// `[tunnel]`: the outer headers of tunnels to backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    /// Outer source addresses, at most one of each family. None of a family: the first of
    /// `datapath.addresses`, else the interface's own.
    pub source: Vec<Prefix>,
    /// UDP destination port of GUE.
    pub gue_port: u16,
}

/// One `[[service]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Unique, 1..=63 bytes.
    pub name: String,
    /// At least one, no duplicates.
    pub vips: Vec<IpAddr>,
    /// At least one, no duplicates.
    pub protocols: Vec<Protocol>,
    /// At least one; sorted, disjoint.
    pub ports: Vec<PortRange>,
    /// How packets reach the backend.
    pub forward: Forward,
    /// The part of the packet that chooses the Maglev slot.
    pub hash: HashBy,
    /// The fate of new connections while no backend can be chosen.
    pub no_backend: Refusal,
    /// What a backend's established connections do while it is not usable.
    pub on_down: OnDownByProtocol,
    /// Source prefixes that may reach the service; empty: all.
    pub allow: Vec<Prefix>,
    /// May be empty; address and port are unique within the service. Serialised apart, by `check`, with
    /// the share of each.
    #[serde(skip)]
    pub backends: Vec<Backend>,
}

/// One `[[service.backend]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Unique within the service, 1..=63 bytes; without one in the file, the address, with the port
    /// if it has one.
    pub name: String,
    /// Of a family that the service has a VIP of, but with a tunnel, where it may be of either.
    pub address: IpAddr,
    /// `None`: the port that the client asked for; always with direct return.
    pub port: Option<u16>,
    /// 0..=1000, relative to the service's others; 0: no new connections. Without one in the file, 1.
    pub weight: u16,
    /// The state that the operator has set.
    pub state: AdminState,
    /// Overrides the route's interface.
    pub interface: Option<String>,
    /// Overrides neighbour resolution.
    pub mac: Option<MacAddress>,
}

/// `service.backend.state`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminState {
    /// In use.
    Up,
    /// No new connections; established ones go on.
    Drain,
    /// Not in use; established connections are chosen anew.
    Down,
}

/// A transport protocol that a service balances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, RFC 9293.
    Tcp,
    /// UDP, RFC 768.
    Udp,
}

/// An address family. Services and tables are kept apart by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// RFC 791.
    Ipv4,
    /// RFC 8200.
    Ipv6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }

    /// Bits of an address.
    pub const fn bits(self) -> u8 {
        match self {
            Family::Ipv4 => 32,
            Family::Ipv6 => 128,
        }
    }

    /// Bytes of the IP header, without options or extensions.
    pub const fn header(self) -> u32 {
        match self {
            Family::Ipv4 => 20,
            Family::Ipv6 => 40,
        }
    }

    /// The version in the IP header: 4 or 6, as the maps hold it.
    pub const fn number(self) -> u8 {
        match self {
            Family::Ipv4 => 4,
            Family::Ipv6 => 6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        })
    }
}

/// Ports `first..=last`; `any` is 0..=65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// Lowest port.
    pub first: u16,
    /// Highest port, inclusive.
    pub last: u16,
}

/// `service.forward`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forward {
    /// Destination rewritten; replies come back through us.
    Nat,
    /// Source and destination rewritten.
    FullNat,
    /// Only the MAC addresses rewritten; the backend answers the client itself.
    L2,
    /// In an IP header of the backend's family (RFC 2003, 2473, 4213); likewise.
    Ipip,
    /// In UDP, direct IP (GUE variant 1, draft-ietf-intarea-gue); likewise.
    Gue,
}

impl Forward {
    /// Whether backends answer clients directly (direct return): they get the client's own packet, and
    /// their replies do not come through the balancer.
    pub const fn is_direct(self) -> bool {
        match self {
            Forward::Nat | Forward::FullNat => false,
            Forward::L2 | Forward::Ipip | Forward::Gue => true,
        }
    }

    /// Whether packets go to the backend inside another header.
    pub const fn is_tunnel(self) -> bool {
        match self {
            Forward::Nat | Forward::FullNat | Forward::L2 => false,
            Forward::Ipip | Forward::Gue => true,
        }
    }

    /// Whether a backend whose address is of one family can serve VIPs of the other, or of its own:
    /// only tunnels carry one family in the other.
    pub fn carries(self, vip: Family, backend: Family) -> bool {
        self.is_tunnel() || vip == backend
    }

    /// Bytes by which a packet grows on its way to a backend whose address is of that family.
    pub const fn overhead(self, outer: Family) -> u32 {
        match self {
            Forward::Nat | Forward::FullNat | Forward::L2 => 0,
            Forward::Ipip => outer.header(),
            Forward::Gue => outer.header() + UDP_HEADER,
        }
    }
}

/// Bytes, RFC 768.
const UDP_HEADER: u32 = 8;

/// `service.hash`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashBy {
    /// Both addresses, both ports and the protocol.
    FiveTuple,
    /// The client's address.
    SourceIp,
    /// The client's address and port.
    SourceIpPort,
}

/// `[firewall]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Firewall {
    /// The fate of packets for a VIP that no rule matches.
    pub default: RuleAction,
    /// Files of prefixes whose packets are denied before any rule is looked at; no duplicates, at most
    /// [`BLOCKLIST_LIMIT`]. As written: [`blocklist::locate`] says where they are. Serialised apart, by
    /// `check`, with the length of each.
    #[serde(skip)]
    pub blocklists: Vec<PathBuf>,
    /// `[[firewall.rule]]`, in file order: the first that matches decides.
    pub rules: Vec<Rule>,
}

/// One `[[firewall.rule]]`. Every condition has to hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Rule {
    /// Unique, 1..=63 bytes. Without one in the file, `None`.
    pub name: Option<String>,
    /// The fate of packets that it matches.
    pub action: RuleAction,
    /// `None`: from anywhere, of either family.
    #[serde(serialize_with = "serialize::source")]
    pub source: Option<Prefix>,
    /// Of which protocol.
    pub protocol: RuleProtocol,
    /// Source port: but for [`PortRange::ANY`] it matches TCP and UDP only.
    pub source_port: PortRange,
    /// Destination port, likewise.
    pub port: PortRange,
}

/// `firewall.rule.action`, `firewall.default`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RuleAction {
    /// On to the next stage.
    Allow,
    /// Dropped and counted.
    Deny,
}

/// `firewall.rule.protocol`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RuleProtocol {
    /// Every one.
    Any,
    /// ICMP and ICMPv6.
    Icmp,
    /// That of this number in the IP header (IANA protocol numbers).
    Number(u8),
}

/// One `[[dos]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Unique, 1..=63 bytes.
    pub name: String,
    /// Which packets are counted.
    pub protocol: PolicyProtocol,
    /// TCP flags that are looked at, and of them those that have to be set, as in the header's
    /// fourteenth byte. Both 0: every packet.
    #[serde(serialize_with = "serialize::flags")]
    pub tcp_flags: (u8, u8),
    /// Packets a second from one source address, at least 1.
    pub limit: u32,
    /// Packets above that at once, at least 1; without one in the file, `limit`.
    pub burst: u32,
    /// The fate of packets above the limit.
    #[serde(flatten)]
    pub action: PolicyAction,
}

/// `dos.protocol`
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
}

/// `dos.action`, `dos.block_for`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyAction {
    /// The excess is dropped.
    Limit,
    /// All of that protocol from the source is dropped for that long.
    Block(Duration),
}

/// `[log]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Log {
    /// The least severe level that is logged.
    #[serde(serialize_with = "serialize::level")]
    pub level: log::LevelFilter,
    /// One line of text or one JSON object a message.
    pub format: LogFormat,
}

/// `log.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text.
    Text,
    /// A JSON object a line.
    Json,
}

/// An Ethernet address, written `52:54:00:23:a4:5c`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddress(pub [u8; 6]);

impl Service {
    /// The address families that the service has VIPs of, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        let has = |family| self.vips.iter().any(|vip| Family::of(*vip) == family);
        Family::ALL.into_iter().filter(move |family| has(*family))
    }

    /// The backends that serve the VIPs of one family.
    pub fn backends_for(&self, family: Family) -> impl Iterator<Item = &Backend> {
        self.backends
            .iter()
            .filter(move |backend| self.forward.carries(family, Family::of(backend.address)))
    }
}

impl Policy {
    /// The TCP flags that have to be set, as `lb.toml` writes them. None: every packet.
    pub fn flag_names(&self) -> impl Iterator<Item = &'static str> {
        flag_names(self.tcp_flags.1)
    }
}

/// The names of the flags in `set`, in the order of [`TCP_FLAGS`].
fn flag_names(set: u8) -> impl Iterator<Item = &'static str> {
    let named = TCP_FLAGS.iter().filter(move |(_, bit)| set & bit != 0);
    named.map(|(name, _)| *name)
}

impl PolicyAction {
    /// As `lb.toml` writes it under `action`.
    pub const fn word(self) -> &'static str {
        match self {
            PolicyAction::Limit => "limit",
            PolicyAction::Block(_) => "block",
        }
    }

    /// How long a source is blocked. `None`: it is not.
    pub const fn block_for(self) -> Option<Duration> {
        match self {
            PolicyAction::Limit => None,
            PolicyAction::Block(time) => Some(time),
        }
    }
}

impl Log {
    /// The word of `level`.
    pub fn level_word(&self) -> &'static str {
        level_word(self.level)
    }
}

fn level_word(level: log::LevelFilter) -> &'static str {
    let mut words = log::LevelFilter::WORDS.iter();
    let word = words.find(|(_, meaning)| *meaning == level);
    word.map_or("off", |(word, _)| word)
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            services: 4096,
            backends: 16_384,
            connections: 1_000_000,
            firewall_rules: 65_536,
            sources: 262_144,
        }
    }
}

impl Timeouts {
    /// All of them.
    pub fn each(&self) -> [Duration; 6] {
        let Timeouts {
            tcp_opening,
            tcp_established,
            tcp_half_closed,
            tcp_closing,
            udp,
            other,
        } = *self;
        [
            tcp_opening,
            tcp_established,
            tcp_half_closed,
            tcp_closing,
            udp,
            other,
        ]
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            tcp_opening: Duration::from_secs(30),
            tcp_established: Duration::from_secs(3600),
            tcp_half_closed: Duration::from_secs(600),
            tcp_closing: Duration::from_secs(30),
            udp: Duration::from_secs(60),
            other: Duration::from_secs(60),
        }
    }
}

impl Default for Tunnel {
    fn default() -> Tunnel {
        Tunnel {
            source: Vec::new(),
            gue_port: 6080,
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log {
            level: log::LevelFilter::Info,
            format: LogFormat::Text,
        }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PortRange {
    /// Every port, 0 included.
    pub const ANY: PortRange = PortRange {
        first: 0,
        last: u16::MAX,
    };
}

impl Protocol {
    /// The number in the IP header (IANA protocol numbers).
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

/// As `lb.toml` writes it.
impl fmt::Display for RuleProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            RuleProtocol::Any => f.pad("any"),
            RuleProtocol::TCP => f.pad("tcp"),
            RuleProtocol::UDP => f.pad("udp"),
            RuleProtocol::Icmp => f.pad("icmp"),
            RuleProtocol::Number(number) => f.pad(&number.to_string()),
        }
    }
}

impl RuleProtocol {
    /// TCP.
    pub const TCP: RuleProtocol = RuleProtocol::Number(Protocol::Tcp.number());
    /// UDP.
    pub const UDP: RuleProtocol = RuleProtocol::Number(Protocol::Udp.number());

    /// Whether it stands for a protocol whose packets have ports.
    pub fn has_ports(self) -> bool {
        matches!(
            self,
            RuleProtocol::Any | RuleProtocol::TCP | RuleProtocol::UDP
        )
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            PortRange::ANY => f.write_str("any"),
            PortRange { first, last } if first == last => write!(f, "{first}"),
            PortRange { first, last } => write!(f, "{first}-{last}"),
        }
    }
}
