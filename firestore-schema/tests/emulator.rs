//! The emulator the other tests stand on: it answers, keeps tests apart, and leaves no process behind, however the test process ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use keyturn_store::emulator::Emulator;

const CHILD: &str = "KEYTURN_TEST_HOLD_AN_EMULATOR";

/// Living members of a process group; a zombie holds nothing and only waits for its parent.
fn members(group: u32) -> Vec<String> {
    let output = Command::new("ps")
        .args(["-A", "-o", "pgid=,stat=,args="])
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter(|line| {
            let mut words = line.split_whitespace();
            let found: u32 = words.next().unwrap().parse().unwrap();
            found == group && !words.next().unwrap().starts_with('Z')
        })
        .map(str::to_owned)
        .collect()
}

fn has_java(members: &[String]) -> bool {
    members.iter().any(|line| line.contains("CloudFirestore"))
}

#[tokio::test]
async fn dropping_it_ends_its_whole_process_group() {
    let emulator = Emulator::start(None).await;
    let group = emulator.process_group();
    let before = members(group);
    assert!(has_java(&before), "{before:?}");
    drop(emulator);
    assert_eq!(members(group), Vec::<String>::new());
}

#[test]
fn a_killed_test_process_takes_it_along() {
    if std::env::var_os(CHILD).is_some() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let emulator = runtime.block_on(Emulator::start(None));
        println!("GROUP {} END", emulator.process_group());
        loop {
            std::thread::park();
        }
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_killed_test_process_takes_it_along",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let group: u32 = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .find_map(|line| {
            let line = line.unwrap();
            let (_, rest) = line.split_once("GROUP ")?;
            rest.split(' ').next()?.parse().ok()
        })
        .expect("the child says its group");
    let before = members(group);
    assert!(has_java(&before), "{before:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let left = members(group);
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "still there: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn projects_keep_tests_apart() {
    let emulator = Emulator::shared().await;
    assert_eq!(
        emulator.process_group(),
        Emulator::shared().await.process_group()
    );
    let (one, other) = (emulator.fresh_project(), emulator.fresh_project());
    let http = reqwest::Client::new();
    let url = |project: &str| {
        let endpoint = emulator.endpoint();
        format!("{endpoint}/v1/projects/{project}/databases/keyturn/documents/things/x")
    };
    let written = http
        .patch(url(&one))
        .json(&serde_json::json!({"fields": {}}))
        .send()
        .await
        .unwrap();
    assert_eq!(written.status(), 200);
    assert_eq!(http.get(url(&one)).send().await.unwrap().status(), 200);
    assert_eq!(http.get(url(&other)).send().await.unwrap().status(), 404);
}

#[tokio::test]
#[should_panic(expected = "refuses its rules")]
async fn rules_that_do_not_compile_are_no_running_emulator() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "service {").unwrap();
    let _emulator = Emulator::start(Some(Path::new(file.path()))).await;
}
