//! Reports tests that this machine cannot run.

/// Reports skipped tests and their requirements. `integration-tests/run` sets REQUIRE_ALL. Then this panics if the machine could run the
/// tests, so that none is skipped because a tool could not be installed or because of a bug in this project.
pub fn skip(tests: &str, machine_can: bool) {
    let all_required = std::env::var_os("REQUIRE_ALL").is_some_and(|value| !value.is_empty());
    assert!(
        !(machine_can && all_required),
        "this machine can run {tests}; REQUIRE_ALL= to skip them all the same"
    );
    eprintln!("\nSKIPPED, and counted as ignored: {tests}\n");
}
