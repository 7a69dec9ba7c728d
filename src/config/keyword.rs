//! The words that stand for the values of an enum in `lb.toml`: each is written here once, for
//! reading and for printing.

use std::fmt;

use log::LevelFilter;

use super::{
    AdminState, Forward, HashBy, LogFormat, OnDown, PolicyProtocol, Protocol, Refusal, RuleAction,
    XdpMode,
};

/// A value that is written as one of a few words.
pub(super) trait Keyword: Copy + 'static {
    /// Every word with what it means, in the order in which messages list them.
    const WORDS: &'static [(&'static str, Self)];
}

macro_rules! keywords {
    ($($type:ident { $($variant:ident = $word:literal),+ })+) => {$(
        impl Keyword for $type {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, $type::$variant)),+];
        }

        /// As `lb.toml` writes it.
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $($type::$variant => $word),+ })
            }
        }
    )+};
}

keywords! {
    XdpMode { Auto = "auto", Native = "native", Generic = "generic" }
    Refusal { Pass = "pass", Drop = "drop", Reject = "reject" }
    OnDown { Keep = "keep", Rehash = "rehash" }
    AdminState { Up = "up", Drain = "drain", Down = "down" }
    Protocol { Tcp = "tcp", Udp = "udp" }
    Forward { Nat = "nat", FullNat = "full-nat", L2 = "l2", Ipip = "ipip", Gue = "gue" }
    HashBy { FiveTuple = "5-tuple", SourceIp = "source-ip", SourceIpPort = "source-ip-port" }
    RuleAction { Allow = "allow", Deny = "deny" }
    PolicyProtocol { Tcp = "tcp", Udp = "udp", Icmp = "icmp" }
    LogFormat { Text = "text", Json = "json" }
}

impl Keyword for LevelFilter {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("error", LevelFilter::Error),
        ("warn", LevelFilter::Warn),
        ("info", LevelFilter::Info),
        ("debug", LevelFilter::Debug),
        ("trace", LevelFilter::Trace),
    ];
}

/// `dos.action` by itself; `dos.block_for` is a key of its own.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum OnExcess {
    Limit,
    Block,
}

impl Keyword for OnExcess {
    const WORDS: &'static [(&'static str, Self)] =
        &[("limit", OnExcess::Limit), ("block", OnExcess::Block)];
}

/// `service.scheduler`. There is one, so nothing keeps it.
#[derive(Clone, Copy)]
pub(super) struct Maglev;

impl Keyword for Maglev {
    const WORDS: &'static [(&'static str, Self)] = &[("maglev", Maglev)];
}
