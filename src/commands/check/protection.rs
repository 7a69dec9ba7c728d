//! What `xdplb check` says of `[firewall]` and `[[dos]]`.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::{indented, line, memory, seconds_or_none};
use crate::config::{duration, Config, FirewallTables, Policy, PolicyAction, Rule};
use crate::state::firewall::{self, Ruleset};

#[derive(Serialize)]
pub(super) struct FirewallView<'a> {
    default: String,
    rules: Vec<RuleView<'a>>,
    blocklists: Vec<BlocklistView<'a>>,
    /// Those that decide something, of rules and blocklists.
    prefixes: usize,
    prefix_bytes: u64,
}

#[derive(Serialize)]
struct RuleView<'a> {
    name: Option<&'a str>,
    action: String,
    source: String,
    protocol: String,
    source_port: String,
    port: String,
}

#[derive(Serialize)]
struct BlocklistView<'a> {
    /// As in the file.
    path: &'a Path,
    prefixes: u32,
}

#[derive(Serialize)]
pub(super) struct PolicyView<'a> {
    name: &'a str,
    protocol: String,
    /// Those that have to be set; none: every packet.
    tcp_flags: Vec<String>,
    limit: u32,
    burst: u32,
    action: &'static str,
    #[serde(serialize_with = "seconds_or_none")]
    block_for: Option<Duration>,
}

impl<'a> FirewallView<'a> {
    /// `compiled` is what comes of it; `None`: it lets everything in.
    pub(super) fn new(config: &'a Config, compiled: Option<&'a Ruleset>) -> Option<Self> {
        let firewall = config.firewall.as_ref()?;
        let mut blocklists: Vec<(u32, BlocklistView)> = compiled
            .iter()
            .flat_map(|compiled| compiled.rules.values())
            .filter_map(|rule| match rule {
                firewall::Rule::Blocklist(position, path, prefixes) => {
                    let prefixes = *prefixes;
                    Some((*position, BlocklistView { path, prefixes }))
                }
                _ => None,
            })
            .collect();
        blocklists.sort_unstable_by_key(|(position, _)| *position);
        let prefixes = compiled.map_or(0, |compiled| compiled.prefixes.len());
        Some(FirewallView {
            default: firewall.default.to_string(),
            rules: firewall.rules.iter().map(RuleView::new).collect(),
            blocklists: blocklists.into_iter().map(|(_, view)| view).collect(),
            prefixes,
            prefix_bytes: FirewallTables::prefix_bytes(prefixes),
        })
    }

    pub(super) fn text(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "\nfirewall")?;
        line(out, "default", &self.default)?;
        if self.prefixes > 0 {
            let most = memory(self.prefix_bytes);
            let prefixes = self.prefixes;
            line(
                out,
                "prefixes",
                format_args!("{prefixes}, at most {most} of memory"),
            )?;
        }
        let mut rows = vec![[
            "rule",
            "name",
            "action",
            "source",
            "protocol",
            "source_port",
            "port",
        ]
        .map(str::to_owned)
        .to_vec()];
        rows.extend(self.rules.iter().zip(1..).map(|(rule, number)| {
            vec![
                number.to_string(),
                rule.name.unwrap_or_default().to_owned(),
                rule.action.clone(),
                rule.source.clone(),
                rule.protocol.clone(),
                rule.source_port.clone(),
                rule.port.clone(),
            ]
        }));
        indented(out, "rules", rows)?;
        let mut rows = vec![["blocklist", "prefixes"].map(str::to_owned).to_vec()];
        rows.extend(self.blocklists.iter().map(|list| {
            let path = list.path.display().to_string();
            vec![path, list.prefixes.to_string()]
        }));
        indented(out, "blocklists", rows)
    }
}

impl<'a> RuleView<'a> {
    fn new(rule: &'a Rule) -> RuleView<'a> {
        RuleView {
            name: rule.name.as_deref(),
            action: rule.action.to_string(),
            source: rule
                .source
                .map_or("any".to_owned(), |source| source.to_string()),
            protocol: rule.protocol.to_string(),
            source_port: rule.source_port.to_string(),
            port: rule.port.to_string(),
        }
    }
}

impl<'a> PolicyView<'a> {
    pub(super) fn new(policy: &'a Policy) -> PolicyView<'a> {
        let (action, block_for) = match policy.action {
            PolicyAction::Limit => ("limit", None),
            PolicyAction::Block(time) => ("block", Some(time)),
        };
        PolicyView {
            name: &policy.name,
            protocol: policy.protocol.to_string(),
            tcp_flags: policy.flag_names().map(str::to_owned).collect(),
            limit: policy.limit,
            burst: policy.burst,
            action,
            block_for,
        }
    }
}

/// The policies as a table.
pub(super) fn policies(policies: &[PolicyView], out: &mut impl Write) -> io::Result<()> {
    if policies.is_empty() {
        return Ok(());
    }
    writeln!(out, "\ndos")?;
    let mut rows = vec![[
        "policy",
        "protocol",
        "tcp_flags",
        "limit",
        "burst",
        "action",
        "block_for",
    ]
    .map(str::to_owned)
    .to_vec()];
    rows.extend(policies.iter().map(|policy| {
        vec![
            policy.name.to_owned(),
            policy.protocol.clone(),
            if policy.tcp_flags.is_empty() {
                "any".to_owned()
            } else {
                policy.tcp_flags.join(",")
            },
            policy.limit.to_string(),
            policy.burst.to_string(),
            policy.action.to_owned(),
            policy.block_for.map_or_else(String::new, duration::format),
        ]
    }));
    indented(out, "policies", rows)
}
