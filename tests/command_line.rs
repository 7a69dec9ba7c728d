//! Commands that need neither root nor a datapath: completions, manual pages, and the exit status of a
//! command line or a file that is wrong.

use std::path::PathBuf;
use std::process::{Command, Output};

fn xdplb(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xdplb"))
        .args(arguments)
        .output()
        .expect("the program that cargo built")
}

/// A path of this test's own, removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let name = format!("xdplb-command-line-{}-{name}", std::process::id());
        Directory(std::env::temp_dir().join(name))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is left in the directory for such files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = xdplb(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = String::from_utf8(output.stdout).expect("UTF-8");
        for word in ["check", "unblock", "completions", "pin-dir", "watch"] {
            assert!(script.contains(word), "{shell} does not complete {word}");
        }
    }
}

/// A shell that reads the script completes with it.
#[test]
fn bash_completes() {
    let script = r#"
        set -eu
        source <("$0" completions bash)
        COMP_WORDS=(xdplb list --ra) COMP_CWORD=2 COMPREPLY=()
        _xdplb xdplb --ra list
        echo "${COMPREPLY[@]}"
    "#;
    let output = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_xdplb")])
        .output()
        .expect("bash, which tests need: apt-get install bash");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "--rate\n",
        "{said}"
    );
}

#[test]
fn manual_pages_are_written() {
    let directory = Directory::new("man");
    let inside = format!("{}/share/man8", directory.path());
    let output = xdplb(&["man", &inside]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(output.stdout.is_empty());
    let page = |name: &str| {
        let path = PathBuf::from(&inside).join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let whole = page("xdplb.8");
    for part in [".TH xdplb 8 ", "xdplb\\-list(8)", "SIGHUP", "Exit status"] {
        assert!(whole.contains(part), "{whole}\nlacks {part}");
    }
    assert!(page("xdplb-list.8").contains("\\-\\-rate"));
    assert!(page("xdplb-dos-unblock.8").contains("ADDR"));
    // One for each command that the help shows.
    let help = String::from_utf8(xdplb(&["--help"]).stdout).expect("UTF-8");
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let mut count = 0;
    for line in commands.take_while(|line| !line.is_empty()) {
        let Some(name) = line
            .split_whitespace()
            .next()
            .filter(|name| *name != "help")
        else {
            continue;
        };
        assert!(
            page(&format!("xdplb-{name}.8")).starts_with(".ie"),
            "{name}"
        );
        count += 1;
    }
    assert!(count >= 10, "{help}");
}

#[test]
fn the_exit_status_tells_whose_fault_it_is() {
    let directory = Directory::new("status");
    std::fs::create_dir_all(&directory.0).expect("a directory for the test");
    let file = |name: &str, text: &str| {
        let path = directory.0.join(name);
        std::fs::write(&path, text).expect("a file for the test");
        path.to_str().expect("UTF-8").to_owned()
    };
    let wrong = file("wrong.toml", "[datapath]\n");
    let mut steps =
        String::from("[datapath]\ninterfaces = [\"lo\"]\n[limits]\nfirewall_rules = 300\n");
    for port in 1..=300 {
        steps.push_str(&format!(
            "[[firewall.rule]]\naction = \"deny\"\nprotocol = \"tcp\"\nsource_port = {port}\n\
             port = \"{port}-65535\"\n"
        ));
    }
    let steps = file("steps.toml", &steps);
    let taken = file("taken", "");
    let missing = format!("{}/missing.toml", directory.path());
    for (arguments, status, says) in [
        (&["--version"][..], 0, ""),
        (&["help", "list"], 0, ""),
        (&[], 2, "--config FILE or a command is required"),
        (&["--config"], 2, "a value is required"),
        (&["nothing"], 2, "unrecognized subcommand 'nothing'"),
        (&["list", "--rates"], 2, "'--rates'"),
        (&["completions", "tcsh"], 2, "[possible values: bash"),
        (&["man"], 2, "<DIR>"),
        (&["decap"], 2, "--interface <INTERFACE>"),
        (
            &["decap", "--interface", "lo", "--gue-port", "06080"],
            2,
            "from 1 to 65535",
        ),
        (
            &["decap", "--interface", "lo", "--gue-port", "+6080"],
            2,
            "from 1 to 65535",
        ),
        (
            &["decap", "--interface", "lo", "--from", "10.0.0.0/08"],
            2,
            "write 10.0.0.0/8",
        ),
        (
            &["check", "--config", &missing],
            2,
            "create it, or name another",
        ),
        (
            &["check", "--config", &wrong],
            2,
            "wrong.toml:1:1: datapath: interfaces is missing",
        ),
        (&["check", "--config", &steps], 2, "steps"),
        (&["--config", &missing], 2, "create it, or name another"),
        (
            &["--config", &wrong],
            2,
            "wrong.toml:1:1: datapath: interfaces is missing",
        ),
        (
            &["man", &taken],
            1,
            "name a directory that this user can write to",
        ),
    ] {
        let output = xdplb(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: no {says:?} in: {said}");
        assert_eq!(said.is_empty(), status == 0, "{arguments:?}: {said}");
    }
}
