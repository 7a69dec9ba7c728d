//! What does not fit, named with what to do.

use std::collections::BTreeMap;
use std::net::IpAddr;

use xdplb::config::Config;
use xdplb::state::{plan, Desired, OwnAddress, PlanError, World, NAT_POOL_LIMIT};

use crate::{backend, config, full_nat, service, HOP, VIP, VIP6};

#[test]
fn limits_are_named_with_what_to_do() {
    let refused = |config: &Config, sources: &[OwnAddress]| {
        let world = World {
            blocklists: &BTreeMap::new(),
            hop: &|_| Some(HOP),
            own_addresses: sources,
        };
        plan(&Desired::default(), config, &world).expect_err("refused")
    };
    let mut web = config(vec![service(
        "web",
        &[VIP, VIP6],
        80,
        &["10.0.0.1", "10.0.0.2"],
    )]);
    web.limits.services = 1;
    let error = refused(&web, &[]);
    assert_eq!(
        error,
        PlanError::Services {
            needed: 2,
            limit: 1
        }
    );
    assert!(
        error
            .to_string()
            .contains("raise limits.services to 2 or more"),
        "{error}"
    );

    web.limits.services = 2;
    web.limits.backends = 1;
    let error = refused(&web, &[]);
    assert_eq!(
        error,
        PlanError::Backends {
            needed: 2,
            limit: 1
        }
    );
    assert!(
        error
            .to_string()
            .contains("raise limits.backends to 2 or more"),
        "{error}"
    );

    let many = |count: usize| {
        (0..count as u32).map(|index| OwnAddress {
            address: IpAddr::from((0x0b00_0000 + index).to_be_bytes()),
            slot: 0,
        })
    };
    let error = refused(
        &full_nat(&[VIP], &[]),
        &many(NAT_POOL_LIMIT + 1).collect::<Vec<_>>(),
    );
    assert_eq!(error, PlanError::NatPool { count: 4097 });
    assert!(error.to_string().contains("datapath.addresses"), "{error}");

    let mut crowd = config(vec![service("crowd", &[VIP], 80, &[])]);
    crowd.services[0].backends = many(65_536).map(|source| backend(source.address)).collect();
    crowd.limits.backends = 100_000;
    let error = refused(&crowd, &[]);
    assert_eq!(
        error,
        PlanError::ServiceBackends {
            service: "crowd".into(),
            count: 65_536
        }
    );
}
