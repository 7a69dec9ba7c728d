//! The contents of `firewall.blocklists`, as the running instance has them.
//!
//! Owns the rule for a list that cannot be used on a reload: its previous contents stay in force. Lists are
//! often made by another program, and a fault in one must not hold up a change to a service.

use log::info;

use crate::config::blocklist::{self, Contents};
use crate::config::{self, NamedFile};
use crate::prefix;

/// Reads these blocklists. In place of one that cannot be used go its contents in `known`; the faults of such
/// lists come back beside the contents, for the operator.
///
/// # Errors
/// With the faults of those that are not in `known` either.
pub fn reload(
    lists: &[NamedFile],
    known: &Contents,
) -> Result<(Contents, Vec<String>), config::Error> {
    let mut contents = Contents::new();
    let mut kept = Vec::new();
    let mut faults = Vec::new();
    for (path, read) in blocklist::read(lists, known) {
        match (read, known.get(path)) {
            (Ok(prefixes), _) => {
                contents.insert(path.clone(), prefixes);
            }
            (Err(fault), Some(before)) => {
                kept.extend(fault.to_string().lines().map(str::to_owned));
                kept.push(format!(
                    "blocklist {}: keeping the previous {}",
                    path.display(),
                    prefix::count(before.len())
                ));
                contents.insert(path.clone(), before.clone());
            }
            (Err(fault), None) => faults.push(fault),
        }
    }
    if faults.is_empty() {
        Ok((contents, kept))
    } else {
        Err(config::Error::Blocklists(faults))
    }
}

/// Logs which lists are other than before, and how long they are.
pub fn log_changes(before: &Contents, now: &Contents) {
    for (path, prefixes) in now {
        if before.get(path) != Some(prefixes) {
            info!(
                "blocklist {}: {}",
                path.display(),
                prefix::count(prefixes.len())
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;

    const FILE: &str = "
[datapath]
interfaces = [\"eth0\"]
[firewall]
blocklists = [\"a.txt\", \"b.txt\"]
";

    /// A directory of this test's own with both lists, removed when dropped.
    struct Lists(PathBuf);

    impl Lists {
        fn new(name: &str) -> Lists {
            let directory =
                std::env::temp_dir().join(format!("xdplb-{name}-{}", std::process::id()));
            fs::create_dir_all(&directory).expect("a directory");
            let lists = Lists(directory);
            lists.write("a.txt", "192.0.2.0/24\n");
            lists.write("b.txt", "198.51.100.7\n2001:db8::/32\n");
            lists
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).expect("a list");
        }

        fn reload(&self, known: &Contents) -> Result<(Contents, Vec<String>), config::Error> {
            let file = self.0.join("lb.toml");
            let loaded = config::parse(FILE, &file).expect("a file");
            reload(&loaded.blocklists, known)
        }
    }

    impl Drop for Lists {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn lengths(contents: &Contents) -> Vec<usize> {
        contents.values().map(|prefixes| prefixes.len()).collect()
    }

    #[test]
    fn a_list_that_is_spoilt_stays_as_it_was() {
        let lists = Lists::new("spoilt");
        let (before, kept) = lists.reload(&Contents::new()).expect("both lists");
        assert!(kept.is_empty());
        assert_eq!(lengths(&before), [1, 2]);
        lists.write("a.txt", "192.0.2.0/24\n203.0.113.0/24\n");
        lists.write("b.txt", "198.51.100.7\nexample\n");
        let (now, kept) = lists.reload(&before).expect("the former list");
        assert_eq!(lengths(&now), [2, 2]);
        let place = format!("{}:2:1: ", lists.0.join("b.txt").display());
        assert!(kept[0].starts_with(&place), "{kept:?}");
        assert_eq!(
            kept[1..],
            ["blocklist b.txt: keeping the previous 2 prefixes"]
        );
        let b = PathBuf::from("b.txt");
        assert!(Arc::ptr_eq(&now[&b], &before[&b]));
        fs::remove_file(lists.0.join("b.txt")).expect("a list");
        let (again, kept) = lists.reload(&now).expect("the former list");
        assert_eq!((lengths(&again), kept.len()), (vec![2, 2], 2));
    }

    #[test]
    fn a_list_without_a_former_one_is_refused() {
        let lists = Lists::new("refused");
        lists.write("b.txt", "198.51.100.7\n\n  example\n");
        let a = PathBuf::from("a.txt");
        let known = Contents::from([(a, Arc::from([]))]);
        let error = lists.reload(&known).expect_err("a bad line").to_string();
        let place = format!("{}:3:3: ", lists.0.join("b.txt").display());
        assert!(
            error.starts_with(&place) && error.lines().count() == 1,
            "{error}"
        );
    }
}
