//! `xdplb check` as it is run: its exit status and its messages about files that the configuration names.
//! None needs root.

use std::path::PathBuf;
use std::process::{Command, Output};

/// A directory with a configuration and its blocklist, removed at the end.
struct Files(PathBuf);

impl Files {
    fn new(name: &str, config: &str, blocklist: &str) -> Files {
        let name = format!("xdplb-check-{}-{name}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a directory for the test");
        std::fs::write(directory.join("lb.toml"), config).expect("a file for the test");
        std::fs::write(directory.join("list.txt"), blocklist).expect("a file for the test");
        Files(directory)
    }

    fn check(&self, options: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_xdplb"))
            .args(["check", "--config"])
            .arg(self.0.join("lb.toml"))
            .args(options)
            .output()
            .expect("the program that cargo built")
    }

    /// Exit status 2, nothing but these lines on stderr.
    #[track_caller]
    fn refused(&self, lines: &[&str]) {
        let output = self.check(&[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(output.stdout.is_empty());
        let said = said.strip_prefix("xdplb: ").expect("the program's name");
        let directory = format!("{}/", self.0.display());
        let found: Vec<String> = said
            .lines()
            .map(|line| line.replace(&directory, ""))
            .collect();
        assert_eq!(found.len(), lines.len(), "{said}");
        for (found, line) in found.iter().zip(lines) {
            assert!(found.starts_with(line), "{found}\nis not {line}");
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // What cannot be removed is left in the directory for such files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const CONFIG: &str =
    "[datapath]\ninterfaces = [\"eth0\"]\n[firewall]\nblocklists = [\"list.txt\"]\n";

#[test]
fn a_blocklist_beside_the_file() {
    let files = Files::new("good", CONFIG, "192.0.2.0/24 # test\n2001:db8::/32\n");
    let output = files.check(&[]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("  list.txt   2\n"), "{text}");
    let output = files.check(&["--json"]);
    let view: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(view["firewall"]["blocklists"][0]["prefixes"], 2);
}

#[test]
fn a_blocklist_with_faults() {
    let files = Files::new("bad", CONFIG, "192.0.2.0/24\n  192.0.2.1/24\nlocalhost\n");
    files.refused(&[
        "list.txt:2:3: \"192.0.2.1/24\" has bits set beyond its length; write 192.0.2.0/24",
        "list.txt:3:1: \"localhost\" is not a prefix; write an address",
    ]);
    std::fs::remove_file(files.0.join("list.txt")).expect("ours to remove");
    files.refused(&[
        "lb.toml:4:15: firewall: blocklists names list.txt: No such file or directory (os error 2); \
         create it, or take it out of this list",
    ]);
}

#[test]
fn rules_that_do_not_fit() {
    let mut config = format!("{CONFIG}[limits]\nfirewall_rules = 300\n");
    for port in 1..=300 {
        config.push_str(&format!(
            "[[firewall.rule]]\naction = \"deny\"\nprotocol = \"tcp\"\nsource_port = {port}\n\
             port = \"{port}-65535\"\n"
        ));
    }
    let files = Files::new("steps", &config, "");
    files.refused(&["the rules of the firewall take more than the 2464 steps that limits"]);
}
