//! Files that are there and that are not, and what is worth a warning in one.

use xdplb::config;

use crate::{marked, parse, service, with_backends, with_port, DATAPATH};

#[test]
fn warnings() {
    let dual = |backends: &str| {
        let rest = "vip = [\"203.0.113.11\", ¶\"2001:db8:1::11\"]\nprotocol = \"tcp\"\nport = 80";
        format!("{DATAPATH}{}{backends}", service("web", rest))
    };
    let one = "[[service.backend]]\naddress = \"10.0.5.2\"\n";
    let idle = "no backend that is up with a weight above 0";
    let header = |text: String| text.replacen("[[service]]", "¶[[service]]", 1);
    for (text, phrase) in [
        (dual(one), "no IPv6 backend is up with a weight above 0"),
        (
            dual(&format!(
                "{one}[[service.backend]]\naddress = \"2001:db8:5::2\"\nweight = 0\n"
            )),
            "no IPv6 backend is up with a weight above 0",
        ),
        (
            header(with_backends(&[])),
            "has no backend, so its packets are dropped; add a [[",
        ),
        (
            header(with_backends(&["address = \"10.0.5.2\"\nweight = 0"])),
            idle,
        ),
        (
            header(with_backends(&[
                "address = \"10.0.5.2\"\nstate = \"drain\"",
            ])),
            idle,
        ),
        (
            with_port("port = \"any\"\nbackend = [{ address = \"10.0.5.2\", port = ¶80 }]"),
            "leave this key out to keep the client's",
        ),
    ] {
        let (text, places) = marked(&text);
        let warnings = parse(&text).expect("valid").warnings;
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        let warning = warnings[0].to_string();
        assert!(
            warning.starts_with(&places[0]),
            "{warning} is not at {}",
            places[0]
        );
        assert!(warning.contains(phrase), "{warning}");
    }
    for (no_backend, fate) in [
        ("pass", "passed to the host's stack"),
        ("reject", "rejected"),
    ] {
        let text = with_port(&format!("port = 80\nno_backend = \"{no_backend}\""));
        let warning = parse(&text).expect("valid").warnings[0].to_string();
        assert!(
            warning.contains(&format!("so its packets are {fate};")),
            "{warning}"
        );
    }
    assert!(parse(&with_backends(&["address = \"10.0.5.2\""]))
        .expect("valid")
        .warnings
        .is_empty());
}

#[test]
fn files() {
    let directory = std::env::temp_dir().join(format!("xdplb-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for the test");
    let file = directory.join("lb.toml");
    std::fs::write(&file, DATAPATH).expect("a file for the test");
    assert!(config::load(&file).is_ok());

    std::fs::write(&file, b"[datapath]\n# gr\xc3\xb6\xffe\n").expect("a file for the test");
    let message = config::load(&file).expect_err("not UTF-8").to_string();
    assert_eq!(
        message,
        format!(
            "{}:2:6: this byte is not UTF-8; save the file as UTF-8",
            file.display()
        )
    );

    let message = config::load(&directory)
        .expect_err("a directory")
        .to_string();
    assert!(
        message.contains("directory") && message.contains("name the file in it"),
        "{message}"
    );

    let absent = directory.join("absent.toml");
    let message = config::load(&absent).expect_err("absent").to_string();
    assert!(
        message.starts_with(&format!("{}: ", absent.display())),
        "{message}"
    );
    assert!(
        message.contains("No such file") && message.contains("--config"),
        "{message}"
    );
    std::fs::remove_dir_all(&directory).expect("ours to remove");
}
