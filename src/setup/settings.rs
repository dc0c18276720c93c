//! Parses the settings of a node, from its arguments and its configuration file `bitcoin.conf`.

/// The settings of one node (not of setup or the exporter), from its command line and its `bitcoin.conf`, for the chain
/// on which the node runs.
#[derive(Default)]
pub struct Settings {
    /// Pairs of name and value. If a setting occurs several times, its first pair has the value that the node uses.
    values: Vec<(String, String)>,
    /// Whether the configuration file includes other files (`includeconf`), which setup does not read.
    pub includes_files: bool,
}

impl Settings {
    /// The settings in the node's arguments and in `conf`, the text of `bitcoin.conf`, for the node's `chain`.
    pub fn new(arguments: &[String], conf: &str, chain: &str) -> Self {
        let arguments = arguments.iter().rev().filter_map(|argument| argument.strip_prefix('-'));
        let arguments = arguments.map(|text| pair(text.strip_prefix('-').unwrap_or(text)));
        let (mut section, mut of_chain, mut of_all) = (String::new(), Vec::new(), Vec::new());
        let mut includes_files = false;
        for line in conf.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name.to_string();
            } else if !line.is_empty() {
                let (name, value) = pair(line);
                let (section, name) = name.split_once('.').unwrap_or((&section, &name));
                includes_files |= name == "includeconf";
                // On chains other than mainnet, Bitcoin Core uses only an `rpcport` in the chain's section.
                let is_for_all = section.is_empty() && (chain == "main" || name != "rpcport");
                if section == chain {
                    of_chain.push((name.to_string(), value));
                } else if is_for_all {
                    of_all.push((name.to_string(), value));
                }
            }
        }
        Settings { values: arguments.chain(of_chain).chain(of_all).collect(), includes_files }
    }

    /// All values of this setting, first the value that the node uses.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.values.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a setting that the node uses; `None` if the setting is not set.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }
}

/// Splits a setting into name and value; `noNAME` becomes `NAME=0`.
fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').map_or((text, "1"), |(name, value)| (name.trim(), value.trim()));
    match name.strip_prefix("no") {
        Some(name) if value != "0" => (name.into(), "0".into()),
        _ => (name.into(), value.into()),
    }
}

#[cfg(test)]
#[test]
fn arguments_precede_the_section_of_the_chain() {
    let conf = "rpcport=1 # mainnet\nrpcauth=a:1\nnoserver=1\nsignet.rpcport=2\n[signet]\nrpcauth = b:2\n[test]\nrpcport=4\n";
    let values = |arguments: &[&str], chain: &str, name: &str| -> Vec<String> {
        let arguments: Vec<String> = arguments.iter().map(|text| text.to_string()).collect();
        Settings::new(&arguments, conf, chain).all(name).into_iter().map(String::from).collect()
    };
    assert_eq!(values(&[], "main", "rpcport"), ["1"]);
    assert_eq!(values(&[], "signet", "rpcport"), ["2"]);
    assert!(values(&[], "regtest", "rpcport").is_empty());
    assert_eq!(values(&["bitcoind", "-rpcport=8", "--rpcport=9"], "signet", "rpcport"), ["9", "8", "2"]);
    assert_eq!(values(&["-server"], "signet", "rpcauth"), ["b:2", "a:1"]);
    assert_eq!(values(&["-server"], "signet", "server"), ["1", "0"]);
}
