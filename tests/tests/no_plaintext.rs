//! The plaintext is nowhere but in memory and inside MLS: whole rotations and failing requests with every log at TRACE, then a search through every
//! file, decrypted database, log, answer, output and byte on the wire. What proves a request (proof, nonce, TOTP code, TOTP seed) and the hash
//! are looked for as well.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "no_plaintext/given.rs"]
mod given;
#[path = "no_plaintext/places.rs"]
mod places;
#[path = "no_plaintext/wrong.rs"]
mod wrong;

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

use given::{Given, Recording, of_proof};
use places::{Captured, Taps, admins_program, files, operators_programs, process, talkative};
use wrong::everything_wrong;

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
