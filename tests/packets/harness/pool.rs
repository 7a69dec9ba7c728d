//! Loaded datapaths, which tests hand on to one another: a load is a second of the verifier's time, and
//! several under emulation; most tests take less than that.
//!
//! Owns that a test gets one as a load leaves it: every map is as it was created, and of what [`Datapath`]
//! knows about its maps nothing is kept.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use xdplb::config::Limits;
use xdplb::datapath::{Datapath, Loaded};
use xdplb::state::Needs;

use super::elements;

/// Smaller tables are for tests of one that is full, and these load their own: where an LRU's free
/// elements lie, on one CPU's list or on that of all, is nothing that emptying it brings back.
const LEAST_CONNECTIONS: u32 = 4096;

/// Those that no test has at present.
static FREE: Mutex<Vec<(Limits, Loaded)>> = Mutex::new(Vec::new());

/// A datapath, for as long as a test has it.
pub struct Lent {
    /// There until it is given back.
    datapath: Option<Datapath>,
    limits: Limits,
    /// No other test gets it.
    own: bool,
}

impl Lent {
    /// One whose maps are as a load leaves them.
    pub fn take(limits: &Limits) -> Lent {
        let own = limits.connections < LEAST_CONNECTIONS;
        let loaded = if own { None } else { find(limits) };
        let loaded = loaded.unwrap_or_else(|| load(limits));
        Lent {
            datapath: Some(Datapath::over(loaded).expect("maps that are known")),
            limits: *limits,
            own,
        }
    }

    /// One with room for what `needs` says, for this test alone.
    pub fn load(limits: &Limits, needs: &Needs) -> Lent {
        Lent {
            datapath: Some(Datapath::load_for(limits, needs).expect("a load")),
            limits: *limits,
            own: true,
        }
    }

    /// The limits that it was loaded with.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// No other test may have it afterwards.
    pub fn keep(&mut self) {
        self.own = true;
    }
}

fn find(limits: &Limits) -> Option<Loaded> {
    let mut free = FREE.lock().expect("nothing panics with it");
    let position = free.iter().position(|(of, _)| of == limits)?;
    let (_, loaded) = free.swap_remove(position);
    drop(free);
    clear(&loaded);
    Some(loaded)
}

fn clear(loaded: &Loaded) {
    for map in loaded.maps().expect("handles to the maps") {
        elements::clear(&map);
    }
}

fn load(limits: &Limits) -> Loaded {
    Loaded::load(limits).unwrap_or_else(|error| {
        panic!("these tests load XDP programs into the kernel: run them as root, on Linux 6.1 or newer with BPF: {error:#}")
    })
}

impl Drop for Lent {
    fn drop(&mut self) {
        // One that a test failed with is not trusted.
        if self.own || std::thread::panicking() {
            return;
        }
        if let (Some(datapath), Ok(mut free)) = (self.datapath.take(), FREE.lock()) {
            free.push((self.limits, datapath.into_loaded()));
        }
    }
}

impl Deref for Lent {
    type Target = Datapath;

    fn deref(&self) -> &Datapath {
        self.datapath.as_ref().expect("until it is given back")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Datapath {
        self.datapath.as_mut().expect("until it is given back")
    }
}

mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use libbpf_rs::{MapCore, MapFlags};

    use super::*;
    use crate::harness::cells::{self, every, Dress, PROTOCOLS};
    use crate::harness::frame::{Protocol, ACK, SYN};
    use crate::harness::{pause, Lab, Verdict, CLIENTS};

    /// The maps that are not as they were created.
    fn used(loaded: &Loaded) -> BTreeSet<String> {
        let maps = loaded.maps().expect("handles to the maps");
        let used = maps.iter().filter(|map| !elements::is_blank(map));
        used.map(|map| map.name().to_string_lossy().into_owned())
            .collect()
    }

    fn all(loaded: &Loaded) -> BTreeSet<String> {
        let maps = loaded.maps().expect("handles to the maps");
        maps.iter()
            .map(|map| map.name().to_string_lossy().into_owned())
            .collect()
    }

    /// Something in every map, and nothing in any of them afterwards, as after a load.
    #[test]
    fn a_test_finds_nothing_of_the_one_before() {
        let limits = Lab::limits(4096);
        let fresh = load(&limits);
        assert_eq!(used(&fresh), BTreeSet::new(), "after a load");

        let mut lab = Lab::new(&every());
        lab.datapath.keep();
        lab.set_blocklist("list", &["192.0.2.0/24", "2001:db8:bad::/48"]);
        let protected = format!(
            "{}[firewall]\nblocklists = [\"list\"]\n[[firewall.rule]]\naction = \"allow\"\nport = \"80\"\n\
             [[dos]]\nname = \"few\"\nprotocol = \"tcp\"\nlimit = 1\nburst = 200\naction = \"block\"\nblock_for = \"1h\"\n",
            every().replace("forward =", "allow = [\"0.0.0.0/0\", \"::/0\"]\nforward =")
        );
        lab.reload(&protected);
        for (port, new_flows) in [(1000, u32::MAX), (1001, 0)] {
            lab.limit_new_flows(new_flows);
            for cell in cells::all() {
                for protocol in PROTOCOLS {
                    let path = cell.establish(&lab, protocol, port);
                    let last_hop = path.request(ACK).with(|f| f.ttl = 1);
                    lab.send(CLIENTS, &last_hop.bytes());
                    let fragment = path.sent(&Dress::default(), |ends| {
                        let whole = path.between(ends, ACK).with(|f| {
                            f.payload = vec![7; 200];
                            f.dont_fragment = false;
                        });
                        let pieces = whole.packet().fragments(1, 0, &[64, 128]);
                        pieces[0].clone()
                    });
                    lab.send(CLIENTS, &fragment);
                }
            }
        }
        // More than the limit allows.
        let cell = cells::all().next().expect("a cell");
        let path = cell.path(Protocol::Tcp, cell.client_at(1002));
        let verdicts: Vec<Verdict> = (0..220)
            .map(|_| lab.send(CLIENTS, &path.request(SYN).bytes()).verdict)
            .collect();
        assert_eq!(verdicts.last(), Some(&Verdict::Drop("source_blocked")));
        // Entries that no longer live, and backends that are gone.
        lab.set_timeouts(|timeouts| timeouts.udp = Duration::from_millis(1));
        pause(Duration::from_millis(50));
        assert_ne!(lab.sweep().expired, 0);
        lab.reload(&protected.replace("10.0.0.2", "10.0.0.22"));

        // New ones.
        lab.forget_copies();
        lab.limit_new_flows(100);
        for cell in cells::all() {
            let path = cell.path(Protocol::Udp, cell.client_at(1003));
            assert_eq!(
                lab.send(CLIENTS, &path.request(0).bytes()).verdict,
                Verdict::Redirect
            );
        }

        // As if sets had been full of live connections.
        for name in ["conntrack", "conntrack6"] {
            let map = lab.map(name);
            let (key, value) = (map.key_size() as usize, map.value_size() as usize);
            map.update(&vec![1; key], &vec![1; value], MapFlags::ANY)
                .expect("an element");
        }

        let mut own = lab.datapath;
        let loaded = own
            .datapath
            .take()
            .expect("not given back yet")
            .into_loaded();
        assert_eq!(used(&loaded), all(&loaded), "after all that");
        clear(&loaded);
        assert_eq!(used(&loaded), BTreeSet::new(), "after it was emptied");
    }
}
