//! Searches of many cases: properties, and how much of a search is made. For the packet tables of both
//! programs, and for the model of the firewall.

use std::sync::OnceLock;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};

/// Runs so many cases. Failures are shrunk and printed; nothing is written beside the sources.
pub fn check<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value)) {
    let config = Config {
        cases: cases.div_ceil(one_in() as u32),
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(strategy, |value| {
        test(value);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// One case of so many is tried: XDPLB_TESTS_ONE_IN, where every packet takes ten times as long as elsewhere,
/// and all of them otherwise.
pub fn one_in() -> usize {
    static ONE_IN: OnceLock<u16> = OnceLock::new();
    let one_in = ONE_IN.get_or_init(|| match std::env::var("XDPLB_TESTS_ONE_IN") {
        Ok(text) => match text.parse() {
            Ok(number) if number > 0 => number,
            _ => panic!("XDPLB_TESTS_ONE_IN={text}: it is a number from 1 to 65535"),
        },
        Err(_) => 1,
    });
    usize::from(*one_in)
}
