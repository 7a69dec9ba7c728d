//! The pin directory: where `bpftool` and the other commands find the maps, and the lock that makes one
//! directory one instance.
//!
//! Owns mounting the bpffs, the lock, and removing the pins that a killed instance left.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use libbpf_rs::{MapCore, Object};
use log::{info, warn};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{mount, MsFlags};
use nix::sys::statfs::{statfs, BPF_FS_MAGIC};

use super::Error;

/// The maps that are pinned in a directory, and the setting by which the operator names the directory.
#[derive(Debug, Clone, Copy)]
pub struct Contents {
    /// Every map that is pinned, under its own name.
    pub names: &'static [&'static str],
    /// The key or option that gives the directory.
    pub setting: &'static str,
}

/// The balancer's.
pub const BALANCER: Contents = Contents {
    names: &NAMES,
    setting: "datapath.pin_dir",
};

/// Every map that is pinned, under its own name.
pub const NAMES: [&str; 38] = [
    "settings",
    "filter",
    "vips",
    "services",
    "backends",
    "maglev",
    "nat_pool",
    "connections",
    "connections6",
    "conntrack",
    "conntrack6",
    "nat_ports",
    "nat_ports6",
    "interfaces",
    "interface_slots",
    "tx_ports",
    "traffic",
    "counters",
    "fragments",
    "answers",
    "recent",
    "recent6",
    "reply_sources",
    "epoch",
    "fw_prefixes",
    "fw_levels",
    "fw_steps",
    "fw_rules",
    "fw_hits",
    "allowed_sources",
    "dos_policies",
    "dos_hits",
    "dos_sources",
    "new_flows",
    "pending",
    "pending6",
    "past",
    "expired",
];

/// A pin directory that this process has for itself. Dropping it removes our pins, and the directory if
/// nothing else is in it.
pub struct PinDir {
    path: PathBuf,
    contents: Contents,
    /// Released by the kernel when the process ends, even by a signal.
    _lock: Flock<fs::File>,
}

impl PinDir {
    /// [`PinDir::open_for`] the balancer.
    ///
    /// # Errors
    /// As there.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_for(path, BALANCER)
    }

    /// Makes and locks the directory, mounting a bpffs if there is none, and removes the pins that an
    /// instance that was killed has left in it.
    ///
    /// # Errors
    /// When another instance has it, it is not on a bpffs, or it cannot be made.
    pub fn open_for(path: &Path, contents: Contents) -> Result<Self, Error> {
        let setting = contents.setting;
        mount_bpffs(path, setting)?;
        let failed = |action: &str, error: &dyn std::fmt::Display| Error::Pins {
            path: path.into(),
            reason: format!("cannot {action}: {error}; xdplb needs write access to {setting}"),
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| failed("make the directory", &error))?;
        let directory =
            fs::File::open(path).map_err(|error| failed("open the directory", &error))?;
        let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::errno::Errno::EWOULDBLOCK => Error::Pins {
                path: path.into(),
                reason: format!(
                    "another xdplb runs with this pin directory; stop it, or give this one its own {setting}"
                ),
            },
            other => failed("lock the directory", &other),
        })?;
        let pins = PinDir {
            path: path.into(),
            contents,
            _lock: lock,
        };
        if pins.remove_pins() > 0 {
            info!(
                "{}: removed the maps of an instance that did not stop by itself",
                path.display()
            );
        }
        Ok(pins)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Pins those maps of a loaded object that belong here, under their names.
    ///
    /// # Errors
    /// When a pin cannot be made. Those made before it go with this directory.
    pub fn pin_maps(&self, object: &mut Object) -> Result<(), Error> {
        for mut map in object.maps_mut() {
            let Some(name) = map
                .name()
                .to_str()
                .filter(|name| self.contents.names.contains(name))
                .map(str::to_owned)
            else {
                continue;
            };
            let path = self.path.join(&name);
            map.pin(&path).map_err(|error| Error::Pins {
                path,
                reason: format!(
                    "cannot pin the map here: {error}; is another program using the directory?"
                ),
            })?;
        }
        Ok(())
    }

    /// Pins those maps of another object whose names are listed, beside the ones that are pinned here under
    /// these names.
    ///
    /// # Errors
    /// When a pin cannot be made; none of them is there then.
    pub fn pin_beside(&self, object: &mut Object, names: &[&str]) -> Result<(), Error> {
        let maps = object.maps_mut();
        let listed = maps.filter_map(|map| {
            let name = names.iter().find(|name| map.name() == **name)?;
            Some((self.beside(name), map))
        });
        for (path, mut map) in listed {
            if let Err(error) = map.pin(&path) {
                self.remove_beside(names);
                return Err(Error::Pins {
                    path,
                    reason: format!("cannot pin the map here: {error}"),
                });
            }
        }
        Ok(())
    }

    /// Removes what [`PinDir::pin_beside`] has made.
    pub fn remove_beside(&self, names: &[&str]) {
        for name in names {
            let _ = fs::remove_file(self.beside(name));
        }
    }

    /// Has the maps that were pinned beside others take their places: at any time there is one of a name.
    pub fn take_over(&self, names: &[&str]) {
        for name in names {
            let path = self.path.join(name);
            if let Err(error) = fs::rename(self.beside(name), &path) {
                warn!(
                    "{}: the pin is still that of a map that is no longer in use: {error}; restart xdplb",
                    path.display()
                );
            }
        }
    }

    /// A bpffs takes no names with a dot.
    fn beside(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}_new"))
    }

    /// How many there were.
    fn remove_pins(&self) -> usize {
        self.remove_beside(self.contents.names);
        self.contents
            .names
            .iter()
            .filter(|name| fs::remove_file(self.path.join(name)).is_ok())
            .count()
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        self.remove_pins();
        if let Err(error) = fs::remove_dir(&self.path) {
            // Somebody else's pins are in it, or it is itself a mount point.
            if fs::read_dir(&self.path).is_ok_and(|mut entries| entries.next().is_some()) {
                warn!(
                    "{}: left in place, it holds files that are not xdplb's: {error}",
                    self.path.display()
                );
            }
        }
    }
}

/// A bpffs over the nearest existing parent of the directory, mounted where systemd does if missing.
fn mount_bpffs(path: &Path, setting: &str) -> Result<(), Error> {
    const USUAL: &str = "/sys/fs/bpf";

    let existing = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let is_bpffs = |path: &Path| statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
    if is_bpffs(existing) {
        return Ok(());
    }
    if path.starts_with(USUAL) && !is_bpffs(Path::new(USUAL)) {
        return mount(Some("bpf"), USUAL, Some("bpf"), MsFlags::empty(), None::<&str>)
            .inspect(|()| info!("mounted a bpffs at {USUAL}"))
            .map_err(|error| Error::Pins {
                path: USUAL.into(),
                reason: format!("no bpffs is mounted here and mounting one failed: {error}; as root: mount -t bpf bpf {USUAL}"),
            });
    }
    Err(Error::Pins {
        path: path.into(),
        reason: format!(
            "not on a bpffs; use a {setting} under {USUAL}, or mount one: mkdir -p {0} && mount -t bpf bpf {0}",
            path.display()
        ),
    })
}
