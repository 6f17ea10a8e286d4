//! The plaintext is nowhere but in memory and inside MLS: whole rotations and failing requests with every log at TRACE, then a search through every
//! file, decrypted database, log, answer, output and byte on the wire. What proves a request (proof, nonce, TOTP code, TOTP seed) and the hash
//! are looked for as well.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use keyturn::quickstart::issuer::DevSigner;
use keyturn_admin::home::{Config, Home};
use keyturn_admin::{AdminSession, OpenedSecret, ProofError, ProofSource, RequestSpec};
use keyturn_proto::proof::ProofRequest;
use keyturn_proto::request::{Bearer, ServiceRequest};
use keyturn_proto::{Action, ErrorClass, MlsGroupId, RotationId, kinds};
use keyturn_tests::attack::{Stolen, contains, frozen};
use keyturn_tests::hunt::{Place, Wanted, hunt};
use keyturn_tests::tap::Tap;
use keyturn_tests::world::{CLIENT, GROUP, deadline, now, open_and_ack, reason};
use keyturn_tests::{PATIENCE, Relay, Rogue, SETTLE, World, eventually};
use nostr::RelayUrl;
use serde_json::{Value, json};
use totp_rs::Totp;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");
const ADMIN: &str = env!("CARGO_BIN_EXE_keyturn-admin-under-test");

/// Codes of eight digits, which do not come by chance.
const WRONG_CODE: &str = "86420975";
const CODE_AS_NUMBER: &str = "75319642";
const CODE_IN_RUINS: &str = "97531864";

/// Where a hash may be: in the store. Where a challenge may be: in the answer that gives it out.
fn allowed(place: &str, wanted: &str) -> bool {
    (wanted.starts_with("hash") && place.contains("data/keyturn.db"))
        || (wanted.starts_with("challenge") && place == "http")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_secret_is_found_anywhere() {
    let admins_log = Captured::everything();
    let wrapped = tempfile::tempdir().unwrap();
    let mut world = World::new(&talkative(wrapped.path()), |config| {
        config["log"]["level"] = "trace".into();
        config["admission"]["totp"] = "either".into();
    })
    .await;
    let mut wanted = Vec::new();
    let mut totp = Vec::new();
    for name in ["alice", "bob"] {
        let otpauth = world.enrol(name).await.otpauth.unwrap();
        let seed = otpauth.split("secret=").nth(1).unwrap();
        wanted.push(Wanted::text("a seed", seed.split('&').next().unwrap()));
        totp.push(Totp::from_url(otpauth.as_str()).unwrap());
    }
    world.bind(GROUP, "alice").await;
    world.client(CLIENT, &[GROUP]).await;
    let mut relay = world.relay().await;
    let taps = Taps::before(&mut relay).await;
    let mut alice = world.admin("alice", &relay).await;
    let mut bob = world.admin("bob", &relay).await;
    let group = world.found(GROUP, &mut alice, &mut [&mut bob]).await;

    // What goes right, with the files taken in the middle of it.
    let given = Given::default();
    let code = totp[0].generate_current().to_string();
    wanted.push(Wanted::code("the code of alice", &code));
    let first = rotate(&mut alice, &group, &code, &given.by(world.issuer.signer())).await;
    alice.await_secret(&first, deadline()).await.unwrap();
    let root = world.dir.path().to_owned();
    let middle = frozen(&relay, || Stolen::from_relay(&root));
    let opened = finish(&mut alice, &mut bob, &first).await;
    wanted.extend(of_secret("first", &opened));

    // What goes wrong.
    bob.close().await;
    wanted.extend(everything_wrong(&mut world, &relay, &group).await);

    // What goes right again, asked for by the other one, who has failed until now.
    let mut bob = world.admin("bob", &relay).await;
    let code = totp[1].generate_current().to_string();
    wanted.push(Wanted::code("the code of bob", &code));
    let second = rotate(&mut bob, &group, &code, &given.by(world.issuer.signer())).await;
    let opened = finish(&mut bob, &mut alice, &second).await;
    wanted.extend(of_secret("second", &opened));
    alice.close().await;
    bob.close().await;

    // What everybody is told, and by whom.
    let mut places = operators_programs(&world);
    places.push(admins_program(&mut world, &relay, &given).await);
    taps.every_route().await;
    places.extend(process(&relay));
    relay.terminate();
    wanted.extend(given.wanted());

    let [first, second] = [first, second].map(|id| id.to_string());
    let ids = [first.as_str(), &second];
    places.push(Place::new(
        "log",
        world.log(),
        &[ids[0], ids[1], "delivered", "totp.wrong", "jwt.signature"],
    ));
    places.push(Place::new(
        "admins' log",
        admins_log.bytes(),
        &["TRACE", "openmls"],
    ));
    places.extend(taps.places());
    places.extend(files("in the middle: ", middle.root()));
    places.extend(files("at the end: ", &root));
    let ended = Stolen::from_relay(&root);
    for (name, stolen) in [
        ("relay's member in the middle", &middle),
        ("relay's member at the end", &ended),
        (
            "alice's member",
            &Stolen::from_admin(&world.home("alice"), world.keys("alice")),
        ),
        (
            "bob's member",
            &Stolen::from_admin(&world.home("bob"), world.keys("bob")),
        ),
    ] {
        let bytes = stolen.clear_bytes();
        assert!(contains(&bytes, group.as_bytes()), "{name} is open");
        places.push(Place::new(name, bytes, &["openmls_group_data"]));
    }
    hunt(&wanted, &places, allowed);
}

async fn rotate(
    who: &mut AdminSession,
    group: &MlsGroupId,
    code: &str,
    issuer: &Recording<'_>,
) -> RotationId {
    let spec = RequestSpec {
        action: Action::Rotation,
        client: CLIENT.parse().unwrap(),
        params: reason("no plaintext"),
        action_id: None,
        group: group.clone(),
        totp: Some(Bearer::new(code)),
    };
    let reply = who.request(spec, issuer, deadline()).await.unwrap();
    reply.action_id
}

/// Both open and ack; over.
async fn finish(
    asker: &mut AdminSession,
    other: &mut AdminSession,
    id: &RotationId,
) -> OpenedSecret {
    let opened = open_and_ack(asker, id).await;
    open_and_ack(other, id).await;
    asker.await_done(id, deadline()).await.unwrap();
    opened
}

fn of_secret(which: &str, opened: &OpenedSecret) -> [Wanted; 2] {
    let notify = &opened.notify;
    [
        Wanted::text(&format!("the {which} secret"), notify.secret.expose()),
        Wanted::text(
            &format!("hash of the {which}"),
            &notify.header.secret_hash.to_string(),
        ),
    ]
}

/// Requests of bob's that fail, each with a proof or a code that must not show up.
async fn everything_wrong(world: &mut World, relay: &Relay, group: &MlsGroupId) -> Vec<Wanted> {
    let mut bob = Rogue::open(world, "bob", relay).await;
    let mut wanted: Vec<Wanted> = [WRONG_CODE, CODE_AS_NUMBER, CODE_IN_RUINS]
        .map(|code| Wanted::code("a wrong code", code))
        .into();
    let mut request = async || {
        let id = RotationId::generate(now()).unwrap();
        let params = reason("to fail");
        let request = bob
            .compose(world, group, CLIENT, Action::Rotation, &id, &params)
            .await;
        wanted.extend(of_proof(&request.jwt_proof));
        request
    };
    let forged = ServiceRequest {
        jwt_proof: DevSigner::generate()
            .unwrap()
            .sign(json!({ "nonce": "forged" }), now())
            .unwrap(),
        ..request().await
    };
    let spoiled = request().await;
    let spoiled = ServiceRequest {
        jwt_proof: Bearer::new(spoil(spoiled.jwt_proof.expose())),
        ..spoiled
    };
    let wrong_code = ServiceRequest {
        totp: Some(Bearer::new(WRONG_CODE)),
        ..request().await
    };
    let mut number = to_json(&request().await);
    number["totp"] = CODE_AS_NUMBER.parse::<u32>().unwrap().into();
    let mut nested = to_json(&request().await);
    nested["jwt_proof"] = json!({ "value": nested["jwt_proof"] });
    let mut long = to_json(&request().await);
    long["totp"] = format!("{CODE_IN_RUINS} or so").into();
    let mut ruins = to_json(&request().await);
    ruins["totp"] = CODE_IN_RUINS.into();
    let ruins = ruins.to_string();
    wanted.extend(of_proof(&forged.jwt_proof));
    wanted.extend(of_proof(&spoiled.jwt_proof));

    // Cut off: no request any more, and not answered.
    bob.say(group, kinds::SERVICE_REQUEST, &ruins[..ruins.len() - 1])
        .await;
    for (name, text, class) in [
        (
            "forged",
            to_json(&forged).to_string(),
            ErrorClass::UnauthorizedRequest,
        ),
        (
            "spoiled",
            to_json(&spoiled).to_string(),
            ErrorClass::UnauthorizedRequest,
        ),
        (
            "wrong code",
            to_json(&wrong_code).to_string(),
            ErrorClass::UnauthorizedRequest,
        ),
        (
            "code as a number",
            number.to_string(),
            ErrorClass::PolicyViolation,
        ),
        (
            "proof in an object",
            nested.to_string(),
            ErrorClass::PolicyViolation,
        ),
        (
            "more than a code",
            long.to_string(),
            ErrorClass::PolicyViolation,
        ),
    ] {
        let event = bob.say(group, kinds::SERVICE_REQUEST, &text).await;
        assert_eq!(bob.refusal(event).await, class, "{name}");
    }
    wanted
}

fn to_json(request: &ServiceRequest) -> Value {
    serde_json::to_value(request).unwrap()
}

/// A JWS with another signature.
fn spoil(proof: &str) -> String {
    let at = proof.rfind('.').unwrap() + 1;
    let other = if proof[at..].starts_with('A') {
        "B"
    } else {
        "A"
    };
    format!("{}{other}{}", &proof[..at], &proof[at + 1..])
}

/// The parts of a proof that are not the same in all proofs; each stands in the whole.
fn of_proof(proof: &Bearer) -> Vec<Wanted> {
    let parts = proof.expose().split('.').skip(1);
    parts
        .map(|part| Wanted::text("part of a proof", part))
        .collect()
}

/// The nonces that were asked about and the proofs that were given.
#[derive(Default)]
struct Given(Mutex<Vec<(String, Bearer)>>);

/// An issuer that remembers.
struct Recording<'a> {
    signer: &'a DevSigner,
    given: &'a Given,
}

impl Given {
    const fn by<'a>(&'a self, signer: &'a DevSigner) -> Recording<'a> {
        Recording {
            signer,
            given: self,
        }
    }

    fn wanted(&self) -> Vec<Wanted> {
        let given = self.0.lock().unwrap();
        assert_eq!(given.len(), 3, "two rotations and the admin program");
        given
            .iter()
            .flat_map(|(nonce, proof)| {
                let (challenge, binding) = nonce.split_once('.').unwrap();
                of_proof(proof).into_iter().chain([
                    Wanted::text("binding of a nonce", binding),
                    Wanted::text("challenge of a nonce", challenge),
                ])
            })
            .collect()
    }
}

#[async_trait]
impl ProofSource for Recording<'_> {
    async fn prove(&self, request: &ProofRequest) -> Result<Bearer, ProofError> {
        let proof = self.signer.prove(request).await?;
        self.given
            .0
            .lock()
            .unwrap()
            .push((request.nonce.clone(), proof.clone()));
        Ok(proof)
    }
}

/// Everything that this process, which is the admins and the issuer, logs.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn everything() -> Self {
        let captured = Self::default();
        let writer = captured.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        captured
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The program with every variable set that makes libraries talk.
fn talkative(dir: &Path) -> String {
    let path = dir.join("talkative");
    let script = format!(
        "#!/bin/sh\nexport RUST_LOG=trace RUST_BACKTRACE=full GOOGLE_CLOUD_RUST_LOGGING=true\nexec '{PROGRAM}' \"$@\"\n"
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Between the admins and the relay: its websocket listener and its own HTTP listener.
struct Taps {
    relay: Tap,
    web: Tap,
}

impl Taps {
    /// From now on whoever connects to the relay is heard.
    async fn before(relay: &mut Relay) -> Self {
        let taps = Self {
            relay: Tap::before(relay.url.trim_start_matches("ws://")).await,
            web: Tap::before(relay.web.trim_start_matches("http://")).await,
        };
        relay.url = format!("ws://{}", taps.relay.address());
        relay.web = format!("http://{}", taps.web.address());
        taps
    }

    /// Asks for everything there is, and for what there is not.
    async fn every_route(&self) {
        let client = reqwest::Client::new();
        let web = format!("http://{}", self.web.address());
        for path in [
            "healthz",
            "readyz",
            "metrics",
            "kr/v1/challenge",
            "nothing",
            "kr/v1/",
        ] {
            for method in [reqwest::Method::GET, reqwest::Method::POST] {
                let request = client.request(method, format!("{web}/{path}"));
                request.body("{}").send().await.unwrap();
            }
        }
        let relay = format!("http://{}", self.relay.address());
        for path in ["", "metrics", "nothing"] {
            for accept in ["application/nostr+json", "text/html"] {
                let request = client.get(format!("{relay}/{path}"));
                request.header("accept", accept).send().await.unwrap();
            }
        }
    }

    fn places(&self) -> [Place; 3] {
        [
            Place::new(
                "http",
                self.web.bytes(),
                &[
                    "\"alive\"",
                    "\"ready\":true",
                    "# TYPE",
                    "\"challenge\"",
                    "not_found",
                    "method_not_allowed",
                ],
            ),
            Place::new("wire, masked", self.relay.bytes(), &["supported_nips"]),
            Place::new(
                "wire",
                self.relay.payloads(),
                &[
                    "\"EVENT\"",
                    "\"kind\":445",
                    "\"kind\":1059",
                    "\"kind\":30443",
                ],
            ),
        ]
    }
}

/// What the operator's commands show.
fn operators_programs(world: &World) -> Vec<Place> {
    let config = world.layout.config();
    let mut places = Vec::new();
    for command in [
        &["client", "show", CLIENT][..],
        &["client", "list"],
        &["admin", "list"],
        &["group", "list"],
    ] {
        for json in [&[][..], &["--json"]] {
            let output = Command::new(PROGRAM)
                .args(command)
                .args(["--config"])
                .arg(&config)
                .args(json)
                .output()
                .unwrap();
            let known = match command[0] {
                "client" => CLIENT,
                "admin" => "npub1",
                _ => GROUP,
            };
            places.push(shown(&format!("{command:?} {json:?}"), &output, known));
        }
    }
    places
}

fn shown(name: &str, output: &Output, known: &str) -> Place {
    assert!(output.status.success(), "{name}: {output:?}");
    assert!(
        contains(&output.stdout, known.as_bytes()),
        "{name}: {output:?}"
    );
    Place::new(name, [&output.stdout[..], &output.stderr].concat(), &[])
}

/// What `keyturn-admin status --json` shows, with alice's home.
async fn admins_program(world: &mut World, relay: &Relay, given: &Given) -> Place {
    let dir = world.home("alice");
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    let config = Config {
        service_urls: vec![relay.web.clone()],
        services: vec![world.service()],
        settle_secs: SETTLE.as_secs(),
        ..Config::new(RelayUrl::parse(&relay.url).unwrap())
    };
    Home::create(&dir, &config, Some(world.keys("alice"))).unwrap();
    let proof = world.dir.path().join("proof");
    let request = world.dir.path().join("proof.request");
    let child = Command::new(ADMIN)
        .env("KEYTURN_ADMIN_LOG", "trace")
        .args(["--json", "--home"])
        .arg(&dir)
        .args(["status", CLIENT, "--proof-file"])
        .arg(&proof)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Read from the beginning: a pipe holds less than it says.
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let asked: ProofRequest = eventually("the program asks for a proof", async || {
        let text = std::fs::read(&request).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    })
    .await;
    let issuer = given.by(world.issuer.signer());
    let answer = issuer.prove(&asked).await.unwrap();
    std::fs::write(&proof, answer.expose()).unwrap();
    let output = tokio::time::timeout(PATIENCE, output)
        .await
        .unwrap()
        .unwrap();
    assert!(contains(&output.stderr, b"TRACE"), "it logs everything");
    shown("keyturn-admin status", &output, "current_version")
}

/// What the process tells about itself; and that a crash of it would leave no memory behind.
fn process(relay: &Relay) -> Vec<Place> {
    let read = |name: &str| std::fs::read(format!("/proc/{}/{name}", relay.pid()));
    let limits = String::from_utf8(read("limits").unwrap()).unwrap();
    let core = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"))
        .unwrap();
    let core: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(core[..2], ["0", "0"], "no core file, and no way to get one");

    let mut places = vec![Place::new("cmdline", read("cmdline").unwrap(), &["serve"])];
    match read("environ") {
        Ok(environ) => places.push(Place::new("environ", environ, &["RUST_LOG=trace"])),
        // The process is not dumpable: then not even its own user may look.
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
    }
    places
}

/// Every file, as it is.
fn files(when: &str, root: &Path) -> Vec<Place> {
    let mut places = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(
                std::fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            continue;
        }
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let known: &[&str] = match name.as_str() {
            "data/keyturn.db" => &[CLIENT],
            "keyturn.toml" => &["[relay]"],
            "relay.log" => &["keyturn takes requests"],
            _ => &[],
        };
        places.push(Place::new(
            format!("{when}{name}"),
            std::fs::read(&path).unwrap(),
            known,
        ));
    }
    for expected in ["data/keyturn.db", "data/member.db", "data.mdb", "relay.log"] {
        assert!(
            places
                .iter()
                .any(|place| place.name.ends_with(expected) && !place.bytes.is_empty()),
            "{when}{expected} is searched"
        );
    }
    places
}
