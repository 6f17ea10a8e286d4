//! The command, its output and its exit code.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::patient::Patient;

fn run(config: &Path, patient: &Patient, json: bool) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_keyturn"))
        .args(["doctor", "--config"])
        .arg(config)
        .args(json.then_some("--json"))
        .env_clear()
        .envs(patient.variables.iter().cloned())
        .output()
        .unwrap();
    let code = output.status.code().unwrap();
    (code, String::from_utf8(output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_reports_and_its_exit_code_says_whether_something_is_to_be_mended() {
    let patient = Patient::new().await;
    let config = patient.path("keyturn.toml");
    let (code, text) = run(&config, &patient, false);
    assert_eq!(code, 0, "{text}");
    assert!(text.ends_with("0 to mend, 0 to look at\n"), "{text}");
    patient.chmod("mac.key", 0o644);
    let (code, text) = run(&config, &patient, false);
    assert_eq!(code, 1);
    assert!(text.contains("FAIL  mac"), "{text}");
    assert!(text.contains("mend: chmod 600 "), "{text}");
    let (code, text) = run(&config, &patient, true);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &report["ok"]), (1, &json!(false)));
    let findings = report["findings"].as_array().unwrap();
    assert!(
        findings
            .iter()
            .any(|finding| finding["check"] == "mac" && finding["level"] == "fail")
    );

    patient.file("keyturn.toml", "[relay]\nprot = 1\n", 0o644);
    let (code, text) = run(&config, &patient, true);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &report["ok"]), (1, &json!(false)));
    assert_eq!(report["findings"][0]["check"], "config");
}
