//! The run directory, `datapath.run_dir`: its lock, so that no two instances share one, and its permissions.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use log::warn;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::unistd::geteuid;

use super::SOCKET;

/// The lock's name in the directory. It holds the process's number.
const LOCK: &str = "lock";
/// The directory's owner alone.
const OWNER_ONLY: u32 = 0o700;
/// How often locking is tried again because the process that had the lock has removed the file meanwhile.
const TRIES: usize = 5;

/// The directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("datapath.run_dir {}: {reason}", path.display())]
pub struct Error {
    path: PathBuf,
    reason: String,
}

/// A run directory that this process has for itself. Dropping it removes our files, and the directory if
/// nothing else is in it.
pub struct RunDir {
    path: PathBuf,
    /// Released by the kernel when the process ends, even by a signal.
    _lock: Flock<File>,
}

impl RunDir {
    /// Makes the directory if it is not there, and locks it.
    ///
    /// # Errors
    /// When another instance has it, it belongs to somebody else, others may enter it, or it cannot be made.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |action: &str, error: &dyn std::fmt::Display| Error {
            path: path.into(),
            reason: format!(
                "cannot {action}: {error}; xdplb needs a directory of its own that it may write to"
            ),
        };
        for _ in 0..TRIES {
            make(path).map_err(|error| failed("make the directory", &error))?;
            check(path)?;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path.join(LOCK));
            let file = match file {
                // Removed by the process that had it before us.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(|error| failed("open the lock", &error))?,
            };
            let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((file, Errno::EWOULDBLOCK)) => return Err(taken(path, file)),
                Err((_, error)) => return Err(failed("lock it", &error)),
            };
            if !is_still(&lock, &path.join(LOCK)) {
                continue;
            }
            lock.set_len(0)
                .and_then(|()| writeln!(lock, "{}", std::process::id()))
                .map_err(|error| failed("write the lock", &error))?;
            return Ok(RunDir {
                path: path.into(),
                _lock: lock,
            });
        }
        Err(Error {
            path: path.into(),
            reason: "other instances start and stop here all the time; give each its own".into(),
        })
    }

    /// Where the control socket is.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        for name in [SOCKET, LOCK] {
            match fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    warn!("{}: {name} not removed: {error}", self.path.display());
                }
                _ => {}
            }
        }
        // Not if something else is in it, or if it is systemd's to remove.
        let _ = fs::remove_dir(&self.path);
    }
}

/// The directory for its owner alone, those above it as usual.
fn make(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(OWNER_ONLY).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// That a directory is ours, and ours alone. One that holds nothing of others is made so, since systemd makes
/// its RuntimeDirectory= for all to enter.
fn check(path: &Path) -> Result<(), Error> {
    let refuse = |reason: String| Error {
        path: path.into(),
        reason,
    };
    let found = match fs::symlink_metadata(path) {
        // Removed by another instance that stops.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|error| refuse(error.to_string()))?,
    };
    if !found.is_dir() {
        return Err(refuse(
            "is not a directory; remove it, or name another".into(),
        ));
    }
    let user = geteuid().as_raw();
    if found.uid() != user {
        return Err(refuse(format!(
            "belongs to user {}, and xdplb runs as user {user}; name a directory of its own",
            found.uid()
        )));
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let holds_others = fs::read_dir(path)
        .map_err(|error| refuse(error.to_string()))?
        .flatten()
        .any(|entry| ![SOCKET, LOCK].iter().any(|name| entry.file_name() == *name));
    if holds_others {
        return Err(refuse(format!(
            "others may enter it (mode {mode:o}), and it holds files that are not xdplb's: name a directory \
             of its own, or chmod {OWNER_ONLY:o} it"
        )));
    }
    fs::set_permissions(path, Permissions::from_mode(OWNER_ONLY))
        .map_err(|error| refuse(format!("cannot be closed to others: {error}")))
}

/// The process that holds the lock, for the operator.
fn taken(path: &Path, mut file: File) -> Error {
    let mut holder = String::new();
    let _ = file.read_to_string(&mut holder);
    let holder = match holder.trim() {
        "" => String::new(),
        process => format!(" (process {process})"),
    };
    Error {
        path: path.into(),
        reason: format!(
            "another xdplb{holder} runs with this directory; stop it, or give this one its own \
             datapath.run_dir"
        ),
    }
}

/// Whether the file that was locked is the one that has the name: a process that ends removes its lock.
fn is_still(file: &File, path: &Path) -> bool {
    let place =
        |found: io::Result<fs::Metadata>| found.map(|found| (found.dev(), found.ino())).ok();
    let locked = place(file.metadata());
    locked.is_some() && locked == place(fs::symlink_metadata(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A place for directories, removed when dropped.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let path = std::env::temp_dir().join(format!("xdplb-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a directory");
            Place(path)
        }

        fn join(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("a file").mode() & 0o7777
    }

    fn refused(path: &Path) -> String {
        match RunDir::open(path) {
            Ok(_) => panic!("{} was taken", path.display()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn one_directory_is_one_instance() {
        let place = Place::new("run-dir-lock");
        let path = place.join("run/of/its/own");
        let first = RunDir::open(&path).expect("a new directory");
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("lock")), 0o600);
        let error = refused(&path);
        let expected = format!("another xdplb (process {}) runs", std::process::id());
        assert!(
            error.contains(&expected) && error.contains("its own datapath.run_dir"),
            "{error}"
        );
        drop(first);
        assert!(!path.exists() && path.parent().is_some_and(Path::exists));
        drop(RunDir::open(&path).expect("free again"));
    }

    #[test]
    fn what_a_killed_process_left_is_taken_over() {
        let place = Place::new("run-dir-left");
        let path = place.join("run");
        fs::create_dir(&path).expect("a directory");
        fs::write(path.join("lock"), "4194304999\n").expect("a lock");
        fs::write(path.join("control.sock"), "").expect("a file");
        let taken = RunDir::open(&path).expect("nobody has it");
        let holder = fs::read_to_string(path.join("lock")).expect("a lock");
        assert_eq!(holder, format!("{}\n", std::process::id()));
        drop(taken);
        assert!(!path.exists());
    }

    #[test]
    fn a_lock_that_was_removed_is_none() {
        let place = Place::new("run-dir-removed");
        let path = place.join("lock");
        let first = File::create(&path).expect("a file");
        assert!(is_still(&first, &path));
        fs::remove_file(&path).expect("a file");
        assert!(!is_still(&first, &path));
        File::create(&path).expect("a file");
        assert!(!is_still(&first, &path));
    }

    #[test]
    fn others_are_kept_out_and_their_directories_left_alone() {
        let place = Place::new("run-dir-others");
        // As systemd makes it.
        let path = place.join("empty");
        fs::create_dir(&path).expect("a directory");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("a mode");
        let taken = RunDir::open(&path).expect("nothing is in it");
        assert_eq!(mode(&path), 0o700);
        drop(taken);

        let path = place.join("shared");
        fs::create_dir(&path).expect("a directory");
        fs::write(path.join("file"), "").expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("a mode");
        let error = refused(&path);
        assert!(
            error.contains("mode 755") && error.contains("chmod 700"),
            "{error}"
        );
        assert_eq!(mode(&path), 0o755);
        fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("a mode");
        drop(RunDir::open(&path).expect("nobody else may enter"));
        assert!(path.join("file").exists() && !path.join("lock").exists());

        let link = place.join("link");
        symlink(&path, &link).expect("a link");
        assert!(refused(&link).contains("is not a directory"));
        let file = place.join("file");
        fs::write(&file, "").expect("a file");
        assert!(refused(&file).contains("is not a directory"));
    }
}
