//! The rules of `[firewall]`, `[[dos]]` and `service.allow`, and the way from what the file says of them
//! to [`Firewall`] and [`Policy`]. The files of blocklists are not looked at.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use super::checks::{check_length, check_names, check_repeats, families, given, items};
use super::keyword::OnExcess;
use super::place::At;
use super::raw;
use super::report::Report;
use super::{
    Family, Firewall, NamedFile, Policy, PolicyAction, PolicyProtocol, PortRange, Prefix, Rule,
    RuleAction, RuleProtocol, BLOCKLIST_LIMIT, POLICY_LIMIT,
};

/// `dos.block_for` without one in the file.
const BLOCK_FOR: Duration = Duration::from_secs(60);

/// Reports the faults of `[firewall]` and `[[dos]]`.
pub(super) fn check(file: &raw::File, report: &mut Report) {
    if let Some(firewall) = &file.firewall {
        check_firewall(firewall, report);
    }
    check_policies(&file.dos, report);
}

fn check_firewall(firewall: &raw::Firewall, report: &mut Report) {
    if let Some(At { value: files, .. }) = &firewall.blocklists {
        let remedy = "put the rest into one file";
        check_length(
            "firewall",
            "blocklists",
            BLOCKLIST_LIMIT,
            remedy,
            files,
            report,
        );
        check_repeats("firewall", "blocklists", files, report);
    }
    let names = firewall
        .rules
        .iter()
        .filter_map(|rule| Some((rule.what.as_str(), rule.name.as_ref()?)));
    check_names("rule", names, report);
    for rule in &firewall.rules {
        check_rule_ports(rule, report);
    }
    warn_of_nobody(firewall, report);
    warn_of_covered(&firewall.rules, report);
}

/// Only TCP and UDP have ports.
fn check_rule_ports(rule: &raw::Rule, report: &mut Report) {
    let Some(At {
        value: protocol, ..
    }) = rule.protocol
    else {
        return;
    };
    if protocol.has_ports() {
        return;
    }
    for (key, ports) in [("source_port", rule.source_port), ("port", rule.port)] {
        let Some(ports) = ports.filter(|ports| ports.value != PortRange::ANY) else {
            continue;
        };
        let message = format!(
            "{}: {key} cannot be set with protocol {protocol}, which has no ports; remove this key, or \
             write protocol = \"tcp\", \"udp\" or \"any\"",
            rule.what
        );
        report.error(ports.at, message);
    }
}

/// Warns of a firewall that denies every packet.
fn warn_of_nobody(firewall: &raw::Firewall, report: &mut Report) {
    let Some(At {
        value: RuleAction::Deny,
        at,
    }) = firewall.default
    else {
        return;
    };
    let denies = |rule: &raw::Rule| {
        rule.action
            .as_ref()
            .is_some_and(|action| action.value == RuleAction::Deny)
    };
    if firewall.rules.iter().all(denies) {
        report.warning(
            at,
            "firewall: default is \"deny\" and no rule allows anything, so every packet for a VIP is \
             dropped; add a [[firewall.rule]] with action = \"allow\"",
        );
    }
}

/// Protocol, source port, port.
type Conditions = (RuleProtocol, PortRange, PortRange);
const EVERYTHING: Conditions = (RuleProtocol::Any, PortRange::ANY, PortRange::ANY);

impl raw::Rule {
    /// Its source and the rest of its conditions. `None`: one is wrong, and reported.
    fn conditions(&self) -> Option<(Option<Prefix>, Conditions)> {
        let conditions = (
            self.protocol?.value,
            self.source_port?.value,
            self.port?.value,
        );
        Some((self.source?.value, conditions))
    }
}

/// Warns of rules that an earlier one leaves nothing of. Sees one whose every condition is the same or
/// wider where the wider one is a prefix, "any", or "icmp" for one of its two protocols: that is what is
/// seen with a few look-ups, however many rules there are.
fn warn_of_covered(rules: &[raw::Rule], report: &mut Report) {
    let mut earlier: HashMap<Option<Prefix>, HashMap<Conditions, &raw::Rule>> = HashMap::new();
    let mut lengths: BTreeMap<Family, BTreeSet<u8>> = BTreeMap::new();
    for rule in rules {
        let Some((source, conditions)) = rule.conditions() else {
            continue;
        };
        let around = source.into_iter().flat_map(|prefix| {
            let family = Family::of(prefix.address());
            let known = lengths.get(&family).into_iter().flatten();
            known
                .take_while(move |length| **length <= prefix.length())
                .map(move |length| Some(Prefix::covering(prefix.address(), *length)))
        });
        let covering = std::iter::once(None)
            .chain(around)
            .filter_map(|source| earlier.get(&source))
            .find_map(|rules| wider(conditions).find_map(|conditions| rules.get(&conditions)));
        if let Some(covering) = covering {
            let everything = covering.conditions() == Some((None, EVERYTHING));
            let message = format!(
                "{}{} can never match: the rule at {} already matches all its packets; remove one, or \
                 change their order",
                rule.what,
                if everything { " and those after it" } else { "" },
                report.place(covering.at),
            );
            report.warning(rule.at, message);
            if everything {
                return;
            }
        }
        if let Some(prefix) = source {
            let family = Family::of(prefix.address());
            lengths.entry(family).or_default().insert(prefix.length());
        }
        let same_source = earlier.entry(source).or_default();
        same_source.entry(conditions).or_insert(rule);
    }
}

/// The conditions that hold wherever these do.
fn wider((protocol, source_port, port): Conditions) -> impl Iterator<Item = Conditions> {
    let protocols = match protocol {
        RuleProtocol::Number(1 | 58) => [protocol, RuleProtocol::Icmp, RuleProtocol::Any],
        _ => [protocol, protocol, RuleProtocol::Any],
    };
    protocols.into_iter().flat_map(move |protocol| {
        [source_port, PortRange::ANY]
            .into_iter()
            .flat_map(move |source_port| {
                [port, PortRange::ANY].map(move |port| (protocol, source_port, port))
            })
    })
}

fn check_policies(policies: &[raw::Policy], report: &mut Report) {
    let names = policies
        .iter()
        .filter_map(|policy| Some((policy.what.as_str(), policy.name.as_ref()?)));
    check_names("policy", names, report);
    let mut counts: BTreeMap<PolicyProtocol, usize> = BTreeMap::new();
    for policy in policies {
        let what = &policy.what;
        if let Some(At {
            value: protocol, ..
        }) = policy.protocol
        {
            let count = counts.entry(protocol).or_default();
            *count += 1;
            if *count == POLICY_LIMIT + 1 {
                let message = format!(
                    "{what} is one more policy of {protocol} than the {POLICY_LIMIT} that a protocol can \
                     have; remove one"
                );
                report.error(policy.at, message);
            }
            if let (Some(flags), true) = (&policy.tcp_flags, protocol != PolicyProtocol::Tcp) {
                let message = format!(
                    "{what}: tcp_flags cannot be set with protocol = \"{protocol}\"; remove this key, or \
                     write protocol = \"tcp\""
                );
                report.error(flags.at, message);
            }
        }
        let limits = policy
            .action
            .is_some_and(|action| action.value == OnExcess::Limit);
        if let (Some(block_for), true) = (policy.block_for, limits) {
            let message = format!(
                "{what}: block_for cannot be set with action = \"limit\", which drops only the \
                 excess; remove this key, or write action = \"block\""
            );
            report.error(block_for.at, message);
        }
    }
}

/// Reports prefixes of `service.allow` that are repeated or of no use, and VIPs that they shut off.
pub(super) fn check_allow(service: &raw::Service, report: &mut Report) {
    let Some(At { value: allow, at }) = &service.allow else {
        return;
    };
    let what = &service.what;
    check_repeats(what, "allow", allow, report);
    if !allow.complete || !service.vips.complete || allow.items.is_empty() {
        return;
    }
    let families = families(service);
    let allowed = |family| {
        let of_family = move |prefix: &Prefix| Family::of(prefix.address()) == family;
        allow.values().find(of_family)
    };
    for family in Family::ALL {
        match (families.contains(&family), allowed(family)) {
            (true, None) => {
                let message = format!(
                    "{what}: allow has no {family} prefix, so no client reaches its {family} VIPs; add one, \
                     or remove these VIPs"
                );
                report.warning(*at, message);
            }
            (false, Some(prefix)) => {
                let message = format!(
                    "{what}: allow has {prefix}, but the service has no {family} VIP; add one, or remove \
                     the prefix"
                );
                report.warning(*at, message);
            }
            _ => {}
        }
    }
}

/// The files of `firewall.blocklists`, with where they are named.
pub(super) fn blocklists(file: &raw::File, report: &Report) -> Vec<NamedFile> {
    let firewall = file.firewall.iter();
    let lists = firewall.filter_map(|firewall| firewall.blocklists.as_ref());
    lists
        .flat_map(|list| &list.value.items)
        .map(|At { value, at }| NamedFile {
            path: value.into(),
            place: report.place(*at),
        })
        .collect()
}

/// Fills in the defaults. Leaves out what lacks a required value, all of which is reported.
pub(super) fn firewall(firewall: raw::Firewall) -> Firewall {
    let files = firewall.blocklists.map(|list| items(list.value));
    Firewall {
        default: given(firewall.default, RuleAction::Allow),
        blocklists: files
            .unwrap_or_default()
            .into_iter()
            .map(PathBuf::from)
            .collect(),
        rules: firewall.rules.into_iter().filter_map(rule).collect(),
    }
}

fn rule(rule: raw::Rule) -> Option<Rule> {
    Some(Rule {
        name: rule.name.map(|name| name.value),
        action: rule.action?.value,
        source: rule.source?.value,
        protocol: rule.protocol?.value,
        source_port: rule.source_port?.value,
        port: rule.port?.value,
    })
}

/// Likewise.
pub(super) fn policy(policy: raw::Policy) -> Option<Policy> {
    let limit = policy.limit?.value;
    Some(Policy {
        name: policy.name?.value,
        protocol: policy.protocol?.value,
        tcp_flags: given(policy.tcp_flags, (0, 0)),
        limit,
        burst: given(policy.burst, limit),
        action: match policy.action?.value {
            OnExcess::Limit => PolicyAction::Limit,
            OnExcess::Block => PolicyAction::Block(given(policy.block_for, BLOCK_FOR)),
        },
    })
}
