//! The issuer of proofs.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, SystemTime};

use keyturn::doctor::Level;
use serde_json::json;

use crate::now;
use crate::patient::{Patient, jwk};

/// Answers every connection with these bytes, for as long as the process lives.
fn issuer(answer: impl Fn() -> String + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
            }
            let _ = stream.write_all(answer().as_bytes());
        }
    });
    url
}

fn answer(status: &str, date: Option<SystemTime>, body: &str) -> String {
    let date = date.map_or(String::new(), |at| {
        format!("date: {}\r\n", httpdate::fmt_http_date(at))
    });
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{date}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

async fn asks(answer: impl Fn() -> String + Send + 'static) -> Patient {
    let mut patient = Patient::new().await;
    patient
        .variables
        .retain(|(key, _)| key != "KEYTURN_ISSUER__JWKS_FILE");
    // Plain http is for trials only.
    patient.set("PROFILE__ENVIRONMENT", "development");
    patient.set("ISSUER__JWKS_URL", &issuer(answer));
    patient.now = now();
    patient
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_without_usable_keys_is_named() {
    let good = json!({ "keys": [jwk()] }).to_string();
    let well = {
        let good = good.clone();
        asks(move || answer("200 OK", Some(SystemTime::now()), &good)).await
    };
    well.finds("issuer", Level::Ok, "1 usable keys: \"k1\" (EdDSA)", "")
        .await;
    well.finds("issuer", Level::Ok, "its clock agrees with ours", "")
        .await;

    let down = asks(|| answer("503 Service Unavailable", None, "")).await;
    down.finds("issuer", Level::Fail, "HTTP status 503", "curl -sS")
        .await;
    let page = asks(|| answer("200 OK", None, "<html>")).await;
    page.finds(
        "issuer",
        Level::Fail,
        "not a JWK set",
        "have the issuer publish",
    )
    .await;
    let mac_only = json!({ "keys": [{ "kty": "oct", "kid": "k", "k": "AAAA" }] }).to_string();
    let mac_only = asks(move || answer("200 OK", None, &mac_only)).await;
    mac_only
        .finds(
            "issuer",
            Level::Fail,
            "no key that may sign proofs",
            "Ed25519",
        )
        .await;

    let odd = json!({ "keys": [jwk(), { "kty": "oct", "kid": "k", "k": "AAAA" }] }).to_string();
    let odd = asks(move || answer("200 OK", None, &odd)).await;
    odd.finds(
        "issuer",
        Level::Warn,
        "1 keys cannot be used: of a type",
        "",
    )
    .await;
    odd.finds("issuer", Level::Warn, "no usable Date header", "date -u")
        .await;

    let mut other = asks(move || answer("200 OK", Some(SystemTime::now()), &good)).await;
    other.set("ISSUER__ALGORITHMS", "RS256");
    other
        .finds(
            "issuer",
            Level::Fail,
            "none of its keys",
            "issuer.algorithms",
        )
        .await;
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    other.set("ISSUER__JWKS_URL", &format!("http://{closed}/jwks.json"));
    other
        .finds("issuer", Level::Fail, "cannot be fetched", "curl -sS")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_disagree_are_named() {
    let good = json!({ "keys": [jwk()] }).to_string();
    for (skew, direction) in [(90, "ahead of"), (-90, "behind")] {
        let good = good.clone();
        let patient = asks(move || {
            let by = Duration::from_secs(90);
            let at = SystemTime::now();
            let at = if skew > 0 { at + by } else { at - by };
            answer("200 OK", Some(at), &good)
        })
        .await;
        patient
            .finds("issuer", Level::Fail, direction, "timedatectl")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_file_that_others_can_write_is_named() {
    let mut patient = Patient::new().await;
    patient.chmod("jwks.json", 0o664);
    patient
        .finds("issuer", Level::Fail, "can make proofs", "chmod go-w ")
        .await;
    patient.set("ISSUER__JWKS_FILE", "gone.json");
    patient
        .finds("issuer", Level::Fail, "cannot be fetched", "gone.json")
        .await;
}
