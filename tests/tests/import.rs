//! A client of a running system moves over: its secret of today is imported by the operator's command line, verifies, and is replaced by its first
//! rotation like any other.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use keyturn::quickstart::leaks::Needles;
use keyturn_proto::notify::NotifyState;
use keyturn_proto::{Action, Params};
use keyturn_store::documents::{Origin, VersionState};
use keyturn_store::verifier::Which;
use keyturn_tests::verdict::Judge;
use keyturn_tests::world::{CLIENT, GROUP, deadline, open_and_ack, reason};
use keyturn_tests::{World, eventually};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");
/// What the old system gave out, long ago.
const OLD: &str = "correct horse battery staple, since 2009";
/// bcrypt of [`OLD`] as the old system stored it, cost 4; made with libxcrypt.
const OLD_BCRYPT: &str = "$2b$04$kW1kqHSMCRMmyOvl8lbOtuuMqfhuvuCAIusQ/58JJvMtAj5HKTHmi";

struct Operator<'a> {
    world: &'a World,
}

impl Operator<'_> {
    fn run(&self, arguments: &[&str], stdin: &str) -> Output {
        let config = self.world.layout.config();
        let mut child = Command::new(PROGRAM)
            .args(["client", "import"])
            .args(arguments)
            .args(["--config", config.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that has refused by then does not read it.
        let _refused = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn ok(&self, arguments: &[&str], stdin: &str) -> String {
        let output = self.run(arguments, stdin);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{arguments:?}: {out}{err}");
        out
    }

    fn refused(&self, arguments: &[&str], stdin: &str) -> String {
        let output = self.run(arguments, stdin);
        let (out, err) = texts(&output);
        assert!(!output.status.success(), "{arguments:?}: {out}");
        format!("{out}{err}")
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn file(folder: &Path, name: &str, content: &str, mode: u32) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_imported_client_verifies_rotates_and_its_old_secret_ends_with_the_grace() {
    let mut world = World::new(PROGRAM, |_| {}).await;
    world.enrol("alice").await;
    world.enrol("bob").await;
    world.bind(GROUP, "alice").await;
    let relay = world.relay().await;
    let mut alice = world.admin("alice", &relay).await;
    let mut bob = world.admin("bob", &relay).await;
    let group = world.found(GROUP, &mut alice, &mut [&mut bob]).await;

    // While the relay runs. Outside the world's folder, which is searched afterwards.
    let elsewhere = tempfile::tempdir().unwrap();
    let hash = file(elsewhere.path(), "hash", &format!("{OLD_BCRYPT}\n"), 0o600);
    let operator = Operator { world: &world };
    let arguments = [CLIENT, "--group", GROUP, "--bcrypt-file", &hash];
    let shown = operator.ok(&arguments, "");
    assert!(shown.contains("imported"), "{shown}");
    let again = operator.ok(&arguments, "");
    assert!(again.contains("already imported"), "{again}");

    let judge = Judge::of(&world, CLIENT);
    let imported = judge.client().await.current_version.unwrap();
    let current = judge.verify(OLD).await;
    assert_eq!(current, Some((imported, Which::Current)));
    assert_eq!(
        judge.verify(OLD_BCRYPT).await,
        None,
        "the hash opens nothing"
    );

    let short = Params {
        grace_duration_ms: Some(6_000),
        ..reason("the first of our own")
    };
    let reply = world.ask(&mut alice, &group, Action::Rotation, short).await;
    let id = reply.unwrap().action_id;
    let new = open_and_ack(&mut alice, &id).await;
    open_and_ack(&mut bob, &id).await;
    let done = alice.await_done(&id, deadline()).await.unwrap();
    let NotifyState::Done {
        current_version,
        previous_version,
        ..
    } = done.body
    else {
        panic!("{done:?}")
    };
    assert_eq!(previous_version, Some(imported));
    let new_version = current_version.unwrap();
    let verified = judge.verify(new.notify.secret.expose()).await;
    assert_eq!(verified, Some((new_version, Which::Current)));
    let verified = judge.verify(OLD).await;
    assert_eq!(verified, Some((imported, Which::Previous)));

    let client = CLIENT.parse().unwrap();
    let old = eventually("the old secret is retired", async || {
        let versions = judge.store.versions(&client).await.unwrap();
        let old = versions.into_iter().find(|it| it.version_id == imported);
        old.filter(|version| version.state == VersionState::Retired)
    })
    .await;
    assert_eq!(old.origin, Origin::Imported);
    assert_eq!(judge.verify(OLD).await, None);
    let verified = judge.verify(new.notify.secret.expose()).await;
    assert_eq!(verified, Some((new_version, Which::Current)));

    // Importing again finds what it did, rotated or not.
    assert!(operator.ok(&arguments, "").contains("already imported"));
    for (what, text) in [("secret", OLD), ("hash", &OLD_BCRYPT[29..])] {
        let searched = Needles::of(text)
            .in_files(world.layout.config().parent().unwrap())
            .unwrap();
        assert!(searched.files > 3);
        assert!(searched.leaks.is_empty(), "{what}: {:?}", searched.leaks);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_come_through_a_pipe_or_a_closed_file_and_nowhere_else() {
    let mut world = World::new(PROGRAM, |_| {}).await;
    world.bind(GROUP, "alice").await;
    let elsewhere = tempfile::tempdir().unwrap();
    let operator = Operator { world: &world };
    let groups = ["--group", GROUP];

    let open = file(elsewhere.path(), "open", OLD, 0o644);
    let mut arguments = vec![CLIENT, "--secret-file", &open];
    arguments.extend(groups);
    let refused = operator.refused(&arguments, "");
    assert!(refused.contains("mode 0644"), "{refused}");
    assert!(!refused.contains(OLD), "{refused}");
    // No way to give it as an argument.
    let refused = operator.refused(&[CLIENT, "--secret", OLD, "--group", GROUP], "");
    assert!(refused.contains("unexpected argument"), "{refused}");

    let mut arguments = vec![CLIENT, "--secret-stdin", "--dry-run"];
    arguments.extend(groups);
    let shown = operator.ok(&arguments, OLD);
    assert!(shown.contains("would be imported"), "{shown}");
    let judge = Judge::of(&world, CLIENT);
    assert_eq!(judge.verify(OLD).await, None);
    arguments.retain(|argument| *argument != "--dry-run");
    operator.ok(&arguments, &format!("{OLD}\n"));
    assert!(judge.verify(OLD).await.is_some());
    let refused = operator.refused(&arguments, "another secret, as long as the first");
    assert!(refused.contains("another secret"), "{refused}");
    let refused = operator.refused(&arguments, "");
    assert!(refused.contains("empty"), "{refused}");
    let refused = operator.refused(&arguments, &"x".repeat(100_000));
    assert!(refused.contains("longer than"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_clients_is_reported_line_by_line() {
    let mut world = World::new(PROGRAM, |_| {}).await;
    world.bind(GROUP, "alice").await;
    let elsewhere = tempfile::tempdir().unwrap();
    let operator = Operator { world: &world };
    let lines = format!(
        r#"{{"client_id": "one", "groups": ["{GROUP}"], "bcrypt": "{OLD_BCRYPT}"}}
{{"client_id": "two", "groups": ["nobody"], "secret": "{OLD}"}}
"#
    );
    let from = file(elsewhere.path(), "clients.jsonl", &lines, 0o600);
    let output = operator.run(&["--from", &from, "--json"], "");
    assert_eq!(output.status.code(), Some(1), "one line is left");
    let (out, err) = texts(&output);
    let reports: Vec<Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(reports[0]["result"], "imported");
    assert_eq!(reports[1]["result"], "refused");
    assert_eq!(reports[1]["line"], 2);
    assert!(reports[1]["reason"].as_str().unwrap().contains("nobody"));
    assert!(err.contains("1 of 2"), "{err}");
    assert!(!format!("{out}{err}").contains(OLD));

    let mended = file(
        elsewhere.path(),
        "clients.jsonl",
        &lines.replace("nobody", GROUP),
        0o600,
    );
    let shown = operator.ok(&["--from", &mended], "");
    assert!(shown.contains("line 1  one  already imported"), "{shown}");
    assert!(shown.contains("line 2  two  imported"), "{shown}");
    for client in ["one", "two"] {
        assert!(Judge::of(&world, client).verify(OLD).await.is_some());
    }
}
