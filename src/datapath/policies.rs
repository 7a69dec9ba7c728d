//! Writing the [[dos]] policies: `dos_policies`, their bits in `settings`, and what `dos_sources` still
//! remembers of the policy that had a slot before.

use std::collections::BTreeMap;

use libbpf_rs::MapHandle;

use super::abi::{self, bytes_of, name_to};
use super::array::Array;
use super::clock::Clock;
use super::grace::Grace;
use super::{percpu, Error};
use crate::config::{Policy, PolicyAction, PolicyProtocol};

/// Slots of each class.
const SLOTS: u32 = abi::xdplb_limit::POLICY_LIMIT.0;
const CLASSES: usize = abi::protocol_class::NR_CLASSES.0 as usize;

/// The policies' maps.
pub(super) struct Policies {
    policies: Array<abi::dos_policy>,
    sources: Array<abi::dos_set>,
    hits: MapHandle,
}

impl Policies {
    pub(super) fn new(map: impl Fn(&str) -> Result<MapHandle, Error>) -> Result<Self, Error> {
        Ok(Policies {
            policies: Array::map(&map("dos_policies")?)?,
            sources: Array::map(&map("dos_sources")?)?,
            hits: map("dos_hits")?,
        })
    }

    /// Elements of `dos_sources`.
    pub(super) fn sets(&self) -> u32 {
        self.sources.length()
    }

    /// Puts the policies in force. One that has changed is out of force for a moment, so that no packet is
    /// judged by half of it, and the sources blocked by it are released.
    pub(super) fn write(
        &mut self,
        desired: &BTreeMap<(PolicyProtocol, u8), Policy>,
        clock: Clock,
        settings: &mut Array<abi::settings>,
        grace: &Grace,
    ) -> Result<(), Error> {
        let mut wanted = BTreeMap::new();
        let mut bits = [0_u32; CLASSES];
        for (&(protocol, slot), policy) in desired {
            let class = class_of(protocol);
            let slot = u32::from(slot) % SLOTS;
            wanted.insert(SLOTS * class.0 + slot, policy_value(policy, class, clock));
            bits[class.0 as usize] |= 1 << slot;
        }
        let changed: Vec<(u32, abi::dos_policy, abi::dos_policy)> = (0..self.policies.length())
            .filter_map(|index| {
                let live = self.policies.get(index)?;
                let value = wanted.get(&index).copied().unwrap_or_default();
                (bytes_of(&live) != bytes_of(&value)).then_some((index, live, value))
            })
            .collect();

        let mut masks = [0_u32; CLASSES];
        for (index, ..) in &changed {
            masks[(index / SLOTS) as usize % CLASSES] |= 1 << (index % SLOTS);
        }
        let live = settings.get(0).unwrap_or_default();
        let mut staying = live;
        for (policies, mask) in staying.policies.iter_mut().zip(masks) {
            *policies &= !mask;
        }
        if settings.set(0, &staying) {
            // Packets that have seen the bit.
            grace.wait()?;
        }
        if !changed.is_empty() {
            self.forget(&masks);
            for (index, live, value) in &changed {
                if live.used == 0 || live.name != value.name {
                    percpu::clear::<abi::policy_hits>(&self.hits, *index)?;
                }
                self.policies.set(*index, value);
            }
            // A packet that sees the bit has to see the policy (see `array`).
            grace.wait()?;
        }
        settings.set(
            0,
            &abi::settings {
                policies: bits,
                ..staying
            },
        );
        Ok(())
    }

    /// Frees the sources that policies of these slots, a mask for each class, hold blocked, and lets each
    /// begin with a full bucket.
    fn forget(&mut self, masks: &[u32; CLASSES]) {
        for index in 0..self.sources.length() {
            let Some(before) = self.sources.get(index) else {
                continue;
            };
            let mut set = before;
            for way in &mut set.ways {
                let mask = masks.get(usize::from(way.class)).copied().unwrap_or(0);
                if mask >> (u32::from(way.policy) % SLOTS) & 1 == 1 {
                    way.blocked_until = 0;
                }
                for (slot, due) in way.due.iter_mut().enumerate() {
                    if mask >> slot & 1 == 1 {
                        *due = 0;
                    }
                }
            }
            // The rest of it is the packets'.
            self.sources.replace(index, &before, &set);
        }
    }
}

fn class_of(protocol: PolicyProtocol) -> abi::protocol_class {
    match protocol {
        PolicyProtocol::Tcp => abi::protocol_class::CLASS_TCP,
        PolicyProtocol::Udp => abi::protocol_class::CLASS_UDP,
        PolicyProtocol::Icmp => abi::protocol_class::CLASS_ICMP,
    }
}

fn policy_value(policy: &Policy, class: abi::protocol_class, clock: Clock) -> abi::dos_policy {
    let jiffy = 1 << abi::xdplb_limit::TICK_SHIFT.0;
    let second = u64::from(clock.hz) * jiffy;
    let interval = (second / u64::from(policy.limit.max(1))).max(1);
    let (flags_mask, flags) = policy.tcp_flags;
    abi::dos_policy {
        interval,
        // The packets of a jiffy come at once, as far as the clock can tell: a smaller bucket would let
        // fewer of them through than the limit.
        tolerance: interval
            .saturating_mul(policy.burst.into())
            .max(jiffy + interval),
        block_for: match policy.action {
            PolicyAction::Limit => 0,
            PolicyAction::Block(duration) => clock.ticks_of(duration).max(1),
        },
        limit: policy.limit,
        burst: policy.burst,
        flags_mask,
        flags,
        class: class.0 as u8,
        used: 1,
        pad: 0,
        name: name_to(&policy.name),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const CLOCK: Clock = Clock { hz: 250, zero: 0 };

    fn policy(limit: u32, burst: u32, action: PolicyAction) -> abi::dos_policy {
        let policy = Policy {
            name: "syn".into(),
            protocol: PolicyProtocol::Tcp,
            tcp_flags: (0x12, 0x02),
            limit,
            burst,
            action,
        };
        policy_value(&policy, class_of(policy.protocol), CLOCK)
    }

    #[test]
    fn a_second_at_the_limit_is_a_second_in_jiffies() {
        let value = policy(1000, 50, PolicyAction::Limit);
        assert_eq!(value.interval, (250 << 20) / 1000);
        assert_eq!(value.tolerance, 50 * value.interval);
        assert_eq!(value.block_for, 0);
        assert_eq!(
            (value.flags_mask, value.flags, value.class),
            (0x12, 0x02, 0)
        );
    }

    #[test]
    fn a_small_burst_lets_the_limit_through() {
        let jiffy = 1 << abi::xdplb_limit::TICK_SHIFT.0;
        for limit in [1, 100, 250, 300, 2000, 1_000_000] {
            let value = policy(limit, 1, PolicyAction::Limit);
            // Packets that were permitted in a jiffy and not used are not carried over to the next.
            assert!(value.tolerance >= jiffy + value.interval, "{limit}");
            assert!(value.tolerance < jiffy + 2 * value.interval, "{limit}");
        }
    }

    #[test]
    fn no_limit_is_too_high_and_no_block_too_long() {
        let value = policy(
            u32::MAX,
            u32::MAX,
            PolicyAction::Block(Duration::from_secs(1)),
        );
        assert_eq!(value.interval, 1);
        assert_eq!(value.tolerance, u64::from(u32::MAX));
        assert_eq!(value.block_for, 250);
        let slow = policy(
            1,
            u32::MAX,
            PolicyAction::Block(Duration::from_secs(86_400 * 365)),
        );
        assert_eq!(slow.tolerance, u64::from(u32::MAX) * (250 << 20));
        assert_eq!(slow.block_for, 86_400 * 365 * 250);
    }
}
