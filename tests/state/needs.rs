//! The room that a plan needs in the maps: from the file alone, whatever the network is like.

use std::sync::Arc;

use xdplb::config::blocklist::Contents;
use xdplb::config::{Config, Firewall, Forward, Policy, PolicyAction, PolicyProtocol, RuleAction};
use xdplb::state::{plan_of_file, FamilyNeeds, Needs};

use crate::{config, first_plan, planned, service, VIP, VIP6};

fn needs(config: &Config) -> Needs {
    let contents = Contents::from([(
        "list".into(),
        Arc::from(["192.0.2.0/24".parse().expect("a prefix")]),
    )]);
    plan_of_file(config, &contents).expect("a plan").needs
}

const VIPS: FamilyNeeds = FamilyNeeds {
    vips: true,
    full_nat: false,
};
const FULL_NAT: FamilyNeeds = FamilyNeeds {
    vips: true,
    full_nat: true,
};
const NONE: FamilyNeeds = FamilyNeeds {
    vips: false,
    full_nat: false,
};

#[test]
fn families_and_full_nat() {
    let mut full_nat = service("b", &[VIP6], 81, &[]);
    full_nat.forward = Forward::FullNat;
    for (services, ipv4, ipv6) in [
        (vec![], NONE, NONE),
        (vec![service("a", &[VIP], 80, &[])], VIPS, NONE),
        (vec![service("a", &[VIP6], 80, &[])], NONE, VIPS),
        (
            vec![service("a", &[VIP, VIP6], 80, &[]), full_nat],
            VIPS,
            FULL_NAT,
        ),
    ] {
        let needs = needs(&config(services));
        assert_eq!((needs.ipv4, needs.ipv6), (ipv4, ipv6));
    }
}

/// Of the backends in the file: none of them can be reached.
#[test]
fn tables() {
    let many: Vec<String> = (1..=30).map(|n| format!("10.0.0.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let of = |services| {
        let needs = needs(&config(services));
        (needs.slots, needs.largest)
    };
    assert_eq!(of(vec![]), (0, 0));
    assert_eq!(
        of(vec![service("a", &[VIP], 80, &["10.0.0.1"])]),
        (251, 251)
    );
    let two = vec![
        service("a", &[VIP, VIP6], 80, &["10.0.0.1", "fd00::1", "fd00::2"]),
        service("b", &[VIP], 81, &many),
    ];
    assert_eq!(of(two), (251 + 2039 + 16_381, 16_381));
}

#[test]
fn protection() {
    let mut file = config(vec![service("a", &[VIP], 80, &[])]);
    assert_eq!(
        (needs(&file).firewall, needs(&file).policies),
        (None, false)
    );
    file.dos = vec![Policy {
        name: "p".into(),
        protocol: PolicyProtocol::Udp,
        tcp_flags: (0, 0),
        limit: 1,
        burst: 1,
        action: PolicyAction::Limit,
    }];
    file.firewall = Some(Firewall {
        default: RuleAction::Allow,
        blocklists: vec!["list".into()],
        rules: Vec::new(),
    });
    let needs = needs(&file);
    assert!(needs.policies);
    // The default and the list.
    assert_eq!(needs.firewall.expect("a firewall").rules, 2);
}

/// Services whose ids are not free yet are in the plan after the next one, and need their room then.
#[test]
fn what_is_deferred_counts() {
    let mut file = config(vec![service("a", &[VIP], 80, &["10.0.0.1"])]);
    file.limits.services = 1;
    let before = first_plan(&file);
    file.services = vec![service("b", &[VIP6], 81, &["fd00::1", "fd00::2"])];
    let between = planned(&before, &file);
    assert_eq!(between.deferred, 1);
    assert_eq!(between.needs, needs(&file));
    let after = planned(&between, &file);
    assert_eq!((after.deferred, after.needs), (0, between.needs));
}
