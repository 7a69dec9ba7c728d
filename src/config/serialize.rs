//! How the configuration's types are serialised, for commands that print them as JSON: by the names of
//! the keys, durations in seconds, and all that `lb.toml` writes as text as that text.

use std::time::Duration;

use log::LevelFilter;
use serde::ser::{SerializeSeq, SerializeStruct};
use serde::{Serialize, Serializer};

use super::{
    flag_names, AdminState, Forward, HashBy, LogFormat, MacAddress, OnDown, PolicyAction,
    PolicyProtocol, PortRange, Prefix, Protocol, Refusal, RuleAction, RuleProtocol, XdpMode,
};

macro_rules! as_text {
    ($($type:ident)+) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )+};
}

as_text! {
    AdminState Forward HashBy LogFormat MacAddress OnDown PolicyProtocol PortRange Prefix Protocol Refusal
    RuleAction RuleProtocol XdpMode
}

/// The keys `action` and `block_for`, which is null where nothing is blocked.
impl Serialize for PolicyAction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let block_for = self.block_for().map(|time| time.as_secs_f64());
        let mut keys = serializer.serialize_struct("PolicyAction", 2)?;
        keys.serialize_field("action", self.word())?;
        keys.serialize_field("block_for", &block_for)?;
        keys.end()
    }
}

/// Seconds.
pub(super) fn seconds<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// A prefix, or "any".
pub(super) fn source<S: Serializer>(
    source: &Option<Prefix>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match source {
        Some(prefix) => prefix.serialize(serializer),
        None => serializer.serialize_str("any"),
    }
}

/// The names of the flags that have to be set.
pub(super) fn flags<S: Serializer>((_, set): &(u8, u8), serializer: S) -> Result<S::Ok, S::Error> {
    let mut names = serializer.serialize_seq(None)?;
    for name in flag_names(*set) {
        names.serialize_element(name)?;
    }
    names.end()
}

/// The word of `log.level`.
pub(super) fn level<S: Serializer>(level: &LevelFilter, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(super::level_word(*level))
}
