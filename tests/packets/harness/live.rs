//! The maps' elements as they are, by the types that both sides share.

use libbpf_rs::{MapCore, MapFlags};
use plain::Plain;
use xdplb::datapath::abi::{self, bytes_of, from_bytes};
use xdplb::state::firewall::Rule;

use super::Lab;

impl Lab {
    /// An element of an array.
    pub fn element<T: Plain + Copy + Default>(&self, map: &str, index: u32) -> T {
        let bytes = self
            .map(map)
            .lookup(&index.to_ne_bytes(), MapFlags::ANY)
            .expect("lookup")
            .unwrap_or_else(|| panic!("element {index} of {map}"));
        from_bytes(&bytes).unwrap_or_else(|| panic!("the value of {map}"))
    }

    pub fn set_element<T: Plain>(&self, map: &str, index: u32, value: &T) {
        self.map(map)
            .update(&index.to_ne_bytes(), bytes_of(value), MapFlags::ANY)
            .expect("update");
    }

    /// What each CPU has of an element.
    pub fn per_cpu<T: Plain + Copy + Default>(&self, map: &str, index: u32) -> Vec<T> {
        let values = self
            .map(map)
            .lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)
            .expect("lookup")
            .unwrap_or_else(|| panic!("element {index} of {map}"));
        values
            .iter()
            .map(|bytes| from_bytes(bytes).unwrap_or_else(|| panic!("the value of {map}")))
            .collect()
    }

    /// Gives every CPU the same.
    pub fn set_per_cpu<T: Plain>(&self, map: &str, index: u32, value: &T) {
        let cpus = libbpf_rs::num_possible_cpus().expect("the number of CPUs");
        self.map(map)
            .update_percpu(
                &index.to_ne_bytes(),
                &vec![bytes_of(value).to_vec(); cpus],
                MapFlags::ANY,
            )
            .expect("update");
    }

    /// Connections of the backend of that id: how many were opened, and how many of them have ended.
    pub fn connections(&self, id: u32) -> (u64, u64) {
        let expired: abi::expiries = self.element("expired", id);
        let cpus: Vec<abi::traffic> = self.per_cpu("traffic", id);
        let opened = cpus.iter().map(|cpu| cpu.opened).sum();
        // Ends wrap: a CPU, or the sweep, may take back what another has counted.
        let ended = cpus
            .iter()
            .fold(expired.connections, |sum, cpu| sum.wrapping_add(cpu.closed));
        (opened, ended)
    }

    /// `settings`
    pub fn live(&self) -> abi::settings {
        self.element("settings", 0)
    }

    /// The id of a rule by its name, of a blocklist by its path.
    pub fn rule_id(&self, name: &str) -> u32 {
        let firewall = self.desired.firewall.as_ref().expect("a firewall");
        let mut rules = firewall.rules.iter();
        let found = rules.find(|(_, rule)| match rule {
            Rule::File(_, rule) => rule.name.as_deref() == Some(name),
            Rule::Blocklist(_, path, _) => path.as_os_str() == name,
            Rule::Default(_) => false,
        });
        *found.unwrap_or_else(|| panic!("no rule {name}")).0
    }

    /// What the rule of that id has decided, on all CPUs.
    pub fn hits(&self, rule: u32) -> abi::hits {
        let cpus: Vec<abi::hits> = self.per_cpu("fw_hits", rule);
        abi::hits {
            packets: cpus.iter().map(|cpu| cpu.packets).sum(),
            bytes: cpus.iter().map(|cpu| cpu.bytes).sum(),
        }
    }
}
