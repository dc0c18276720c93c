//! Reports tests that are skipped because this machine cannot run them.

/// Prints that the tests described in `tests` are skipped. Panics instead if REQUIRE_ALL is set, which
/// `integration-tests/run` does by default, and `machine_can` states that this machine should be able to run the tests.
/// A missing tool or a bug of this project therefore never causes tests to be skipped silently.
pub fn skip(tests: &str, machine_can: bool) {
    let all_required = std::env::var_os("REQUIRE_ALL").is_some_and(|value| !value.is_empty());
    assert!(
        !(machine_can && all_required),
        "this machine should be able to run {tests}; set REQUIRE_ALL= to skip them"
    );
    eprintln!("\nSKIPPED, and counted as ignored: {tests}\n");
}
