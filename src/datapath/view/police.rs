//! The `[[dos]]` policies in force and the sources that they have blocked; and unblocking one, which is the
//! only change that a command may make to the maps.

use std::collections::BTreeMap;
use std::time::Duration;

use super::View;
use crate::config::{self, Family, PolicyAction, PolicyProtocol, Prefix};
use crate::datapath::abi::{self, address_of, ipv4_of, name_from, protocol_class};
use crate::datapath::array::Array;
use crate::datapath::clock::Clock;
use crate::datapath::{percpu, Error};
use crate::prefix::source_of;

/// Slots of each class.
const SLOTS: u32 = abi::xdplb_limit::POLICY_LIMIT.0;

/// A policy, with its counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// As in the file.
    pub policy: config::Policy,
    /// Packets that it has dropped, those of sources that it held blocked included.
    pub dropped: u64,
    /// How many times it has blocked a source.
    pub blocked: u64,
}

/// A source whose packets of one protocol are all dropped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocked {
    /// An IPv4 address, or an IPv6 /64.
    pub source: Prefix,
    /// Of which protocol.
    pub protocol: PolicyProtocol,
    /// The name of the policy that blocks it.
    pub policy: String,
    /// For how long from now on.
    pub expires: Duration,
}

impl View {
    /// The policies, by protocol and slot.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn policies(&self) -> Result<BTreeMap<(PolicyProtocol, u8), Policy>, Error> {
        let Some(clock) = self.clock()? else {
            return Ok(BTreeMap::new());
        };
        let hits = self.map("dos_hits")?;
        let array: Array<abi::dos_policy> = Array::map_read_only(&self.map("dos_policies")?)?;
        let mut policies = BTreeMap::new();
        for index in 0..array.length() {
            let live = array.get(index).filter(|live| live.used != 0);
            let Some((live, protocol)) =
                live.and_then(|live| Some((live, protocol_of(live.class)?)))
            else {
                continue;
            };
            let mut policy = Policy {
                policy: policy_of(&live, protocol, clock),
                dropped: 0,
                blocked: 0,
            };
            for cpu in percpu::read::<abi::policy_hits>(&hits, index)? {
                policy.dropped += cpu.dropped;
                policy.blocked += cpu.blocked;
            }
            policies.insert((protocol, (index % SLOTS) as u8), policy);
        }
        Ok(policies)
    }

    /// The sources that are blocked now, in order.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn blocked(&self) -> Result<Vec<Blocked>, Error> {
        let Some(clock) = self.clock()? else {
            return Ok(Vec::new());
        };
        let policies = self.policies()?;
        let sets: Array<abi::dos_set> = Array::map_read_only(&self.map("dos_sources")?)?;
        let now = clock.jiffies_now();
        let ways = (0..sets.length())
            .filter_map(|index| sets.get(index))
            .flat_map(|set| set.ways);
        let mut blocked: Vec<Blocked> = ways
            .filter(|way| way.blocked_until > now)
            .filter_map(|way| {
                let (source, protocol) = (prefix_of(&way)?, protocol_of(way.class)?);
                let policy = policies.get(&(protocol, way.policy));
                Some(Blocked {
                    source,
                    protocol,
                    policy: policy.map_or_else(String::new, |known| known.policy.name.clone()),
                    expires: clock.duration_of(way.blocked_until - now),
                })
            })
            .collect();
        blocked.sort();
        Ok(blocked)
    }

    /// Unblocks a source, as [`source_of`] has it: its packets are counted again from the next one on.
    /// Gives the protocols for which it was blocked.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn unblock(&self, source: Prefix) -> Result<Vec<PolicyProtocol>, Error> {
        let Some(clock) = self.clock()? else {
            return Ok(Vec::new());
        };
        let mut sets: Array<abi::dos_set> = Array::map(&self.map("dos_sources")?)?;
        let now = clock.jiffies_now();
        let mut protocols = Vec::new();
        for index in 0..sets.length() {
            let Some(before) = sets.get(index) else {
                continue;
            };
            let mut after = before;
            for way in &mut after.ways {
                if way.blocked_until > now && prefix_of(way) == Some(source) {
                    way.blocked_until = 0;
                    protocols.extend(protocol_of(way.class));
                }
            }
            sets.replace(index, &before, &after);
        }
        protocols.sort_unstable();
        protocols.dedup();
        Ok(protocols)
    }

    fn clock(&self) -> Result<Option<Clock>, Error> {
        Ok(Clock::from_settings(&self.settings()?))
    }
}

fn protocol_of(class: u8) -> Option<PolicyProtocol> {
    match protocol_class(class.into()) {
        protocol_class::CLASS_TCP => Some(PolicyProtocol::Tcp),
        protocol_class::CLASS_UDP => Some(PolicyProtocol::Udp),
        protocol_class::CLASS_ICMP => Some(PolicyProtocol::Icmp),
        _ => None,
    }
}

fn policy_of(live: &abi::dos_policy, protocol: PolicyProtocol, clock: Clock) -> config::Policy {
    config::Policy {
        name: name_from(&live.name),
        protocol,
        tcp_flags: (live.flags_mask, live.flags),
        limit: live.limit,
        burst: live.burst,
        action: match live.block_for {
            0 => PolicyAction::Limit,
            ticks => PolicyAction::Block(clock.duration_of(ticks)),
        },
    }
}

/// `None`: the place is free.
fn prefix_of(way: &abi::dos_source) -> Option<Prefix> {
    if way.family == Family::Ipv4.number() {
        Some(source_of(ipv4_of(way.source[0])))
    } else if way.family == Family::Ipv6.number() {
        let [high, low] = way.source;
        Some(source_of(address_of([high, low, 0, 0])))
    } else {
        None
    }
}
