//! Which plan is in force, and the way from one to the next and back.
//!
//! Owns the order in which plans follow each other: an id that one plan frees is another's only in the plan
//! after it, so that a change may take two plans, and the way back from it as well.

use std::sync::{Arc, PoisonError, RwLock};

use log::error;

use super::Error;
use crate::datapath::abi::Flow;
use crate::datapath::{self, Datapath, Settings};
use crate::state::{self, Desired};

/// The target that plans are written to: the maps, or a test's stand-in.
pub trait Maps {
    /// Makes the maps what the plan says, whatever they hold.
    fn apply(&mut self, plan: &Desired, settings: &Settings) -> Result<(), datapath::Error>;

    /// Likewise, and looks only at what differs from the plan that was written last.
    fn follow(&mut self, plan: &Desired, settings: &Settings) -> Result<(), datapath::Error>;
}

impl Maps for Datapath {
    fn apply(&mut self, plan: &Desired, settings: &Settings) -> Result<(), datapath::Error> {
        Datapath::apply(self, plan, settings)
    }

    fn follow(&mut self, plan: &Desired, settings: &Settings) -> Result<(), datapath::Error> {
        Datapath::follow(self, plan, settings)
    }
}

/// How much of the maps is compared when a plan is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// All that the maps hold: what has drifted is mended.
    Everything,
    /// Only the difference to the plan in force.
    Difference,
}

/// The plan in force.
#[derive(Default)]
pub struct InForce {
    plan: Arc<Desired>,
    bindings: Arc<Bindings>,
    purge_due: bool,
}

/// The plans that were in force one after the other before [`InForce::put`] failed or was done, oldest first.
pub type Former = Vec<Arc<Desired>>;

impl InForce {
    /// The plan.
    pub fn plan(&self) -> &Arc<Desired> {
        &self.plan
    }

    /// The plans that connections may be bound by, for the sweep.
    pub fn bindings(&self) -> Arc<Bindings> {
        Arc::clone(&self.bindings)
    }

    /// Whether connections have lost their service since the last call: they are to be looked for.
    pub fn take_purge(&mut self) -> bool {
        std::mem::take(&mut self.purge_due)
    }

    /// Writes the plan that `next` makes from the one in force, and the one after it if ids had to be freed
    /// first: what differs from the one before.
    ///
    /// # Errors
    /// When one cannot be made or written, with the plans that were in force before:
    /// [`InForce::go_back`] takes them.
    pub fn put(
        &mut self,
        maps: &mut impl Maps,
        settings: &Settings,
        next: impl Fn(&Desired) -> Result<Desired, Error>,
    ) -> Result<(), (Error, Former)> {
        let mut former = Former::new();
        loop {
            let before = Arc::clone(&self.plan);
            let written = next(&before)
                .and_then(|plan| self.write(maps, settings, Scope::Difference, Arc::new(plan)));
            if let Err(error) = written {
                return Err((error, former));
            }
            former.push(before);
            if self.plan.deferred == 0 || former.len() == 2 {
                return Ok(());
            }
        }
    }

    /// Writes what in the maps is not as the plan in force has it.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn mend(&mut self, maps: &mut impl Maps, settings: &Settings) -> Result<(), Error> {
        let plan = Arc::clone(&self.plan);
        self.write(maps, settings, Scope::Everything, plan)
    }

    /// Leads back to the oldest of the plans that were in force, by the way that was come: what goes in
    /// between has to free the ids that it took. Should one of them not be written, which is logged, the
    /// oldest counts as in force all the same: the next change goes on from there. Gives back whether the maps
    /// hold it.
    #[must_use]
    pub fn go_back(&mut self, maps: &mut impl Maps, settings: &Settings, former: Former) -> bool {
        // Some of the plan that failed may have been written over the one in force.
        let way = former.into_iter().chain([Arc::clone(&self.plan)]).rev();
        let mut held = true;
        for plan in way {
            let next_generation = self.plan.next_generation;
            let written = self.write(maps, settings, Scope::Everything, Arc::clone(&plan));
            held = written.is_ok();
            if let Err(error) = written {
                error!("going back to the previous configuration: {error}");
                self.plan = plan;
            }
            self.keep_generations(next_generation);
        }
        held
    }

    fn write(
        &mut self,
        maps: &mut impl Maps,
        settings: &Settings,
        scope: Scope,
        next: Arc<Desired>,
    ) -> Result<(), Error> {
        self.bindings.expect(&next);
        let written = match scope {
            Scope::Everything => maps.apply(&next, settings),
            Scope::Difference => maps.follow(&next, settings),
        };
        if let Err(error) = written {
            self.keep_generations(next.next_generation);
            return Err(error.into());
        }
        self.purge_due |= state::bindings_changed(&self.plan, &next);
        self.plan = next;
        self.bindings.settle(&self.plan);
        Ok(())
    }

    /// A generation is not given out again, even if only a part of its plan gets as far as the maps.
    fn keep_generations(&mut self, next_generation: u32) {
        if self.plan.next_generation < next_generation {
            Arc::make_mut(&mut self.plan).next_generation = next_generation;
        }
    }
}

/// The plans that connections may be bound by: the one in force, and while another is being written that
/// one too.
#[derive(Default)]
pub struct Bindings(RwLock<Vec<Arc<Desired>>>);

impl Bindings {
    /// Whether a connection, by its client's flow and its backend's id, belongs to a service by one of the
    /// plans. A backend that is gone is the datapath's to replace, on the connection's next packet.
    pub fn is_bound(&self, client: &Flow, backend: u32) -> bool {
        let (vip, port) = client.destination;
        let plans = self.0.read().unwrap_or_else(PoisonError::into_inner);
        plans.iter().any(|plan| {
            let service = plan.still_bound(vip, client.protocol, port);
            service.is_some_and(|service| {
                let backend = plan.backends.get(&backend);
                backend.is_none_or(|backend| backend.service == service)
            })
        })
    }

    fn expect(&self, plan: &Arc<Desired>) {
        self.plans(|plans| plans.push(Arc::clone(plan)));
    }

    fn settle(&self, plan: &Arc<Desired>) {
        self.plans(|plans| *plans = vec![Arc::clone(plan)]);
    }

    fn plans(&self, change: impl FnOnce(&mut Vec<Arc<Desired>>)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;

    use super::*;
    use crate::config::blocklist::Contents;
    use crate::config::{self, Config, Refusal};
    use crate::state::{OwnAddress, World};

    /// A file with room for two services, and these in it, each with a backend and a port of its own.
    fn file(services: &[(&str, u16)]) -> Config {
        let mut text = String::from(
            "[datapath]\ninterfaces = [\"eth0\"]\n[limits]\nservices = 2\nbackends = 2\n",
        );
        for (name, port) in services {
            text += &format!(
                "[[service]]\nname = \"{name}\"\nvip = \"203.0.113.11\"\nprotocol = \"tcp\"\nport = {port}\n\
                 forward = \"nat\"\n[[service.backend]]\nname = \"{name}\"\naddress = \"10.0.0.1\"\nport = {port}\n"
            );
        }
        let loaded = config::parse(&text, Path::new("lb.toml"));
        loaded.expect("a valid file").config
    }

    fn settings(config: &Config) -> Settings {
        Settings {
            timeouts: config.timeouts,
            unknown_port: Refusal::Pass,
            hash_seed: 0,
            nat_ports: (1024, 32767),
            gue_port: 6080,
        }
    }

    fn planned(previous: &Desired, config: &Config) -> Result<Desired, Error> {
        let own: [OwnAddress; 0] = [];
        let world = World {
            blocklists: &Contents::new(),
            hop: &|_| None,
            own_addresses: &own,
        };
        Ok(state::plan(previous, config, &world)?)
    }

    /// Which services each write had, by id, and what it looked at; refuses those whose number is listed.
    #[derive(Default)]
    struct Written {
        refused: Vec<usize>,
        plans: Vec<Vec<(u32, String)>>,
        scopes: Vec<Scope>,
    }

    impl Written {
        fn write(&mut self, plan: &Desired, scope: Scope) -> Result<(), datapath::Error> {
            let services = plan.services.iter();
            self.plans
                .push(services.map(|(&id, s)| (id, s.name.clone())).collect());
            self.scopes.push(scope);
            if self.refused.contains(&self.plans.len()) {
                return Err(datapath::Error::Regions {
                    service: "of the test".into(),
                });
            }
            Ok(())
        }
    }

    impl Maps for Written {
        fn apply(&mut self, plan: &Desired, _: &Settings) -> Result<(), datapath::Error> {
            self.write(plan, Scope::Everything)
        }

        fn follow(&mut self, plan: &Desired, _: &Settings) -> Result<(), datapath::Error> {
            self.write(plan, Scope::Difference)
        }
    }

    fn named(services: &[(u32, &str)]) -> Vec<(u32, String)> {
        let services = services.iter();
        services.map(|&(id, name)| (id, name.to_owned())).collect()
    }

    fn client(port: u16) -> Flow {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        Flow {
            source: (ip("198.51.100.2"), 40_000),
            destination: (ip("203.0.113.11"), port),
            protocol: 6,
        }
    }

    /// `a` and `b` in force, and the maps that they were written to.
    fn begun() -> (InForce, Written, Config) {
        let config = file(&[("a", 80), ("b", 81)]);
        let (mut in_force, mut maps) = (InForce::default(), Written::default());
        let put = in_force.put(&mut maps, &settings(&config), |before| {
            planned(before, &config)
        });
        put.map_err(|(error, _)| error).expect("the first plan");
        in_force.take_purge();
        maps.plans.clear();
        maps.scopes.clear();
        (in_force, maps, config)
    }

    #[test]
    fn a_change_of_all_services_takes_two_plans() {
        let (mut in_force, mut maps, config) = begun();
        // As a sweep has them that began before the change.
        let bindings = in_force.bindings();
        assert!(bindings.is_bound(&client(80), 0));
        let next = file(&[("c", 82), ("d", 83)]);
        let put = in_force.put(&mut maps, &settings(&config), |before| {
            planned(before, &next)
        });
        put.map_err(|(error, _)| error).expect("both plans");
        assert_eq!(maps.plans, [vec![], named(&[(0, "c"), (1, "d")])]);
        assert_eq!(maps.scopes, [Scope::Difference; 2]);
        assert!(in_force.take_purge() && !in_force.take_purge());
        assert!(bindings.is_bound(&client(82), 0));
        assert!(!bindings.is_bound(&client(80), 0));
    }

    #[test]
    fn mending_looks_at_everything_and_leaves_the_plan_in_force() {
        let (mut in_force, mut maps, config) = begun();
        let plan = Arc::clone(in_force.plan());
        maps.refused = vec![2];
        let settings = settings(&config);
        in_force.mend(&mut maps, &settings).expect("a mended map");
        in_force
            .mend(&mut maps, &settings)
            .expect_err("it is refused");
        let both = named(&[(0, "a"), (1, "b")]);
        assert_eq!(maps.plans, [both.clone(), both]);
        assert_eq!(maps.scopes, [Scope::Everything; 2]);
        assert_eq!(**in_force.plan(), *plan);
        assert!(in_force.bindings().is_bound(&client(80), 0));
        assert!(!in_force.take_purge());
    }

    #[test]
    fn a_second_half_that_fails_leads_back_to_where_the_change_began() {
        let (mut in_force, mut maps, config) = begun();
        let former = Arc::clone(in_force.plan());
        maps.refused = vec![2];
        let next = file(&[("c", 82), ("d", 83)]);
        let settings = settings(&config);
        let put = in_force.put(&mut maps, &settings, |before| planned(before, &next));
        let (_, passed) = put.expect_err("the second half is refused");
        let tried = in_force.plan().next_generation;
        assert!(in_force.bindings().is_bound(&client(82), 0));
        assert!(in_force.go_back(&mut maps, &settings, passed));
        // By way of the half that frees what the other took.
        let both = named(&[(0, "a"), (1, "b")]);
        let other = named(&[(0, "c"), (1, "d")]);
        assert_eq!(maps.plans, [vec![], other, vec![], both]);
        assert_eq!(maps.scopes[2..], [Scope::Everything; 2]);
        let now = in_force.plan();
        assert_eq!(now.next_generation, tried);
        assert!(tried > former.next_generation);
        let now = Desired {
            next_generation: former.next_generation,
            ..Desired::clone(now)
        };
        assert_eq!(now, *former);
        assert!(in_force.bindings().is_bound(&client(80), 0));
        assert!(!in_force.bindings().is_bound(&client(82), 0));
        assert!(in_force.take_purge());
    }

    #[test]
    fn a_first_half_that_fails_leads_back_too() {
        let (mut in_force, mut maps, config) = begun();
        maps.refused = vec![1];
        let next = file(&[("a", 80), ("b", 85)]);
        let settings = settings(&config);
        let put = in_force.put(&mut maps, &settings, |before| planned(before, &next));
        let (_, passed) = put.expect_err("it is refused");
        // While some of it may be in the maps, both count.
        assert!(in_force.bindings().is_bound(&client(81), 1));
        assert!(in_force.bindings().is_bound(&client(85), 1));
        assert!(in_force.go_back(&mut maps, &settings, passed));
        assert_eq!(maps.plans.len(), 2);
        assert_eq!(maps.plans[1], named(&[(0, "a"), (1, "b")]));
        assert!(in_force.bindings().is_bound(&client(81), 1));
        assert!(!in_force.bindings().is_bound(&client(85), 1));
    }

    #[test]
    fn a_way_back_that_is_refused_ends_at_the_oldest_plan_all_the_same() {
        let (mut in_force, mut maps, config) = begun();
        maps.refused = vec![2, 3, 4];
        let next = file(&[("c", 82), ("d", 83)]);
        let settings = settings(&config);
        let put = in_force.put(&mut maps, &settings, |before| planned(before, &next));
        let (_, passed) = put.expect_err("the second half is refused");
        assert!(!in_force.go_back(&mut maps, &settings, passed));
        let services = in_force.plan().services.values();
        let names: Vec<&str> = services.map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(in_force.bindings().is_bound(&client(80), 0));
    }
}
