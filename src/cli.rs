//! The command line: its commands and options, and nothing of how they work.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::{PIN_DIR, RUN_DIR};
use crate::number;
use crate::prefix::{source_of, ParseError, Prefix};

/// Where `decap` pins its maps unless the command line says otherwise.
pub const DECAP_PIN_DIR: &str = "/sys/fs/bpf/xdplb-decap";

/// Ends the help and the manual page.
const EXIT_STATUS: &str = "\
Exit status: 0 done, or stopped by a signal; 1 it failed while running; 2 the command line or the file is \
wrong. Errors go to stderr and say what is wrong, where, and what to do.";

/// A layer-4 load balancer in XDP.
///
/// Without a command: loads the datapath, attaches it and balances until SIGINT or SIGTERM. SIGHUP
/// reloads the file.
#[derive(Debug, Parser)]
#[command(
    name = "xdplb",
    version,
    args_conflicts_with_subcommands = true,
    override_usage = "xdplb --config <FILE>\n       xdplb <COMMAND>",
    after_long_help = EXIT_STATUS
)]
pub struct Cli {
    /// The configuration file
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A command to run instead of balancing
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Validate the file and print it with every default filled in; needs no root
    Check {
        /// The configuration file
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Have the daemon read its file again; wait until the file is in force or refused
    Reload {
        /// The run directory of the instance: its datapath.run_dir
        #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
        run_dir: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List services and backends, in the shape of `ipvsadm -Ln`
    List {
        /// Add the connections, packets and bytes of each backend since it was added
        #[arg(long)]
        stats: bool,
        /// Add connections, packets and bits a second, measured over this many seconds
        #[arg(
            long,
            value_name = "SECONDS",
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "1",
            value_parser = seconds
        )]
        rate: Option<Duration>,
        /// The instance and the form of the output
        #[command(flatten)]
        look: Look,
    },
    /// List connections
    Conns {
        /// A selection
        #[command(flatten)]
        filter: ConnectionFilter,
        /// Print only their number
        #[arg(long)]
        count: bool,
        /// The instance and the form of the output
        #[command(flatten)]
        look: Look,
    },
    /// Count the packets that were dropped, answered or passed to the host, by reason
    Drops {
        /// The instance and the form of the output
        #[command(flatten)]
        look: Look,
    },
    /// List firewall rules and blocklists, with the packets that each has decided
    Firewall {
        /// The instance and the form of the output
        #[command(flatten)]
        look: Look,
    },
    /// List the `[[dos]]` policies, and the sources that are blocked now
    Dos {
        /// A command to run instead of printing them
        #[command(subcommand)]
        command: Option<DosCommand>,
        /// The instance and the form of the output
        #[command(flatten)]
        look: Look,
    },
    /// Count packets, bytes and connections by protocol, service and backend
    Stats {
        /// Print rates a second again and again, each measured over this many seconds, until SIGINT
        #[arg(
            long,
            value_name = "SECONDS",
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "1",
            value_parser = seconds
        )]
        watch: Option<Duration>,
        /// The instance and the form of the output
        #[command(flatten)]
        look: Look,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        #[arg(value_enum, value_name = "SHELL")]
        shell: Shell,
    },
    /// Write the manual pages: xdplb(8), and one for each command
    Man {
        /// The directory to write them to; created if it does not exist
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// On a backend: take IPIP and GUE headers off in XDP, until SIGINT or SIGTERM
    Decap(DecapOptions),
}

/// Commands of `dos`.
#[derive(Debug, Subcommand)]
pub enum DosCommand {
    /// Unblock a source, for every protocol
    Unblock {
        /// Its address; for IPv6 any address of its /64
        #[arg(value_name = "ADDR", value_parser = source)]
        source: Prefix,
    },
}

/// Options of every command that only looks, before or after its own commands.
#[derive(Debug, Args)]
pub struct Look {
    /// The pin directory of the instance: its datapath.pin_dir
    #[arg(long, value_name = "DIR", default_value = PIN_DIR, global = true)]
    pub pin_dir: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// A source of `[[dos]]` policies, by an address or as `xdplb dos` prints it.
fn source(text: &str) -> Result<Prefix, String> {
    const SOURCES: &str =
        "sources are IPv4 addresses and IPv6 /64 prefixes: `xdplb dos` lists them";
    let prefix: Prefix = text.parse().map_err(|error| match error {
        ParseError::NoPrefix => SOURCES.to_owned(),
        error => format!("it {error}"),
    })?;
    let address = prefix.address().to_canonical();
    let source = source_of(address);
    if prefix == Prefix::of(prefix.address()) || prefix == source {
        Ok(source)
    } else {
        Err(SOURCES.into())
    }
}

/// An interval; short ones would show nothing but the clock's ticks.
fn seconds(text: &str) -> Result<Duration, String> {
    const SHORTEST: f64 = 0.1;
    const LONGEST: f64 = 86_400.0;
    let seconds: Option<f64> = text.parse().ok();
    seconds
        .filter(|seconds| (SHORTEST..=LONGEST).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("write a number of seconds from {SHORTEST} to {LONGEST}"))
}

/// A UDP port.
fn port(text: &str) -> Result<u16, String> {
    let port = number::parse(text).filter(|port| *port > 0);
    port.ok_or_else(|| "write a number from 1 to 65535".to_owned())
}

/// Options of `decap`.
#[derive(Debug, Clone, Args)]
pub struct DecapOptions {
    /// An interface that tunnel packets arrive at; may be given several times
    #[arg(long, value_name = "INTERFACE", required = true)]
    pub interface: Vec<String>,
    /// Accept tunnel packets only from this address or prefix, that of a balancer; may be given several times
    #[arg(long, value_name = "PREFIX")]
    pub from: Vec<Prefix>,
    /// The UDP port of GUE: the balancer's tunnel.gue_port
    #[arg(long, value_name = "PORT", default_value_t = 6080, value_parser = port)]
    pub gue_port: u16,
    /// How to attach XDP
    #[arg(long, value_enum, value_name = "MODE", default_value_t = ModeName::Auto)]
    pub xdp_mode: ModeName,
    /// The directory on a bpffs where the counters are pinned
    #[arg(long, value_name = "DIR", default_value = DECAP_PIN_DIR)]
    pub pin_dir: PathBuf,
}

/// How XDP is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeName {
    /// Native if the driver can, else generic with a warning
    Auto,
    /// In the driver; fail where it cannot
    Native,
    /// In the host's stack: slower, on any interface
    Generic,
}

/// A selection of connections; without any option, all.
#[derive(Debug, Clone, Default, Args)]
pub struct ConnectionFilter {
    /// Only of this protocol
    #[arg(long, value_enum)]
    pub protocol: Option<ProtocolName>,
    /// Only in this state
    #[arg(long, value_enum)]
    pub state: Option<StateName>,
    /// Only from this client
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<IpAddr>,
    /// Only to this VIP
    #[arg(long, value_name = "ADDRESS")]
    pub vip: Option<IpAddr>,
    /// Only of the service with this name
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Only to the backend with this name or address
    #[arg(long, value_name = "NAME|ADDRESS")]
    pub backend: Option<String>,
}

/// Protocols of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProtocolName {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// States of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StateName {
    /// TCP whose handshake is not finished
    Opening,
    /// TCP, established
    Established,
    /// TCP, one side has closed
    HalfClosed,
    /// TCP, both sides have closed
    Closing,
    /// TCP, reset
    Closed,
    /// UDP
    Udp,
}
