//! Tests of the Compose files. The tests cannot run the container images. With other programs, they check the users,
//! capabilities, folders and relabel rules that the Compose files set.

use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::eventually;
use crate::harness::postgres::Postgres;
use crate::harness::prometheus::Prometheus;
use crate::{contrib, succeeds, yaml};

fn services() -> Value {
    yaml(&contrib().join("compose/compose.yaml"))["services"].take()
}

pub fn compose_images_are_pinned_and_hardened() {
    let folder = contrib().join("compose");
    let compose = yaml(&folder.join("compose.yaml"));
    let services = compose["services"].as_object().unwrap();
    assert_eq!(
        services.keys().collect::<Vec<_>>(),
        ["alertmanager", "alloy", "grafana", "loki", "postgres", "prometheus"]
    );
    for (name, service) in services {
        let (image, tag) = service["image"].as_str().unwrap().rsplit_once(':').expect("a tag");
        // A version of PostgreSQL has two numbers. The versions of the other images have three numbers.
        let parts = if name == "postgres" { 2 } else { 3 };
        assert!(tag.split('.').count() == parts, "{image}: {tag} is not one version");
        // `<<` is the YAML merge key: each service must contain `<<: *hardened`, the shared security settings.
        let hardened = &service["<<"];
        assert_eq!(hardened["read_only"], true, "{name}");
        assert_eq!(hardened["security_opt"][0], "no-new-privileges:true", "{name}");
        assert_eq!(hardened["cap_drop"][0], "ALL", "{name}");
        assert!(service["healthcheck"]["test"].is_array(), "{name}");
        for volume in service["volumes"].as_array().unwrap() {
            match volume.as_str() {
                // Docker creates a folder if the source of a mount in the short notation (`SOURCE:TARGET`) is missing.
                // The Compose file therefore uses the short notation only for files of this repository and for volumes.
                Some(short) => {
                    let source = short.split(':').next().unwrap();
                    let is_ours = source.starts_with('.') && folder.join(source).exists();
                    let is_volume = compose["volumes"].as_object().unwrap().contains_key(source);
                    assert!(is_ours || is_volume, "{name}: {source}");
                }
                None => {
                    assert_eq!(volume["bind"]["create_host_path"], false, "{name}: {volume}");
                    assert_eq!(volume["read_only"], true, "{name}: {volume}");
                }
            }
        }
    }
    for file in ["loki.yml", "grafana/datasources/datasources.yml", "grafana/dashboards/dashboards.yml"] {
        assert!(yaml(&folder.join(file)).is_object(), "{file}");
    }
    let example = std::fs::read_to_string(folder.join(".env.example")).unwrap();
    for variable in
        ["GRAFANA_ADMIN_PASSWORD=\n", "GRAFANA_ADMIN_USER=admin\n", "BITCOIN_DATA_DIR=/home/node/.bitcoin\n"]
    {
        assert!(example.contains(variable), "{variable}");
    }
    // The file .env.example must contain every variable of the Compose files with its default value.
    for file in ["compose.yaml", "exporters.yaml", "block-store.yaml", "node.yaml"] {
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        for variable in text.split("${").skip(1).map(|rest| rest.split('}').next().unwrap()) {
            let (name, default) = variable.split_once(":-").unwrap_or((variable, ""));
            let line = format!("\n{}={default}\n", name.split(":?").next().unwrap());
            assert!(name == "BUILD_REVISION" || example.contains(&line), "{file}: {variable}");
        }
    }
}

/// By default, initdb writes lines to `pg_hba.conf` that trust every user of the machine on loopback. PostgreSQL's
/// image appends a line that requires a password, but the first line that matches applies. The Compose file must
/// therefore pass arguments to initdb that make every line require a password.
pub fn postgres_trusts_no_user_of_the_machine() {
    let postgres = services()["postgres"].take();
    let arguments: Vec<_> = postgres["environment"]["POSTGRES_INITDB_ARGS"].as_str().into_iter().collect();
    let cluster = Postgres::initialize(&arguments);
    let rules = std::fs::read_to_string(cluster.data().join("pg_hba.conf")).unwrap();
    let hosts = rules.lines().filter(|line| line.starts_with("host"));
    let methods: Vec<_> = hosts.filter_map(|line| line.split_whitespace().last()).collect();
    assert!(!methods.is_empty() && methods.iter().all(|method| *method == "scram-sha-256"), "{rules}");
}

/// In Alloy's image, the data folder belongs to the user and group 473 and has the mode 770. A new volume that is
/// mounted on this folder gets the same owner and mode. With the user and the capabilities in the Compose file, Alloy
/// must be able to write to this folder and to read another user's debug.log, but not to change the debug.log.
pub fn alloy_may_keep_its_positions_and_read_what_belongs_to_others() {
    let alloy = services()["alloy"].take();
    let (user, group) = alloy["user"].as_str().unwrap().split_once(':').expect("user:group");
    let granted: String = alloy["cap_add"]
        .as_array()
        .unwrap()
        .iter()
        .map(|capability| format!(",+{}", capability.as_str().unwrap().to_lowercase()))
        .collect();
    let dir = TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let make = |name: &str, owner: u32, mode: u32| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(mode)).unwrap();
        chown(&folder, Some(owner), Some(owner)).unwrap();
        folder
    };
    let (data, node) = (make("alloy", 473, 0o770), make("node", 64321, 0o700));
    let log = node.join("debug.log");
    std::fs::write(&log, "").unwrap();
    std::fs::set_permissions(&log, PermissionsExt::from_mode(0o600)).unwrap();
    chown(&log, Some(64321), Some(64321)).unwrap();
    let script = "mkdir -p \"$1\"/loki.source.journal.exporters && : > \"$1\"/loki.source.journal.exporters/positions.yml \
                  && cat \"$2\" && ! cp /dev/null \"$2\"";
    succeeds(
        Command::new("setpriv")
            .args([format!("--reuid={user}"), format!("--regid={group}")])
            .args(["--clear-groups", "--no-new-privs", "--inh-caps=-all"])
            .arg(format!("--bounding-set=-all{granted}"))
            .args(["sh", "-c", script, "sh"])
            .args([data, log]),
    );
}

/// The relabel rules in a block of config.alloy, as Prometheus' relabel rules. Alloy uses Prometheus' code for its
/// relabel rules.
fn relabel_rules(block: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(contrib().join("compose/config.alloy")).unwrap();
    let body = text.split_once(&format!("{block} {{\n")).expect("the block").1.split_once("\n}").unwrap().0;
    let rules = body.split("rule {").skip(1).map(|rule| rule.split_once('}').unwrap().0);
    rules
        .map(|rule| {
            let settings = rule.lines().filter_map(|line| line.split_once('='));
            // The attributes' values in config.alloy are valid JSON.
            settings
                .map(|(name, value)| (name.trim().to_string(), serde_json::from_str(value.trim()).unwrap()))
                .collect::<serde_json::Map<String, Value>>()
                .into()
        })
        .collect()
}

/// The relabel rules must set the label `job`, because Alloy sets `job` to the name of the Alloy component before it
/// applies the rules, and overwrites a `job` in `labels`.
pub fn lines_of_the_journal_have_their_labels() {
    let line = |(place, (unit, tag)): (usize, (&str, &str))| {
        json!({"targets": [format!("127.0.0.1:{}", place + 1)], "labels": {
            "__journal__systemd_unit": unit,
            "__journal_container_tag": tag,
            "__journal_priority_keyword": "info",
            "job": "loki.source.journal.exporters",
        }})
    };
    // The journal entries come from the exporters' units, from another unit, from a container of exporters.yaml, and
    // from another container.
    let units = [
        ("bitcoind-ipc-exporter.service", ""),
        ("bitcoind-ipc-exporter@signet.service", ""),
        ("docker.service", "bitcoind-usdt-exporter"),
        ("docker.service", "another"),
        ("ssh.service", ""),
    ];
    let config = json!({"scrape_configs": [{
        "job_name": "journal",
        "scrape_interval": "1h",
        "static_configs": units.into_iter().enumerate().map(line).collect::<Vec<_>>(),
        "relabel_configs": relabel_rules("loki.relabel \"journal\""),
    }]});
    let prometheus = Prometheus::start(&config.to_string());
    let targets = eventually("the targets are loaded", || {
        let targets = prometheus.api("targets?state=active").unwrap()["activeTargets"].take();
        (!targets.as_array().unwrap().is_empty()).then_some(targets)
    });
    let mut labels: Vec<_> =
        targets.as_array().unwrap().iter().map(|target| target["labels"].clone()).collect();
    // Prometheus adds the label `instance`, which Alloy does not add.
    labels.iter_mut().for_each(|labels| drop(labels.as_object_mut().unwrap().remove("instance")));
    labels.sort_by_key(|labels| labels["unit"].to_string());
    let expected = |unit: &str| json!({"job": "bitcoind-exporter", "level": "info", "unit": unit});
    let expected = [units[0].0, units[1].0, units[2].1].map(expected);
    let tags = ["ipc", "usdt"].map(|name| {
        let service = yaml(&contrib().join("compose/exporters.yaml"))["services"]
            [format!("bitcoind-{name}-exporter")]
        .take();
        assert_eq!(service["logging"]["driver"], "journald");
        service["logging"]["options"]["tag"].as_str().unwrap().to_string()
    });
    assert_eq!(tags, ["bitcoind-ipc-exporter", "bitcoind-usdt-exporter"]);
    labels.sort_by_key(|labels| labels["unit"].to_string());
    let mut expected = expected.to_vec();
    expected.sort_by_key(|labels| labels["unit"].to_string());
    assert_eq!(labels, expected);
}

/// Operators create files with secrets in their clone of this repository. Git must ignore these files, and they must
/// not be in the build context of the container images.
pub fn secrets_stay_out_of_git_and_images() {
    let root = contrib().with_file_name("");
    let secrets =
        ["contrib/compose/.env", "contrib/alertmanager/smtp-password", "contrib/prometheus/targets/usdt.yml"];
    for secret in secrets {
        succeeds(Command::new("git").current_dir(&root).args(["check-ignore", "--quiet", secret]));
    }
    let ignored = std::fs::read_to_string(contrib().join("Containerfile.dockerignore")).unwrap();
    for secret in secrets {
        let folders = secret.match_indices('/').map(|(at, _)| &secret[..at]);
        let is_ignored = folders.clone().any(|folder| ignored.lines().any(|line| line == folder));
        assert!(is_ignored, "{secret} is in the build's context");
    }
}
