//! Which slot of `dos_policies` each `[[dos]]` policy has.

use std::collections::{BTreeMap, BTreeSet};

use super::{Desired, PlanError};
use crate::config::{Policy, PolicyProtocol, POLICY_LIMIT};

/// The policies by protocol and slot. One of a name stays in its slot, and with it what its sources have
/// used up and what it has counted. Others get a slot that was free before, or else, since there are few,
/// one that has just become so; [`crate::datapath`] then resets the buckets of its sources.
///
/// # Errors
///
/// When a protocol has more than there are slots.
pub(super) fn slots(
    previous: &Desired,
    policies: &[Policy],
) -> Result<BTreeMap<(PolicyProtocol, u8), Policy>, PlanError> {
    let slot_of = |policy: &Policy| {
        let mut known = previous.policies.iter();
        known
            .find(|((protocol, _), known)| {
                *protocol == policy.protocol && known.name == policy.name
            })
            .map(|((_, slot), _)| *slot)
    };
    let mut next = BTreeMap::new();
    let mut others = Vec::new();
    let kept: BTreeSet<_> = policies
        .iter()
        .filter_map(|policy| Some((policy.protocol, slot_of(policy)?)))
        .collect();
    for policy in policies {
        match slot_of(policy) {
            Some(slot) => {
                next.insert((policy.protocol, slot), policy.clone());
            }
            None => others.push(policy),
        }
    }
    for policy in others {
        let protocol = policy.protocol;
        let slots = || (0..POLICY_LIMIT as u8).map(|slot| (protocol, slot));
        let untaken =
            |place: &(PolicyProtocol, u8)| !kept.contains(place) && !next.contains_key(place);
        let place = slots()
            .filter(|place| !previous.policies.contains_key(place))
            .find(untaken)
            .or_else(|| slots().find(untaken))
            .ok_or_else(|| PlanError::Policies {
                protocol,
                count: policies
                    .iter()
                    .filter(|policy| policy.protocol == protocol)
                    .count(),
            })?;
        next.insert(place, policy.clone());
    }
    Ok(next)
}
