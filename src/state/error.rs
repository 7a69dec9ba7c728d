//! Why no plan can be made of a configuration, for the operator.

use std::path::PathBuf;

use thiserror::Error;

use super::{firewall, maglev, NAT_POOL_LIMIT};
use crate::config;

/// Why a configuration that is valid in itself cannot be put in force.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum PlanError {
    /// More services than the maps have room for.
    #[error(
        "{needed} services, counting one with VIPs of both address families twice, are more than \
         limits.services = {limit}: raise limits.services to {needed} or more"
    )]
    Services {
        /// In the file.
        needed: usize,
        /// `limits.services`
        limit: u32,
    },
    /// More backends than the maps have room for.
    #[error(
        "{needed} backends, counting one that serves VIPs of both address families twice, are more than limits.backends = {limit}: \
         raise limits.backends to {needed} or more"
    )]
    Backends {
        /// In the file.
        needed: usize,
        /// `limits.backends`
        limit: u32,
    },
    /// More backends of one family in one service than a Maglev table can tell apart.
    #[error(
        "service \"{service}\" has {count} backends of one address family, but its table serves at most {limit}: \
         split it into several services",
        limit = maglev::MAX_BACKENDS
    )]
    ServiceBackends {
        /// Its name.
        service: String,
        /// Its backends of that family.
        count: usize,
    },
    /// More source addresses than the pool holds.
    #[error(
        "{count} addresses to send full-nat packets from are more than the {limit} that the pool holds: \
         list the ones to use in datapath.addresses",
        limit = NAT_POOL_LIMIT
    )]
    NatPool {
        /// Listed, or found on the interfaces.
        count: usize,
    },
    /// More rules than the maps have room for.
    #[error(
        "{needed} [[firewall.rule]] are more than limits.firewall_rules = {limit}: raise \
         limits.firewall_rules to {needed} or more"
    )]
    Rules {
        /// In the file.
        needed: usize,
        /// `limits.firewall_rules`
        limit: u32,
    },
    /// More blocklists than there are ids for.
    #[error(
        "firewall.blocklists has {count} files of at most {limit}: put several into one",
        limit = firewall::BLOCKLIST_LIMIT
    )]
    Blocklists {
        /// In the file.
        count: usize,
    },
    /// A blocklist that nobody has read.
    #[error("{} of firewall.blocklists has not been read: reload", path.display())]
    Unread {
        /// As in the file.
        path: PathBuf,
    },
    /// Rules with source ports whose ports overlap too often.
    #[error(
        "the rules of the firewall take more than the {limit} steps that limits.firewall_rules gives room \
         for, since many with a source_port have ports that overlap: raise limits.firewall_rules, or give \
         fewer of them a source_port"
    )]
    Steps {
        /// That there is room for.
        limit: usize,
    },
    /// More prefixes than a trie holds.
    #[error(
        "{key} have {count} prefixes, more than the {limit} that there is room for: merge some of them \
         into shorter ones",
        limit = firewall::PREFIX_LIMIT
    )]
    Prefixes {
        /// Where they stand.
        key: &'static str,
        /// Those that are not part of others.
        count: usize,
    },
    /// More policies of a protocol than it has slots.
    #[error(
        "{count} [[dos]] policies of {protocol} are more than the {limit} that a protocol can have: remove \
         some",
        limit = config::POLICY_LIMIT
    )]
    Policies {
        /// The protocol.
        protocol: config::PolicyProtocol,
        /// In the file.
        count: usize,
    },
}
