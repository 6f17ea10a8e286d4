//! A Firestore that is not as it should be: every finding with its mend. The server is played by a small one that answers each step of
//! the look as the test wants it; what the real one accepts is tested against the emulator (`firestore-schema/tests/firestore`, `tests/tests/firestore.rs`).

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use keyturn::doctor::{Finding, Level, Visitors};
use keyturn_store::emulator::Emulator;
use keyturn_store::firestore::Bearer;
use tokio::net::{TcpListener, TcpStream};

use crate::{config, findings_of, now, says};

const INVALID_ARGUMENT: u32 = 3;
const NOT_FOUND: u32 = 5;
const PERMISSION_DENIED: u32 = 7;
const FAILED_PRECONDITION: u32 = 9;
const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;

/// What a server says in its texts must reach nobody.
const CANARY: &str = "canary-of-the-server";

/// How each step of the look is answered: with a gRPC status, 0 when all is well.
#[derive(Clone, Copy, Default)]
struct Server {
    get: u32,
    query: u32,
    commit: u32,
    /// By how much its clock is ahead of ours, seconds.
    ahead: i64,
    /// How long a commit takes.
    commit_takes: Duration,
}

impl Server {
    async fn start(self) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(self.serve(socket));
            }
        });
        address
    }

    async fn serve(self, socket: TcpStream) {
        let Ok(mut connection) = h2::server::handshake(socket).await else {
            return;
        };
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(async move {
                // Kept until it is answered: a dropped body would reset the stream.
                let (head, _body) = request.into_parts();
                self.answer(head.uri.path(), respond).await;
            });
        }
    }

    async fn answer(self, path: &str, mut respond: h2::server::SendResponse<Bytes>) {
        let (status, message) = match path.rsplit('/').next() {
            // BatchGetDocumentsResponse and RunQueryResponse: nothing but their read_time.
            Some("BatchGetDocuments") => (self.get, self.time(4)),
            Some("RunQuery") => (self.query, self.time(3)),
            // CommitResponse: nothing but its commit_time.
            Some("Commit") => {
                tokio::time::sleep(self.commit_takes).await;
                (self.commit, self.time(2))
            }
            _ => (UNAVAILABLE, Vec::new()),
        };
        let head = Response::builder().header("content-type", "application/grpc");
        if status != 0 {
            let head = head
                .header("grpc-status", status)
                .header("grpc-message", CANARY);
            respond.send_response(head.body(()).unwrap(), true).ok();
            return;
        }
        // The caller may have gone.
        let Ok(mut body) = respond.send_response(head.body(()).unwrap(), false) else {
            return;
        };
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        body.send_data(frame.into(), false).ok();
        let done = HeaderMap::from_iter([(
            "grpc-status".parse().unwrap(),
            HeaderValue::from_static("0"),
        )]);
        body.send_trailers(done).ok();
    }

    /// A message whose only field, of this number, is the time by this server's clock, to the millisecond.
    fn time(self, field: u8) -> Vec<u8> {
        let now = i64::try_from(now().0).unwrap() + self.ahead * 1000;
        let now = u64::try_from(now).unwrap();
        let mut time = vec![1 << 3];
        varint(now / 1000, &mut time);
        time.push(2 << 3);
        varint(now % 1000 * 1_000_000, &mut time);
        let mut message = vec![(field << 3) | 2, u8::try_from(time.len()).unwrap()];
        message.extend(time);
        message
    }
}

/// As protocol buffers write a number.
fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number > 0x7f {
        out.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap());
}

/// What doctor says of the store.
async fn findings(server: Server) -> Vec<Finding> {
    let endpoint = format!("http://{}", server.start().await);
    findings_at(&endpoint, Visitors::default()).await
}

async fn findings_at(endpoint: &str, visitors: Visitors) -> Vec<Finding> {
    let dir = tempfile::tempdir().unwrap();
    let store = format!(
        r#"kind = "firestore"
project = "example-keyturn"
database = "secrets"
endpoint = "{endpoint}"
timeout = "40s""#
    );
    let text = config(&store, r#"key_file = "mac.key""#);
    findings_of("store", dir.path(), &text, visitors, CANARY).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_database_has_nothing_to_mend() {
    let found = findings(Server::default()).await;
    let ok = |finding: &Finding| match finding.level {
        Level::Ok => finding.mend.is_none(),
        // Who has no token and no right to look says so, and how somebody else does.
        Level::Skipped => finding.mend.is_some(),
        // A machine that stands still for a second says of the database what it would have to say of itself.
        Level::Warn => finding.what.contains("more than a second"),
        Level::Fail => false,
    };
    assert!(found.iter().all(ok), "{found:#?}");
    for (what, instead) in [
        (
            "TTL policy",
            "gcloud firestore fields ttls list --collection-group=nonces --project=example-keyturn --database=secrets",
        ),
        ("by IAM", "gcloud projects get-iam-policy example-keyturn"),
        ("signed-in user", "--user-token"),
        ("an auditor", "--auditor-token"),
        (
            "the verifier's account",
            "gcloud auth print-access-token --impersonate-service-account",
        ),
    ] {
        says(&found, Level::Skipped, what, instead);
    }
    for what in [
        "database secrets of example-keyturn can be read and written",
        "clock agrees",
        "can be read, all of them",
        "no nonce has outlived",
        "every query has its index",
        "the audit trail can be read",
    ] {
        says(&found, Level::Ok, what, "");
    }
}

/// Whoever may not even read is told one thing, not every consequence of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_from_reading_is_the_only_finding() {
    for (status, what, mend) in [
        (
            NOT_FOUND,
            "the database does not exist",
            "gcloud firestore databases create --project=example-keyturn --database=secrets",
        ),
        (
            PERMISSION_DENIED,
            "may not read",
            "resource.name=='projects/example-keyturn/databases/secrets'",
        ),
        (
            UNAUTHENTICATED,
            "the credentials were not accepted",
            "GOOGLE_APPLICATION_CREDENTIALS",
        ),
        (UNAVAILABLE, "does not answer", "store.endpoint"),
        (
            INVALID_ARGUMENT,
            "refused the read",
            "understand-error-codes",
        ),
    ] {
        let server = Server {
            get: status,
            ..Server::default()
        };
        let found = findings(server).await;
        says(&found, Level::Fail, what, mend);
        assert_eq!(found.len(), 1, "{found:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_write_the_rest_is_looked_at_all_the_same() {
    let server = Server {
        commit: PERMISSION_DENIED,
        ..Server::default()
    };
    let found = findings(server).await;
    says(
        &found,
        Level::Fail,
        "may not write",
        "--role=projects/example-keyturn/roles/keyturnRelay",
    );
    says(&found, Level::Ok, "every query has its index", "");
    says(&found, Level::Ok, "the audit trail can be read", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_indexes_are_named_with_what_deploys_them() {
    let server = Server {
        query: FAILED_PRECONDITION,
        ..Server::default()
    };
    let found = findings(server).await;
    says(
        &found,
        Level::Fail,
        "no index for: ",
        "firebase deploy --only firestore --project example-keyturn",
    );
    // A composite index is shown as the console shows it.
    says(
        &found,
        Level::Fail,
        "(oauth2_rotations: ",
        "gcloud firestore indexes composite list --project=example-keyturn --database=secrets",
    );
    says(
        &found,
        Level::Fail,
        "the audit trail cannot be read",
        "firestore.indexes.json",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_is_found_in_either_direction() {
    for (ahead, what) in [(-90, "ahead of Firestore's"), (90, "behind Firestore's")] {
        let server = Server {
            ahead,
            ..Server::default()
        };
        let found = findings(server).await;
        says(&found, Level::Fail, what, "timedatectl set-ntp true");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_database_is_worth_a_look() {
    let server = Server {
        commit_takes: Duration::from_millis(1_100),
        ..Server::default()
    };
    let found = findings(server).await;
    says(
        &found,
        Level::Warn,
        "more than a second",
        "the database's region",
    );
}

/// The unsigned token that the emulator takes for one of Firebase Auth.
fn unsigned(claims: &str) -> Option<Bearer> {
    let claims = format!(
        r#"{{"iss":"https://securetoken.google.com/example-keyturn","aud":"example-keyturn","sub":"somebody","user_id":"somebody","iat":1760000000,"exp":4000000000{claims}}}"#
    );
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let head = part(r#"{"alg":"none","typ":"JWT"}"#);
    Bearer::parse(&format!("{head}.{}.", part(&claims)))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_brings_a_token_is_tried_under_the_rules() {
    let rules = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../firestore-schema/firestore.rules"
    );
    let emulator = Emulator::start(Some(std::path::Path::new(rules))).await;
    let visitors = Visitors {
        user: unsigned(""),
        auditor: unsigned(r#","auditor":true"#),
        // Nothing of IAM is enforced here: as far as the rules go, this one may nothing.
        verifier: unsigned(""),
    };
    let found = findings_at(&emulator.endpoint(), visitors).await;
    for what in [
        "somebody without any credentials is kept out of every collection",
        "somebody without any credentials cannot create documents",
    ] {
        says(&found, Level::Ok, what, "");
    }
    says(
        &found,
        Level::Ok,
        "a signed-in user is kept out of every collection",
        "",
    );
    says(
        &found,
        Level::Ok,
        "a signed-in user cannot create documents",
        "",
    );
    says(
        &found,
        Level::Ok,
        "the auditor reads oauth2_rotations, service_actions, audit, audit_chains and nothing else",
        "",
    );
    says(&found, Level::Ok, "the auditor cannot create documents", "");
    says(
        &found,
        Level::Fail,
        "the verifier's account cannot read: ",
        "--role=projects/example-keyturn/roles/keyturnVerifier",
    );

    // Somebody has the claim who should not; a real token goes nowhere in the clear.
    let visitors = Visitors {
        user: unsigned(r#","auditor":true"#),
        auditor: unsigned(r#","auditor":"true""#),
        verifier: Bearer::parse("ya29.canary-of-the-server"),
    };
    let found = findings_at(&emulator.endpoint(), visitors).await;
    says(
        &found,
        Level::Fail,
        "a signed-in user can read: oauth2_rotations",
        "firebase deploy --only firestore --project example-keyturn",
    );
    says(
        &found,
        Level::Fail,
        "the auditor cannot read: ",
        "docs/auditors.md",
    );
    says(
        &found,
        Level::Warn,
        "not sent over plain HTTP",
        "store.endpoint",
    );
}
