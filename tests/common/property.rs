//! Properties, checked over many cases. For the packet tables of both programs.

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};

/// Runs so many cases. Failures are shrunk and printed; nothing is written beside the sources.
pub fn check<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value)) {
    let config = Config {
        cases,
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
