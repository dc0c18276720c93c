//! Reports tests that this machine cannot run.

/// Prints that these tests are skipped, and why. If REQUIRE_ALL is set, as `integration-tests/run` does, and this
/// machine should be able to run the tests, the function panics. A test is then not skipped because a tool could not be
/// installed or because of a bug in this project.
pub fn skip(tests: &str, machine_can: bool) {
    let all_required = std::env::var_os("REQUIRE_ALL").is_some_and(|value| !value.is_empty());
    assert!(
        !(machine_can && all_required),
        "this machine should be able to run {tests}; set REQUIRE_ALL= to skip them"
    );
    eprintln!("\nSKIPPED, and counted as ignored: {tests}\n");
}
