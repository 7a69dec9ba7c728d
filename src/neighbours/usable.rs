//! Which links XDP can be attached to.

use std::collections::BTreeMap;

use super::Link;

/// The link that XDP can be attached to under this name.
///
/// # Errors
/// When there is none, or it is of a kind that cannot carry Ethernet frames, for the operator.
pub fn usable_link<'a>(name: &str, links: &'a BTreeMap<u32, Link>) -> Result<&'a Link, String> {
    let found = super::facts::by_name(links, name);
    let link = found.ok_or_else(|| {
        let others: Vec<&str> = links
            .values()
            .filter(|link| link.ethernet)
            .map(|link| link.name.as_str())
            .collect();
        format!(
            "there is no interface {name}; this host has: {}",
            others.join(", ")
        )
    })?;
    if !link.ethernet {
        return Err(format!(
            "{name} does not carry Ethernet frames; name the device below it"
        ));
    }
    Ok(link)
}
