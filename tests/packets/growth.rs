//! Maps that are made larger for a plan that needs more room: the same connections and counts, the same rules,
//! and nothing changes where the kernel refuses.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::net::if_::if_nametoindex;
use xdplb::config::{Limits, XdpMode};
use xdplb::datapath::pins::NAMES;
use xdplb::datapath::{self, Error};
use xdplb::state::{Desired, FamilyNeeds, Needs};

use crate::harness::dialog::Dialog;
use crate::harness::frame::{tcp, udp, Protocol, ACK, PSH, SYN};
use crate::harness::{at, own_mac, pause, Lab, Verdict, CLIENTS, OTHER, ROUTER};

/// All that a small file has: nat over IPv4.
const SMALL: &str = r#"
[[service]]
name = "web"
vip = "203.0.113.11"
protocol = ["tcp", "udp"]
port = 80
forward = "nat"
backend = [{ address = "10.0.0.2", port = 8080 }]
"#;

/// The maps that the small file has the smallest of.
const GROWN: [&str; 10] = [
    "connections6",
    "conntrack6",
    "dos_sources",
    "fw_hits",
    "fw_levels",
    "fw_rules",
    "fw_steps",
    "maglev",
    "nat_ports",
    "nat_ports6",
];

/// Room for what the large file has, and more claims than there is always room for.
fn limits() -> Limits {
    Limits {
        backends: 512,
        ..Lab::limits(100_000)
    }
}

/// A lab with the small file in force, in maps that have room for that.
fn small() -> Lab {
    let needs = Needs {
        slots: 251,
        largest: 251,
        ipv4: FamilyNeeds {
            vips: true,
            full_nat: false,
        },
        ..Needs::default()
    };
    Lab::with_needs(SMALL, &limits(), &needs)
}

/// The small file with both families, full-nat, policies, a firewall, and more backends.
fn large() -> String {
    let backends: Vec<String> = (1..=60)
        .map(|n| format!("{{ address = \"10.0.1.{n}\" }}"))
        .collect();
    let crowd: String = (0..5)
        .map(|n| {
            format!(
                "[[service]]\nname = \"crowd{n}\"\nvip = \"203.0.113.2{n}\"\nprotocol = \"tcp\"\nport = 80\n\
                 forward = \"nat\"\nbackend = [{}]\n",
                backends.join(", ")
            )
        })
        .collect();
    let rules: String = (0..200)
        .map(|n| {
            format!(
                "[[firewall.rule]]\naction = \"deny\"\nsource = \"192.0.2.{n}\"\nprotocol = \"tcp\"\n\
                 port = \"80-90\"\n"
            )
        })
        .collect();
    format!(
        r#"{SMALL}
[[service]]
name = "web6"
vip = "2001:db8:1::11"
protocol = ["tcp", "udp"]
port = 80
forward = "nat"
backend = [{{ address = "fd00::2", port = 8080 }}]
[[service]]
name = "full"
vip = ["203.0.113.12", "2001:db8:1::12"]
protocol = ["tcp", "udp"]
port = 80
forward = "full-nat"
backend = [{{ address = "10.0.0.3", port = 8080 }}, {{ address = "fd00::3", port = 8080 }}]
{crowd}
[firewall]
{rules}
[[dos]]
name = "few"
protocol = "udp"
limit = 1
burst = 5
action = "block"
"#
    )
}

fn id(map: &MapHandle) -> u32 {
    map.info().expect("what the kernel knows of a map").info.id
}

/// The kernel's id of every map.
fn ids(lab: &Lab) -> BTreeMap<&'static str, u32> {
    NAMES
        .into_iter()
        .map(|name| (name, id(&lab.map(name))))
        .collect()
}

fn pinned_ids(directory: &Path) -> BTreeMap<&'static str, u32> {
    let pinned = |name: &str| {
        let map = MapHandle::from_pinned_path(directory.join(name));
        map.unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    NAMES
        .into_iter()
        .map(|name| (name, id(&pinned(name))))
        .collect()
}

/// How many files there are in a directory.
fn files(directory: &Path) -> usize {
    std::fs::read_dir(directory).expect("the pins").count()
}

/// The maps that are others than before.
fn replaced(
    before: &BTreeMap<&'static str, u32>,
    after: &BTreeMap<&'static str, u32>,
) -> Vec<&'static str> {
    let names = before.keys().copied();
    names.filter(|name| before[name] != after[name]).collect()
}

/// What goes to the backend of a connection and comes back, in whole packets.
#[track_caller]
fn talk(lab: &Lab, dialog: &Dialog) {
    dialog.to_backend(lab, PSH | ACK);
    dialog.to_client(lab, PSH | ACK);
}

#[track_caller]
fn establish(lab: &Lab, protocol: Protocol, client: &str, vip: &str) -> Dialog {
    let dialog = Dialog::open(lab, protocol, at(client), at(vip));
    dialog.to_client(lab, SYN | ACK);
    talk(lab, &dialog);
    dialog
}

#[test]
fn a_file_that_needs_more_changes_no_connection_and_no_count() {
    let mut lab = small();
    let pins = lab.pin();
    let web = establish(&lab, Protocol::Tcp, "198.51.100.7:1000", "203.0.113.11:80");
    let dns = establish(&lab, Protocol::Udp, "198.51.100.7:1001", "203.0.113.11:80");
    let (before, counted, reasons) = (ids(&lab), lab.traffic(0), lab.reasons());

    lab.reload(&large());
    let after = ids(&lab);
    assert_eq!(replaced(&before, &after), GROWN);
    assert_eq!(pinned_ids(&pins), after);
    assert_eq!(files(&pins), NAMES.len());
    assert_eq!(lab.traffic(0), counted);
    assert_eq!(lab.reasons(), reasons);

    talk(&lab, &web);
    talk(&lab, &dns);
    let now = lab.traffic(0);
    assert_eq!(now.connections, counted.connections);
    assert_eq!(now.packets_in, counted.packets_in + 2);
    assert_eq!(now.packets_out, counted.packets_out + 2);

    // All that is new.
    for (client, vip) in [
        ("[2001:db8:c::7]:1000", "[2001:db8:1::11]:80"),
        ("198.51.100.7:1002", "203.0.113.12:80"),
        ("[2001:db8:c::7]:1002", "[2001:db8:1::12]:80"),
        ("198.51.100.7:1003", "203.0.113.20:80"),
        ("198.51.100.7:1003", "203.0.113.22:80"),
    ] {
        establish(&lab, Protocol::Tcp, client, vip);
    }
    for n in [0, 100, 199] {
        let client = at(&format!("192.0.2.{n}:1000"));
        let denied = tcp(client, at("203.0.113.11:80"), SYN).between(ROUTER, own_mac(CLIENTS));
        let verdict = lab.send(CLIENTS, &denied.bytes()).verdict;
        assert_eq!(verdict, Verdict::Drop("firewall"), "{n}");
    }
    let many =
        udp(at("198.51.100.9:1"), at("203.0.113.11:80"), b"one").between(ROUTER, own_mac(CLIENTS));
    let verdicts: Vec<Verdict> = (0..10)
        .map(|_| lab.send(CLIENTS, &many.bytes()).verdict)
        .collect();
    assert_eq!(verdicts[0], Verdict::Redirect);
    assert_eq!(verdicts[9], Verdict::Drop("source_blocked"));

    // And back: what is there stays.
    lab.reload(SMALL);
    assert_eq!(ids(&lab), after);
    talk(&lab, &web);
    talk(&lab, &dns);
    lab.reload(&large());
    assert_eq!(ids(&lab), after);
    talk(&lab, &web);
}

/// The same plan, for which only room is made: everything that packets are led by has to be in the new maps.
#[test]
fn without_a_change_all_packets_fare_as_before() {
    let rules = |first: u8| -> String {
        let rules = (first..first + 20).map(|n| {
            format!(
                "[[firewall.rule]]\nname = \"r{n}\"\naction = \"deny\"\nsource = \"192.0.2.{n}\"\nport = 80\n"
            )
        });
        format!("{SMALL}[firewall]\n{}", rules.collect::<String>())
    };
    // A ruleset after another is in the other half of the maps.
    for reloads in 1..=2 {
        let mut lab = small();
        for n in 0..reloads {
            lab.reload(&rules(10 * n));
        }
        let first = 10 * (reloads - 1);
        let verdicts = |lab: &Lab| -> Vec<Verdict> {
            let sources = (0..40).map(|n| at(&format!("192.0.2.{n}:1000")));
            let frames = sources.map(|source| {
                tcp(source, at("203.0.113.11:80"), SYN).between(ROUTER, own_mac(CLIENTS))
            });
            frames
                .map(|frame| lab.send(CLIENTS, &frame.bytes()).verdict)
                .collect()
        };
        let before = verdicts(&lab);
        let denied = before
            .iter()
            .filter(|verdict| **verdict == Verdict::Drop("firewall"));
        assert_eq!(denied.count(), 20);
        let hits = lab.hits(lab.rule_id(&format!("r{first}")));
        assert_eq!(hits.packets, 1);

        let maps = ids(&lab);
        let plan = Desired {
            needs: Needs {
                slots: 1 << 20,
                firewall: Some(limits().firewall_tables()),
                ..lab.desired.needs
            },
            ..lab.desired.clone()
        };
        lab.datapath.follow(&plan, &lab.settings).expect("room");
        assert_eq!(
            replaced(&maps, &ids(&lab)),
            ["fw_levels", "fw_rules", "fw_steps", "maglev"]
        );
        assert_eq!(verdicts(&lab), before);
        let hits = lab.hits(lab.rule_id(&format!("r{first}")));
        assert_eq!(hits.packets, 2);

        // The next rules go where those are not.
        lab.reload(&rules(10 * (reloads + 1)));
        let moved = usize::from(10 * (reloads + 1));
        for (n, verdict) in verdicts(&lab).into_iter().enumerate() {
            let denied = (moved..moved + 20).contains(&n);
            assert_eq!(verdict == Verdict::Drop("firewall"), denied, "{n}");
        }
    }
}

/// Full-nat before there is room for it: its claims go along.
#[test]
fn claims_on_ports_are_taken_over() {
    let mut lab = small();
    let full = SMALL.replace("\"nat\"", "\"full-nat\"");
    let without_room = |lab: &Lab| Desired {
        needs: Needs {
            ipv4: FamilyNeeds {
                vips: true,
                full_nat: false,
            },
            ..lab.desired.needs
        },
        ..lab.desired.clone()
    };
    // A plan of which the datapath is told less than it has.
    lab.plan(&full);
    let told = without_room(&lab);
    lab.datapath.apply(&told, &lab.settings).expect("apply");
    lab.limit_new_flows(u32::MAX);
    let small_map = id(&lab.map("nat_ports"));
    let open: Vec<Dialog> = (1000..1050)
        .map(|port| {
            let client = format!("198.51.100.7:{port}");
            establish(&lab, Protocol::Tcp, &client, "203.0.113.11:80")
        })
        .collect();
    let claims = |lab: &Lab| {
        let map = lab.map("nat_ports");
        let keys: Vec<Vec<u8>> = map.keys().collect();
        keys.into_iter()
            .map(|key| {
                let claim = map.lookup(&key, MapFlags::ANY).expect("lookup");
                (key, claim.expect("a claim"))
            })
            .collect::<BTreeMap<_, _>>()
    };
    let before = claims(&lab);
    assert_eq!(before.len(), 50);
    assert_eq!(id(&lab.map("nat_ports")), small_map);

    let plan = lab.desired.clone();
    lab.datapath.follow(&plan, &lab.settings).expect("room");
    assert_ne!(id(&lab.map("nat_ports")), small_map);
    assert_eq!(claims(&lab), before);
    for dialog in &open {
        talk(&lab, dialog);
    }
}

/// One that was taken before the tables were made larger, as the sweep's thread has it.
#[test]
fn a_sweeper_follows_to_the_new_tables() {
    let mut lab = small();
    let sweeper = lab.datapath.shared_sweeper().expect("a sweeper");
    lab.reload(&large());
    let six = Dialog::open(
        &lab,
        Protocol::Udp,
        at("[2001:db8:c::7]:1000"),
        at("[2001:db8:1::12]:80"),
    );
    assert!(lab.entry(&six.flow()).is_some());
    lab.set_timeouts(|timeouts| timeouts.udp = Duration::from_millis(1));
    pause(Duration::from_millis(100));
    let swept = datapath::lock(&sweeper)
        .sweep(&|_, _| true)
        .expect("a sweep");
    assert_ne!(swept.expired, 0);
    assert!(lab.entry(&six.flow()).is_none());
}

/// Each interface that packets come by runs the new program; one that is gone by then is no obstacle.
#[test]
fn interfaces_run_the_new_program() {
    let mut lab = small();
    lab.datapath
        .attach(CLIENTS, XdpMode::Generic)
        .expect("generic XDP");
    lab.datapath
        .attach(OTHER, XdpMode::Generic)
        .expect("generic XDP");
    let running = |name: &str| {
        let index = if_nametoindex(name).expect("an interface");
        let mut id = 0;
        // SAFETY: `id` is valid for the call, which writes it.
        let error = unsafe { libbpf_sys::bpf_xdp_query_id(index.cast_signed(), 0, &raw mut id) };
        assert_eq!(error, 0);
        id
    };
    let program = |lab: &Lab| {
        let mut info = libbpf_sys::bpf_prog_info::default();
        let mut length = size_of_val(&info) as u32;
        // SAFETY: `info` has `length` bytes, which the kernel writes.
        let error = unsafe {
            libbpf_sys::bpf_obj_get_info_by_fd(
                lab.datapath.program().as_fd().as_raw_fd(),
                (&raw mut info).cast(),
                &raw mut length,
            )
        };
        assert_eq!(error, 0);
        info.id
    };
    let before = program(&lab);
    assert_eq!((running("clients"), running("other")), (before, before));
    lab.reload(&large());
    let after = program(&lab);
    assert_ne!(before, after);
    assert_eq!((running("clients"), running("other")), (after, after));

    let gone = std::process::Command::new("ip")
        .args(["link", "delete", "other"])
        .status();
    assert!(gone.expect("ip").success());
    let plan = Desired {
        needs: Needs {
            slots: 1 << 20,
            ..lab.desired.needs
        },
        ..lab.desired.clone()
    };
    lab.datapath.follow(&plan, &lab.settings).expect("room");
    assert_ne!(program(&lab), after);
    assert_eq!(running("clients"), program(&lab));
}

#[test]
fn what_the_kernel_refuses_leaves_everything_as_it_was() {
    // More sources than any machine has memory for: nothing, as long as there is no policy.
    let limits = Limits {
        sources: u32::MAX,
        ..limits()
    };
    let mut lab = Lab::with_needs(SMALL, &limits, &Needs::default());
    let pins = lab.pin();
    let web = establish(&lab, Protocol::Tcp, "198.51.100.7:1000", "203.0.113.11:80");
    let (before, plan) = (ids(&lab), lab.desired.clone());
    lab.plan(&large());
    let wanted = lab.desired.clone();
    for _ in 0..2 {
        let refused = lab.datapath.follow(&wanted, &lab.settings);
        let error = refused.expect_err("no room for all sources");
        assert!(matches!(error, Error::Growth { .. }), "{error}");
        let said = error.to_string();
        for part in ["dos_sources", "conntrack6", "lower [limits]", "stop xdplb"] {
            assert!(said.contains(part), "{said}\nlacks {part}");
        }
    }
    assert_eq!(ids(&lab), before);
    assert_eq!(pinned_ids(&pins), before);
    assert_eq!(files(&pins), NAMES.len());
    talk(&lab, &web);
    // Back to the plan before, as after a reload that is refused, and on to another one.
    lab.datapath.apply(&plan, &lab.settings).expect("apply");
    lab.desired = plan;
    talk(&lab, &web);
    let (without, _) = large()
        .split_once("[[dos]]")
        .map(|(rest, dos)| (rest.to_owned(), dos.len()))
        .expect("a policy");
    lab.reload(&without);
    talk(&lab, &web);
    establish(
        &lab,
        Protocol::Tcp,
        "[2001:db8:c::7]:1000",
        "[2001:db8:1::11]:80",
    );
}

/// Something of somebody else has the name that a new map is pinned under until it takes the old one's place.
#[test]
fn a_pin_that_cannot_be_made_leaves_everything_as_it_was() {
    let mut lab = small();
    let pins = lab.pin();
    let web = establish(&lab, Protocol::Tcp, "198.51.100.7:1000", "203.0.113.11:80");
    let before = ids(&lab);
    let obstacle = pins.join("nat_ports6_new");
    std::fs::create_dir(&obstacle).expect("a directory in a bpffs");
    lab.plan(&large());
    let refused = lab.datapath.follow(&lab.desired, &lab.settings);
    let said = refused.expect_err("no pin").to_string();
    assert!(said.contains("nat_ports6_new"), "{said}");
    assert_eq!(ids(&lab), before);
    assert_eq!(pinned_ids(&pins), before);
    assert_eq!(files(&pins), NAMES.len() + 1);
    talk(&lab, &web);

    std::fs::remove_dir(&obstacle).expect("it is empty");
    lab.apply();
    assert_eq!(pinned_ids(&pins), ids(&lab));
    assert_eq!(files(&pins), NAMES.len());
    talk(&lab, &web);
}

/// There is room in all, but none that is in one piece.
#[test]
fn gaps_between_maglev_tables_are_no_obstacle() {
    let mut lab = small();
    let maps = ids(&lab);
    lab.plan(&large());
    // A plan of which the datapath is told less than it has.
    let told = Desired {
        needs: Needs {
            slots: 0,
            largest: 0,
            ..lab.desired.needs
        },
        ..lab.desired.clone()
    };
    lab.datapath.apply(&told, &lab.settings).expect("apply");
    assert!(replaced(&maps, &ids(&lab)).contains(&"maglev"));
    lab.limit_new_flows(u32::MAX);
    for n in 0..5 {
        let vip = format!("203.0.113.2{n}:80");
        establish(&lab, Protocol::Tcp, "198.51.100.7:1003", &vip);
    }
}
