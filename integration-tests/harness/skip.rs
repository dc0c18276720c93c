//! What a machine cannot run is skipped.

/// Reports tests that are skipped, and what they need. `integration-tests/run` sets REQUIRE_ALL: then it fails if the machine
/// could run them, so that nothing is skipped for a tool that could not be got, or for a fault of ours.
pub fn skip(tests: &str, machine_can: bool) {
    let all_required = std::env::var_os("REQUIRE_ALL").is_some_and(|value| !value.is_empty());
    assert!(
        !(machine_can && all_required),
        "this machine can run {tests}; REQUIRE_ALL= to skip them all the same"
    );
    eprintln!("\nSKIPPED, and counted as ignored: {tests}\n");
}
