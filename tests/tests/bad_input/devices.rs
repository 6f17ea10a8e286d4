//! What devices, or whoever speaks in their name, should not send, through both doors: the broker (a real Mosquitto) and its webhook.
//!
//! Each message is refused under its word, counted once and recorded once, with device, nonce and, where it is about one, the accessor; its sender is told what
//! the table says, or nothing; and the relay goes on serving.

use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceId, DeviceNonce, MAX_STATUS, Statement, proof};
use keyturn_proto::encoding::b64url;
use keyturn_store::audit::Chain;
use keyturn_store::documents::{Actor, AuditRecord};
use keyturn_store::store::AuditTrail as _;
use keyturn_tests::Relay;
use keyturn_tests::iot::{Given, House, Line, Mqtt};
use keyturn_tests::trail::counter;
use keyturn_tests::world::{eventually, now, set};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::PROGRAM;

const SECRET: &str = "a-secret-of-the-webhook-0123456789abcdef";
const REFUSALS: &str = "keyturn_device_refusals_total";
/// What nobody can have asked for.
const NO_PROOF: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
/// Devices that take turns: of one device and reason five refusals are recorded one by one.
const TURNS: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Door {
    Mqtt,
    Webhook,
}

/// A house with both doors open.
struct Site {
    house: House,
    relay: Relay,
    http: reqwest::Client,
    /// Refusals that were caused.
    caused: AtomicUsize,
}

/// What comes of a message.
struct Refused {
    reason: &'static str,
    /// The error that its sender is told; `None` for silence.
    told: Option<&'static str>,
    nonce: Option<String>,
    accessor: Option<String>,
}

impl Refused {
    fn silently(reason: &'static str) -> Self {
        Self {
            reason,
            told: None,
            nonce: None,
            accessor: None,
        }
    }

    fn telling(reason: &'static str, told: &'static str) -> Self {
        Self {
            told: Some(told),
            ..Self::silently(reason)
        }
    }

    fn nonce(self, nonce: &str) -> Self {
        Self {
            nonce: Some(nonce.to_owned()),
            ..self
        }
    }

    fn about(self, accessor: &str) -> Self {
        Self {
            accessor: Some(accessor.to_owned()),
            ..self
        }
    }
}

fn nonce() -> String {
    DeviceNonce::generate().unwrap().to_string()
}

fn request(device: &str, nonce: &str) -> Value {
    json!({ "nonce": nonce, "device_id": device, "auth_request": "secret_id", "reason": "invalid_secret" })
}

/// The same with a field that nobody knows, as it is written.
fn with(device: &str, nonce: &str, field: &str) -> String {
    request(device, nonce)
        .to_string()
        .replacen('{', &format!("{{{field},"), 1)
}

fn result(given: &Given, word: &str) -> Value {
    json!({ "nonce": given.nonce, "auth_result": word })
}

impl Site {
    async fn new() -> Self {
        let house = House::new(PROGRAM, Mqtt::V5, |config| {
            set(config, "mqtt", "webhook_secret", SECRET);
            set(config, "devices", "clock_skew", "2m");
        })
        .await;
        let relay = house.relay().await;
        Self {
            house,
            relay,
            http: reqwest::Client::new(),
            caused: AtomicUsize::new(0),
        }
    }

    /// A device that is connected.
    async fn line(&self, id: &str) -> Line {
        let certificate = self.house.broker.device(id);
        Line::open(id, self.house.broker.port, &certificate).await
    }

    /// One that is on the list, too.
    async fn listed(&self, id: &str) -> Line {
        self.house.allow(id, &[]).await;
        self.line(id).await
    }

    /// Hands a message over as the broker would.
    async fn call(&self, body: Vec<u8>) -> (StatusCode, Value) {
        let url = format!("{}/kr/v1/mqtt/webhook", self.relay.web);
        let call = self.http.post(url).bearer_auth(SECRET).body(body);
        let answer = call.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    async fn send(&self, door: Door, line: &mut Line, message: &[u8], retain: bool) {
        match door {
            Door::Mqtt => line.say_raw(message, retain).await,
            Door::Webhook => {
                let topic = format!("iot/{}/status", line.id());
                let payload = std::str::from_utf8(message).unwrap();
                let call = json!({ "topic": topic, "payload": payload, "retain": retain });
                let (status, said) = self.call(call.to_string().into_bytes()).await;
                // The broker has nothing to try again.
                assert_eq!(status, StatusCode::OK, "{said}");
            }
        }
    }

    async fn records(&self, reason: &str) -> Vec<AuditRecord> {
        let store = self.house.world.store();
        let mut trail = store.read(None, usize::MAX).await.unwrap();
        trail.retain(|record| record.event == "device.refused" && record.reason == reason);
        trail
    }

    async fn counted(&self, reason: &str) -> u64 {
        let label = format!("reason=\"{reason}\"");
        counter(&self.relay, REFUSALS, &label).await
    }

    /// Does `cause`, which must have one record more under `reason`, and one more counted; that record.
    async fn one_more(&self, reason: &str, cause: impl AsyncFnOnce()) -> AuditRecord {
        let (records, counted) = (self.records(reason).await.len(), self.counted(reason).await);
        cause().await;
        let found = eventually(reason, async || {
            let mut found = self.records(reason).await;
            (found.len() > records).then(|| found.split_off(records))
        })
        .await;
        let [record] = &found[..] else {
            panic!("{reason}: one refusal, one record: {found:?}")
        };
        assert_eq!(self.counted(reason).await, counted + 1, "{reason}");
        self.caused.fetch_add(1, Ordering::SeqCst);
        record.clone()
    }

    /// Sends what must be refused so, in the name of a device that is connected.
    async fn refuses(
        &self,
        door: Door,
        line: &mut Line,
        message: &[u8],
        retain: bool,
        expected: Refused,
    ) -> AuditRecord {
        let Refused {
            reason,
            told,
            nonce,
            accessor,
        } = expected;
        let shown = String::from_utf8_lossy(message)
            .chars()
            .take(200)
            .collect::<String>();
        let record = self
            .one_more(reason, async || {
                self.send(door, line, message, retain).await
            })
            .await;
        let device_id: DeviceId = line.id().parse().unwrap();
        assert_eq!(record.actor, Actor::Device { device_id }, "{shown}");
        let device = record.device.as_ref().unwrap();
        assert_eq!(
            (&device.nonce, &device.accessor),
            (&nonce, &accessor),
            "{shown}"
        );
        assert!(now().since(record.at).as_secs() < 120, "{shown}");
        if let Some(error) = told {
            // What was silent before would come first.
            let said = line.next().await;
            assert_eq!(
                (said["error"].as_str(), said["nonce"].as_str()),
                (Some(error), nonce.as_deref()),
                "{shown}"
            );
            assert!(said["retry_after_sec"].is_u64(), "{said}");
        }
        record
    }

    /// Asks, and is given something: the very next thing that is said.
    async fn serves(&self, door: Door, line: &mut Line, request: &[u8], nonce: &str) -> Given {
        self.send(door, line, request, false).await;
        let command = line.next().await;
        assert_eq!(command["nonce"], nonce, "{command}");
        assert!(command["secret_id"].is_string(), "{command}");
        Given::of(command)
    }

    /// Asks as devices do, reports, and has what works.
    async fn serves_honestly(&self, door: Door, line: &mut Line) -> (Given, String) {
        let asked = nonce();
        let message = request(line.id(), &asked).to_string();
        let given = self.serves(door, line, message.as_bytes(), &asked).await;
        let good = json!({ "nonce": asked, "auth_result": "ok", "proof": proof::proof(&given.credential.secret_id, &given.nonce) });
        self.send(door, line, good.to_string().as_bytes(), false)
            .await;
        let doc = self.house.settled(line.id()).await;
        let held = doc.current.unwrap();
        assert!(held.proven && held.nonce == given.nonce);
        assert!(self.house.logs_in(&self.relay, &given.credential).await);
        (given, held.accessor)
    }

    /// Nothing was refused that is not in the tables, and nothing was only counted.
    async fn accounts_for_all(&self) {
        let store = self.house.world.store();
        let trail = store.read(None, usize::MAX).await.unwrap();
        let of = |word: &str| trail.iter().filter(|record| record.event == word).count();
        assert_eq!(of("device.refused"), self.caused.load(Ordering::SeqCst));
        assert_eq!(of("device.refused_repeatedly"), 0);
        assert_eq!(
            counter(&self.relay, "keyturn_panics_total", "devices").await,
            0
        );
    }
}

/// What is no status message, of a device `d` that may say something under the nonce `n`. Each is answered where it has a good nonce.
fn malformed(d: &str) -> Vec<(Vec<u8>, Refused)> {
    let n = nonce();
    let good = request(d, &n).to_string();
    let asks = |nonce: &str| {
        json!({ "nonce": nonce, "device_id": d, "auth_request": "secret_id" }).to_string()
    };
    let deep = format!("\"proof\":{}1{}", "[".repeat(1_500), "]".repeat(1_500));
    let unreadable = [
        String::new(),
        "{".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        format!("[{good}]"),
        good[..good.len() - 1].to_owned(),
        format!("{good}{good}"),
        format!("\u{feff}{good}"),
        format!("{good}\0"),
        good.replace(':', "\0:"),
        with(d, &n, "\"nonce\":\"0123456789abcdef\""),
        with(d, &n, "\"device_id\":\"another\""),
        with(d, &n, "\"auth_request\":\"secret_id\""),
        with(d, &n, &deep),
        with(d, &n, "\"ts\":1e400"),
        with(d, &n, "\"ts\":-1"),
        with(d, &n, "\"ts\":1.5"),
        with(d, &n, "\"ts\":18446744073709551616"),
        good.replace(&format!("\"{n}\""), "12345678901234567890"),
    ];
    let nonces = [
        String::new(),
        "n".repeat(15),
        "n".repeat(129),
        "é".repeat(16),
        "0123456789abcde\0".to_owned(),
        "0123456789 bcdef".to_owned(),
        "0123456789\"bcdef".to_owned(),
    ];
    let ids = [
        "".to_owned(),
        "a/b".to_owned(),
        "+".to_owned(),
        "d".repeat(129),
        "\0".to_owned(),
    ];
    let mut all: Vec<(Vec<u8>, Refused)> = Vec::new();
    let mut silent =
        |text: String, reason| all.push((text.into_bytes(), Refused::silently(reason)));
    for text in unreadable {
        silent(text, "message.unreadable");
    }
    for text in nonces {
        silent(asks(&text), "message.nonce");
    }
    let padding = "x".repeat(MAX_STATUS + 1 - good.len() - "\"x\":\"\",".len());
    let long = with(d, &n, &format!("\"x\":\"{padding}\""));
    assert_eq!(long.len(), MAX_STATUS + 1);
    silent(long, "message.oversized");
    silent("x".repeat(6_000), "message.oversized");
    let mut told = |text: String, reason| {
        all.push((
            text.into_bytes(),
            Refused::telling(reason, "invalid_request").nonce(&n),
        ));
    };
    for id in ids {
        told(request(&id, &n).to_string(), "message.device_id");
    }
    told(
        json!({ "nonce": n, "auth_request": "secret_id" }).to_string(),
        "message.device_id",
    );
    told(
        good.replace("\"secret_id\"", "\"token\""),
        "message.auth_request",
    );
    told(with(d, &n, "\"auth_result\":\"ok\""), "message.unreadable");
    told(with(d, &n, "\"ts\":1"), "message.signature");
    told(
        with(d, &n, "\"ts\":1,\"sig\":\"AAAA\""),
        "message.signature",
    );
    told(
        request("somebody-else", &n).to_string(),
        "device_id.not_the_topics",
    );
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_is_refused_by_name_at_both_doors_and_others_are_served() {
    let site = Site::new().await;
    for door in [Door::Mqtt, Door::Webhook] {
        let mut lines = Vec::new();
        for n in 0..TURNS {
            lines.push(site.listed(&format!("{door:?}-{n}")).await);
        }
        let cases: Vec<_> = lines.iter().map(|line| malformed(line.id())).collect();
        let turns = (0..cases[0].len()).map(|n| n % TURNS);
        // Each case once: the first device has the first, and so on.
        let mut cases: Vec<_> = cases.into_iter().map(Vec::into_iter).collect();
        for turn in turns {
            for (place, case) in cases.iter_mut().enumerate() {
                let (message, expected) = case.next().unwrap();
                if place == turn {
                    site.refuses(door, &mut lines[turn], &message, false, expected)
                        .await;
                }
            }
        }
        // In somebody else's name: the record says both.
        let n = nonce();
        let forged = json!({ "nonce": n, "device_id": "victim", "auth_result": "ok" }).to_string();
        let expected = Refused::telling("device_id.not_the_topics", "invalid_request").nonce(&n);
        let line = &mut lines[0];
        let record = site
            .refuses(door, line, forged.as_bytes(), false, expected)
            .await;
        let device = record.device.unwrap();
        assert_eq!(
            (device.device_id.as_str(), device.claimed),
            ("victim", true)
        );

        // A message that the broker keeps is not answered: it comes again and again.
        let kept = request(line.id(), &n).to_string();
        let expected = Refused::silently("message.retained").nonce(&n);
        site.refuses(door, line, kept.as_bytes(), true, expected)
            .await;

        for line in &mut lines {
            site.serves_honestly(door, line).await;
        }
    }
    // What only one of the doors can bring.
    let line = &mut site.listed("bytes").await;
    for bytes in [&b"\xff\xfe"[..], b"{\"nonce\":\"\xc3\x28\"}"] {
        let expected = Refused::silently("message.unreadable");
        site.refuses(Door::Mqtt, line, bytes, false, expected).await;
    }
    // A name that the broker takes and we do not: it is no topic of ours.
    let odd = site.house.device("__odd__", &site.relay).client(Mqtt::V5);
    let message = request("__odd__", &nonce()).to_string();
    let record = site.one_more("topic.wrong", async || {
        let said = odd.publish("iot/__odd__/status", message.as_bytes(), false);
        said.await.unwrap();
    });
    assert_eq!(record.await.actor, Actor::Unknown);
    for topic in [
        "iot//status",
        "iot/+/status",
        "iot/a/b/status",
        "iot/bytes/command",
    ] {
        let n = nonce();
        let message = request("victim", &n).to_string();
        let call = json!({ "topic": topic, "payload": message }).to_string();
        let record = site.one_more("topic.wrong", async || {
            site.call(call.into_bytes()).await;
        });
        let device = record.await.device.unwrap();
        assert_eq!(
            (device.device_id.as_str(), device.nonce),
            ("victim", Some(n))
        );
    }
    for body in [
        &b"{\"topic\":\"iot/bytes/status\",\"payload\":\"\xff\"}"[..],
        b"[]",
    ] {
        let record = site.one_more("webhook.unreadable", async || {
            assert_eq!(site.call(body.to_vec()).await.0, StatusCode::BAD_REQUEST);
        });
        assert_eq!(record.await.actor, Actor::Unknown);
    }
    site.serves_honestly(Door::Webhook, line).await;
    site.accounts_for_all().await;
    // Nobody who was invented has a chain.
    let chains = site.house.world.store().chains(None, 1_000).await.unwrap();
    let of = |id: &str| Chain::Device(id.parse().unwrap()).id();
    let has = |id: &str| chains.iter().any(|head| head.id == of(id));
    assert!(has("bytes") && !has("victim"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_at_the_edge_of_the_rules_is_served_at_both_doors() {
    let site = Site::new().await;
    for door in [Door::Mqtt, Door::Webhook] {
        let id = format!("{door:?}-edge");
        let line = &mut site.listed(&id).await;
        for nonce in [format!("16{:?}", door), format!("128{:?}", door)] {
            let length = if nonce.starts_with("16") { 16 } else { 128 };
            let nonce = format!("{nonce:!<length$}");
            let message = request(&id, &nonce).to_string();
            site.serves(door, line, message.as_bytes(), &nonce).await;
        }
        // What nobody knows is nobody's business, however it is filled.
        for field in [
            "\"x\":{\"y\":[1,{\"z\":null}]}".to_owned(),
            "\"x\":123456789012345678901234567890".to_owned(),
            "\"x\":1,\"x\":\"\\u0000\"".to_owned(),
            format!("\"x\":{}{}", "[".repeat(1_500), "]".repeat(1_500)),
        ] {
            let nonce = nonce();
            let message = with(&id, &nonce, &field);
            site.serves(door, line, message.as_bytes(), &nonce).await;
        }
        let nonce = nonce();
        let room = MAX_STATUS - with(&id, &nonce, "\"x\":\"\"").len();
        let message = with(&id, &nonce, &format!("\"x\":\"{}\"", "x".repeat(room)));
        assert_eq!(message.len(), MAX_STATUS);
        site.serves(door, line, message.as_bytes(), &nonce).await;
        // Whatever else a device reports there is passed over.
        site.send(door, line, b"{\"uptime\":5}", false).await;
        site.serves_honestly(door, line).await;
    }
    site.accounts_for_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_replayed_forged_or_out_of_time_is_refused_with_the_secret_id_it_is_about() {
    let site = Site::new().await;
    for door in [Door::Mqtt, Door::Webhook] {
        let id = format!("{door:?}-device");
        let line = &mut site.listed(&id).await;
        let (given, accessor) = site.serves_honestly(door, line).await;
        let n = given.nonce.to_string();
        let replay = request(&id, &n).to_string();
        let used = || {
            Refused::telling("nonce.used", "nonce_used")
                .nonce(&n)
                .about(&accessor)
        };
        site.refuses(door, line, replay.as_bytes(), false, used())
            .await;

        // Results that are worth nothing; nobody is told.
        let about = |reason| Refused::silently(reason).nonce(&n).about(&accessor);
        let failed = result(&given, "failed").to_string();
        let expected = about("result.contradicts");
        site.refuses(door, line, failed.as_bytes(), false, expected)
            .await;
        let mut wrong = result(&given, "ok");
        wrong["proof"] = json!(NO_PROOF);
        let expected = about("proof.wrong");
        site.refuses(door, line, wrong.to_string().as_bytes(), false, expected)
            .await;
        let unknown = nonce();
        let unasked = json!({ "nonce": unknown, "auth_result": "failed" }).to_string();
        let expected = Refused::silently("result.unasked").nonce(&unknown);
        site.refuses(door, line, unasked.as_bytes(), false, expected)
            .await;
        assert!(site.house.logs_in(&site.relay, &given.credential).await);

        // A wrong proof for what is awaited counts as none, and is recorded.
        let asked = nonce();
        let message = request(&id, &asked).to_string();
        let next = site.serves(door, line, message.as_bytes(), &asked).await;
        let issued = site
            .house
            .document(&id)
            .await
            .outstanding
            .unwrap()
            .held
            .unwrap();
        let mut wrong = result(&next, "ok");
        wrong["proof"] = json!(NO_PROOF);
        let expected = Refused::silently("proof.wrong")
            .nonce(&asked)
            .about(&issued.accessor);
        site.refuses(door, line, wrong.to_string().as_bytes(), false, expected)
            .await;
        let doc = site.house.document(&id).await;
        assert!(
            doc.current
                .is_some_and(|held| held.accessor == issued.accessor && !held.proven)
        );
        assert!(
            site.house.logs_in(&site.relay, &given.credential).await,
            "nothing was destroyed for it"
        );

        site.serves_honestly(door, line).await;
    }
    site.accounts_for_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_of_another_time_or_for_another_thing_is_refused_at_both_doors() {
    let site = Site::new().await;
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let public = b64url(key.public_key().as_ref());
    for door in [Door::Mqtt, Door::Webhook] {
        let id = format!("{door:?}-signs");
        let options = ["--identity-key".to_owned(), public.clone()];
        site.house.allow(&id, &options).await;
        let line = &mut site.line(&id).await;
        let device: DeviceId = id.parse().unwrap();
        let signed = |statement: Statement, nonce: &str, ts: UnixMs, message: Value| {
            let bytes = statement.bytes(&device, &nonce.parse().unwrap(), ts);
            let mut message = message;
            message["ts"] = json!(ts.0);
            message["sig"] = json!(b64url(key.sign(&bytes).as_ref()));
            message.to_string()
        };
        let second = std::time::Duration::from_secs(1);
        for (ts, statement, reason, told) in [
            (
                now().minus(second * 300),
                Statement::Request,
                "signature.clock_skew",
                "clock_skew",
            ),
            (
                now().plus(second * 300),
                Statement::Request,
                "signature.clock_skew",
                "clock_skew",
            ),
            (
                UnixMs(0),
                Statement::Request,
                "signature.clock_skew",
                "clock_skew",
            ),
            (
                UnixMs(u64::MAX),
                Statement::Request,
                "signature.clock_skew",
                "clock_skew",
            ),
            (now(), Statement::Ok, "signature.wrong", "unauthorized"),
        ] {
            let n = nonce();
            let message = signed(statement, &n, ts, request(&id, &n));
            let expected = Refused::telling(reason, told).nonce(&n);
            site.refuses(door, line, message.as_bytes(), false, expected)
                .await;
        }
        let n = nonce();
        let bare = request(&id, &n).to_string();
        let expected = Refused::telling("signature.missing", "unauthorized").nonce(&n);
        site.refuses(door, line, bare.as_bytes(), false, expected)
            .await;

        let n = nonce();
        let asked = signed(Statement::Request, &n, now(), request(&id, &n));
        let given = site.serves(door, line, asked.as_bytes(), &n).await;
        let issued = site
            .house
            .document(&id)
            .await
            .outstanding
            .unwrap()
            .held
            .unwrap();
        // Somebody without the key has it destroyed, or taken for good.
        for (word, statement) in [("failed", Statement::Ok), ("ok", Statement::Failed)] {
            let forged = signed(statement, &n, now(), result(&given, word));
            let expected = Refused::telling("signature.wrong", "unauthorized").nonce(&n);
            let expected = expected.about(&issued.accessor);
            site.refuses(door, line, forged.as_bytes(), false, expected)
                .await;
        }
        let proof = proof::proof(&given.credential.secret_id, &given.nonce);
        let good = json!({ "nonce": n, "auth_result": "ok", "proof": proof });
        let good = signed(Statement::Ok, &n, now(), good);
        site.send(door, line, good.as_bytes(), false).await;
        let doc = site.house.settled(&id).await;
        assert!(doc.current.is_some_and(|held| held.proven));
    }
    // Who is on no list hears so.
    for door in [Door::Mqtt, Door::Webhook] {
        let id = format!("{door:?}-stranger");
        let line = &mut site.line(&id).await;
        let n = nonce();
        let message = request(&id, &n).to_string();
        let expected = Refused::telling("not_allowed", "unauthorized").nonce(&n);
        let record = site
            .refuses(door, line, message.as_bytes(), false, expected)
            .await;
        assert!(record.device.unwrap().claimed);
    }
    site.accounts_for_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nonce_is_used_up_for_good_also_when_the_relay_has_forgotten_all_it_had_in_memory() {
    let mut site = Site::new().await;
    let mut served = Vec::new();
    for door in [Door::Mqtt, Door::Webhook] {
        let mut line = site.listed(&format!("{door:?}-device")).await;
        let (given, accessor) = site.serves_honestly(door, &mut line).await;
        served.push((door, line, given.nonce.to_string(), accessor));
    }
    let Site { relay, .. } = site;
    tokio::task::spawn_blocking(move || relay.kill())
        .await
        .unwrap();
    site.relay = site.house.relay().await;
    for (door, line, n, accessor) in &mut served {
        let replay = request(line.id(), n).to_string();
        let expected = Refused::telling("nonce.used", "nonce_used").nonce(n);
        let expected = expected.about(accessor);
        site.refuses(*door, line, replay.as_bytes(), false, expected)
            .await;
        site.serves_honestly(*door, line).await;
    }
    site.accounts_for_all().await;
}
