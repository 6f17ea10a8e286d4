//! No payload, MAC, hash or token of the Cloud KMS client reaches a log or an error, at TRACE, on success and on every way to fail; neither through our own
//! log nor through somebody else's subscriber, and also with the library's own logging switched on.
//!
//! The variable that switches that on is read by the library itself, so the last test runs the others in a process that has it.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::io;
use std::num::NonZeroU64;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{Extensions, HeaderMap, HeaderValue, header::AUTHORIZATION};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use google_cloud_auth::credentials::{
    CacheableResource, Credentials, CredentialsProvider, EntityTag, anonymous,
};
use google_cloud_auth::errors::CredentialsError;
use google_cloud_kms_v1::client::KeyManagementService;
use keyturn::config::{Log, LogFormat};
use keyturn::telemetry;
use keyturn_proto::canonical::mac_input;
use keyturn_proto::{ClientId, VersionId};
use keyturn_store::fake_kms::{Failure, FakeKms, Method, State};
use keyturn_store::mac::cloud_kms::{BreakerSettings, Settings};
use keyturn_store::mac::{CloudKmsKey, MacKey as _, SecretHash};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;

const SECRET: &str = "canary-2nC0WJ6d-3Jb0L6Wj7o5n9Jx9aQmH6r1bE3x";
const TOKEN: &str = "canary-token-of-the-service-account";
/// Read by the library, not by us.
const SWITCH: &str = "GOOGLE_CLOUD_RUST_LOGGING";
const NUMBER: NonZeroU64 = NonZeroU64::MIN;

fn client() -> ClientId {
    "ext-totp-svc".parse().unwrap()
}

fn version() -> VersionId {
    "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap()
}

/// What must be nowhere, in every spelling that a library might use.
fn canaries(hash: Option<&SecretHash>) -> Vec<String> {
    let data = mac_input(&client(), &version(), SECRET);
    let mut canaries = vec![
        SECRET.to_owned(),
        TOKEN.to_owned(),
        STANDARD.encode(&data),
        URL_SAFE_NO_PAD.encode(&data),
        hex(&data),
    ];
    if let Some(hash) = hash {
        let mac = URL_SAFE_NO_PAD.decode(hash.as_str()).unwrap();
        canaries.extend([
            hash.as_str().to_owned(),
            STANDARD.encode(&mac),
            hex(&mac),
            format!("{mac:?}"),
            format!("{:?}", Bytes::from(mac)),
        ]);
    }
    canaries
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn assert_clean(text: &str, canaries: &[String], what: &str) {
    for canary in canaries {
        assert!(
            !text.contains(canary.as_str()),
            "{what} holds {canary:?}:\n{text}"
        );
    }
}

#[derive(Debug)]
struct Token {
    fails: bool,
}

impl CredentialsProvider for Token {
    async fn headers(
        &self,
        _: Extensions,
    ) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        if self.fails {
            return Err(CredentialsError::from_msg(
                false,
                format!("refused: {TOKEN}"),
            ));
        }
        let mut headers = HeaderMap::new();
        let bearer = format!("Bearer {TOKEN}");
        headers.insert(AUTHORIZATION, HeaderValue::from_str(&bearer).unwrap());
        Ok(CacheableResource::New {
            entity_tag: EntityTag::new(),
            data: headers,
        })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}

/// Every way to succeed and to fail. Returns the hash, and our errors as anybody might print them.
async fn everything() -> (SecretHash, String) {
    let (client, version) = (client(), version());
    let server = FakeKms::start().await.unwrap();
    let settings = Settings {
        endpoint: Some(server.endpoint().parse().unwrap()),
        attempts: 2,
        attempt_timeout: Duration::from_millis(500),
        first_pause: Duration::from_millis(1),
        breaker: BreakerSettings {
            failures: 1_000,
            ..BreakerSettings::default()
        },
        ..Settings::new(server.key().clone(), NUMBER)
    };
    let with_token = |fails| {
        let credentials = Credentials::from(Token { fails });
        CloudKmsKey::with_credentials(settings.clone(), credentials)
    };
    let key = with_token(false);
    let made = key.sign(&client, &version, SECRET).await.unwrap();
    assert_eq!(server.authorization(), Some(format!("Bearer {TOKEN}")));
    let mut said = String::new();
    let mut errors = 0;
    let status = |http, code| Failure::Status {
        http,
        code,
        retry_after: Some(Duration::ZERO),
    };
    let failures = [
        Failure::Unverified,
        Failure::MacUnverified,
        Failure::CorruptMac,
        Failure::NoChecksum,
        Failure::OtherName,
        Failure::Contradiction,
        status(400, "INVALID_ARGUMENT"),
        status(401, "UNAUTHENTICATED"),
        status(403, "PERMISSION_DENIED"),
        status(404, "NOT_FOUND"),
        status(429, "RESOURCE_EXHAUSTED"),
        status(503, "UNAVAILABLE"),
        Failure::Proxy(502),
        Failure::Hang,
        Failure::Reset,
        Failure::Garbage,
        Failure::Truncated,
        Failure::Echo,
        Failure::Redirect(server.endpoint()),
    ];
    for failure in failures {
        server.fail(failure);
        let signed = key.sign(&client, &version, SECRET).await.err();
        let verified = key.verify(&made.key_ref, &client, &version, SECRET, &made.hash);
        for error in signed.into_iter().chain(verified.await.err()) {
            errors += 1;
            writeln!(said, "{error} {error:?}").unwrap();
        }
        server.heal();
    }
    server.set_state(server.key(), NUMBER, State::Disabled);
    let disabled = key.sign(&client, &version, SECRET).await.err();
    let foreign = key.verify("projects/evil", &client, &version, SECRET, &made.hash);
    let refused = with_token(true).sign(&client, &version, SECRET).await;
    for error in [disabled, foreign.await.err(), refused.err()] {
        errors += 1;
        writeln!(said, "{0} {0:?}", error.unwrap()).unwrap();
    }
    let listed = key.versions(server.key()).await.unwrap();
    writeln!(said, "{listed:?}").unwrap();
    drop(server);
    let gone = key.sign(&client, &version, SECRET).await.err();
    writeln!(said, "{gone:?}").unwrap();
    assert!(errors > 30, "only {errors} failures were seen");
    (made.hash, said)
}

/// Lines of a subscriber that keeps everything.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Captured {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Runs on one thread, under a subscriber that filters nothing: tasks that the library spawns are seen as well.
fn unfiltered<T>(work: impl Future<Output = T>) -> (T, String) {
    let captured = Captured::default();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(captured.clone())
        .with_ansi(false);
    let subscriber = tracing_subscriber::registry().with(lines);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let done = tracing::subscriber::with_default(subscriber, || runtime.block_on(work));
    (done, captured.text())
}

#[tokio::test]
async fn our_log_has_none_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = Log {
        format: LogFormat::Text,
        level: "trace,google_cloud_kms_v1=trace".to_owned(),
    };
    telemetry::init_to_file(&log, &path).unwrap();
    let (hash, said) = everything().await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        text.contains("class=\"integrity\"") && text.contains("class=\"denied\""),
        "our own lines are there:\n{text}"
    );
    let canaries = canaries(Some(&hash));
    assert_clean(&text, &canaries, "the log");
    assert_clean(&said, &canaries, "an error");
}

#[test]
fn nor_has_a_log_that_keeps_everything() {
    let ((hash, said), text) = unfiltered(async {
        let heard = tokio::spawn(async { tracing::trace!(target: "hyper::proto", "heard") });
        heard.await.unwrap();
        everything().await
    });
    let heard = text.lines().any(|line| {
        line.contains("TRACE") && line.contains("hyper::proto") && line.ends_with("heard")
    });
    assert!(
        heard,
        "it keeps what others say in tasks of their own:\n{text}"
    );
    let canaries = canaries(Some(&hash));
    assert_clean(&text, &canaries, "the log");
    assert_clean(&said, &canaries, "an error");
}

/// The control: left to itself the library does print what is looked for here, and the search finds it.
#[test]
fn the_search_finds_what_the_library_prints_when_nobody_silences_it() {
    let ((), text) = unfiltered(async {
        let server = FakeKms::start().await.unwrap();
        let service = KeyManagementService::builder()
            .with_endpoint(server.endpoint())
            .with_credentials(anonymous::Builder::new().build())
            .with_tracing()
            .build()
            .await
            .unwrap();
        let data = Bytes::copy_from_slice(&mac_input(&client(), &version(), SECRET));
        let asked = service.mac_sign().set_name(server.key().version(NUMBER));
        asked.set_data(data).send().await.unwrap();
        assert_eq!(server.calls(Method::Sign), 1);
    });
    assert!(text.contains(SECRET), "{text}");
}

#[test]
fn nor_with_the_librarys_own_logging_switched_on() {
    for test in [
        "our_log_has_none_of_it",
        "nor_has_a_log_that_keeps_everything",
    ] {
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(SWITCH, "true")
            .output()
            .unwrap();
        let shown = [run.stdout, run.stderr].map(|out| String::from_utf8(out).unwrap());
        let shown = shown.concat();
        assert!(run.status.success(), "{shown}");
        assert!(shown.contains("1 passed"), "it did run:\n{shown}");
        assert_clean(&shown, &canaries(None), "its output");
    }
}
