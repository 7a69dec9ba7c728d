//! Capabilities: what the daemon needs, and giving up the rest once it has started.

use caps::{CapSet, Capability, CapsHashSet};
use log::debug;

/// The capabilities that loading, attaching and following neighbours need, each with its purpose.
const NEEDED: [(Capability, &str); 3] = [
    (Capability::CAP_BPF, "to load the datapath"),
    (
        Capability::CAP_NET_ADMIN,
        "to attach XDP and to probe neighbours",
    ),
    (
        Capability::CAP_PERFMON,
        "for the verifier to accept the datapath's pointer arithmetic",
    ),
];

/// Kept if we have it: a file that only its owner may read can be read again on SIGHUP.
const WELCOME: Capability = Capability::CAP_DAC_READ_SEARCH;

/// A capability is missing.
#[derive(Debug, thiserror::Error)]
#[error("{missing} is missing, {purpose}: run xdplb as root, or give it CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (systemd: AmbientCapabilities=)")]
pub struct Missing {
    missing: Capability,
    purpose: &'static str,
}

/// Checks that everything needed is there.
///
/// # Errors
/// Names the first one that is missing.
pub fn check() -> Result<(), Missing> {
    for (capability, purpose) in NEEDED {
        if !caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false) {
            return Err(Missing {
                missing: capability,
                purpose,
            });
        }
    }
    Ok(())
}

/// Drops the capabilities that are not needed while running, for this thread and those it starts afterwards.
pub fn drop_unneeded() {
    let held = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let keep: CapsHashSet = NEEDED
        .iter()
        .map(|&(capability, _)| capability)
        .chain([WELCOME])
        .filter(|capability| held.contains(capability))
        .collect();
    reduce_to(&keep);
}

fn reduce_to(keep: &CapsHashSet) {
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        if let Err(error) = caps::clear(None, set) {
            debug!("capabilities: {set:?} not cleared: {error}");
        }
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        if let Err(error) = caps::set(None, set, keep) {
            debug!("capabilities: {set:?} not reduced: {error}");
        }
    }
}

/// Gives up all but what asking neighbours needs, for this thread. It has started before the daemon
/// gives up what it does not need.
pub(crate) fn keep_for_netlink() {
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    let keep: CapsHashSet = [Capability::CAP_NET_ADMIN]
        .into_iter()
        .filter(|capability| held.contains(capability))
        .collect();
    reduce_to(&keep);
}
