//! What a file needs room for in the maps, where that depends on more than `[limits]`.
//!
//! It follows from the file and its blocklists alone: backends that cannot be reached need their room as well.

use crate::config::{Family, FirewallTables, Limits};

/// The needs of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// Slots of all Maglev tables together.
    pub slots: u64,
    /// Slots of the largest one.
    pub largest: u32,
    /// Of what is IPv4.
    pub ipv4: FamilyNeeds,
    /// Of what is IPv6.
    pub ipv6: FamilyNeeds,
    /// The firewall's; `None`: there is no firewall.
    pub firewall: Option<FirewallTables>,
    /// Whether there is a `[[dos]]` policy.
    pub policies: bool,
}

/// The needs of one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FamilyNeeds {
    /// Whether there is a VIP of it.
    pub vips: bool,
    /// Whether full-nat sends from addresses of it.
    pub full_nat: bool,
}

impl Needs {
    /// More than any file within `limits` has.
    pub fn everything(limits: &Limits) -> Needs {
        let all = FamilyNeeds {
            vips: true,
            full_nat: true,
        };
        Needs {
            slots: u64::MAX,
            largest: u32::MAX,
            ipv4: all,
            ipv6: all,
            firewall: Some(limits.firewall_tables()),
            policies: true,
        }
    }

    /// Those of one address family.
    pub fn of(&self, family: Family) -> &FamilyNeeds {
        match family {
            Family::Ipv4 => &self.ipv4,
            Family::Ipv6 => &self.ipv6,
        }
    }

    pub(super) fn of_mut(&mut self, family: Family) -> &mut FamilyNeeds {
        match family {
            Family::Ipv4 => &mut self.ipv4,
            Family::Ipv6 => &mut self.ipv6,
        }
    }

    /// Adds a Maglev table of so many slots.
    pub(super) fn add_table(&mut self, slots: u32) {
        self.slots += u64::from(slots);
        self.largest = self.largest.max(slots);
    }
}
