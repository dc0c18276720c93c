//! Tests of the files in contrib/kubernetes, without a Kubernetes cluster.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::{contrib, succeeds, yaml};

/// `python` is the path of a Python interpreter with the packages in integration-tests/kubernetes/requirements.txt.
pub fn kubernetes_files_match_the_schemas(python: &OsStr) {
    let validate = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration-tests/kubernetes/validate.py");
    succeeds(Command::new(python).arg("-B").arg(validate).arg(contrib().join("kubernetes")));
}

pub fn prometheus_rules_are_up_to_date() {
    let (folder, generated) = (contrib().join("kubernetes"), TempDir::new().unwrap());
    succeeds(Command::new(folder.join("generate-rules")).arg(generated.path()));
    for name in ["alerts", "recording"] {
        let file = format!("prometheusrule-{name}.yaml");
        let committed = std::fs::read_to_string(folder.join("exporter").join(&file)).unwrap();
        let text = std::fs::read_to_string(generated.path().join(&file)).unwrap();
        assert!(committed == text, "run contrib/kubernetes/generate-rules contrib/kubernetes/exporter");
        // The rules in the generated file are indented, but must be the same as in the source file.
        let rules = yaml(&contrib().join(format!("prometheus/rules/{name}.yml")));
        assert_eq!(yaml(&generated.path().join(&file))["spec"], rules);
    }
}
