//! Configuration, secrets, directories, ports, clock; and the whole when all is well.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keyturn::doctor::{Finding, Level};
use keyturn::host::Host;
use keyturn::running::Keyturn;
use keyturn_mls::{Member, MemberConfig, StorageKey};
use keyturn_proto::UnixMs;
use keyturn_store::store::AuditTrail as _;
use nostr::Keys;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::audit;
use crate::patient::{CONFIG, Patient};
use crate::world::{Handover, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_installation_is_in_order() {
    let patient = Patient::new().await;
    let report = patient.examine().await;
    let not_ok: Vec<&Finding> = report
        .findings
        .iter()
        .filter(|finding| finding.level != Level::Ok)
        .collect();
    assert!(not_ok.is_empty(), "{not_ok:#?}");
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.what.starts_with("the service is npub1"))
    );
    for check in [
        "config", "secrets", "relay", "ports", "clock", "store", "registry", "timed", "mac", "mls",
        "issuer",
    ] {
        assert!(report.findings.iter().any(|f| f.check == check), "{check}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_start_nothing_is_made_and_nothing_fails() {
    let patient = Patient::new().await;
    for name in [
        "keyturn.db",
        "keyturn.db-wal",
        "keyturn.db-shm",
        "member.db",
        "member.db.lock",
    ] {
        let _ = fs::remove_file(patient.path(name));
    }
    fs::remove_dir(patient.path("relay")).unwrap();
    let report = patient.examine().await;
    assert_eq!(report.count(Level::Fail), 0, "{:#?}", report.findings);
    fs::remove_file(patient.path("totp.key")).unwrap();
    patient
        .finds(
            "secrets",
            Level::Fail,
            "admission.totp_seed_key",
            "(umask 077; openssl rand -hex 32 > ",
        )
        .await;
    for name in ["keyturn.db", "member.db", "member.db.lock", "relay"] {
        assert!(!patient.path(name).exists(), "{name} was made");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_is_judged() {
    let mut patient = Patient::new().await;
    patient.chmod("keyturn.toml", 0o666);
    patient
        .finds("config", Level::Fail, "another issuer", "chmod go-w ")
        .await;
    let inline = CONFIG.replace(
        "storage_key_file = \"mls.key\"",
        &format!("storage_key = \"{}\"", "07".repeat(32)),
    );
    patient.file("keyturn.toml", &inline, 0o644);
    patient
        .finds("config", Level::Fail, "holds secret values", "chmod 600 ")
        .await;
    patient.file("keyturn.toml", CONFIG, 0o644);

    patient.set("MLS__RELAYS", "ws://127.0.0.1:8080");
    patient.set("POLICY__MIN_INTERVAL", "1s");
    patient.set("LOG__LEVEL", "debug");
    for (what, mend) in [
        ("ws://127.0.0.1:8080", "wss://"),
        ("policy.min_interval is 1s", "policy.min_interval"),
        ("log.level", "log.level = \"info\""),
    ] {
        patient.finds("config", Level::Warn, what, mend).await;
    }
    patient.set("PROFILE__ENVIRONMENT", "development");
    patient
        .finds("config", Level::Warn, "development", "production")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_secret_is_judged() {
    let patient = Patient::new().await;
    let nsec = fs::read_to_string(patient.path("nostr.nsec")).unwrap();
    for (name, key, value) in [
        ("mls.key", "mls.storage_key", "07".repeat(32)),
        ("nostr.nsec", "mls.nostr_secret_key", nsec),
        ("challenge.key", "admission.challenge_key", "08".repeat(32)),
        ("totp.key", "admission.totp_seed_key", "09".repeat(32)),
    ] {
        patient.chmod(name, 0o644);
        patient
            .finds("secrets", Level::Fail, key, "chmod 600 ")
            .await;
        patient.file(name, "not a key", 0o600);
        patient.finds("secrets", Level::Fail, key, "").await;
        fs::remove_file(patient.path(name)).unwrap();
        // What was encrypted under it is lost without it; challenges live for minutes.
        let mend = match name {
            "challenge.key" => "(umask 077; openssl rand -hex 32 > ",
            _ => "restore it from its backup",
        };
        patient.finds("secrets", Level::Fail, key, mend).await;
        patient.file(name, &value, 0o600);
    }
    patient.file("totp.key", &"08".repeat(32), 0o600);
    patient
        .finds(
            "secrets",
            Level::Fail,
            "are the same secret",
            "admission.totp_seed_key",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relays_directory_is_judged() {
    let patient = Patient::new().await;
    patient.chmod("relay", 0o777);
    patient
        .finds("relay", Level::Fail, "written by others", "chmod go-w ")
        .await;
    fs::remove_dir(patient.path("relay")).unwrap();
    patient.file("relay", "", 0o600);
    patient
        .finds("relay", Level::Fail, "not a directory", "relay.data_dir")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_others_hold_are_named() {
    let mut patient = Patient::new().await;
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    // Takes connections and never answers: the doctor gives up by itself.
    patient.set("RELAY__PORT", &port);
    patient
        .finds("ports", Level::Fail, "relay.port", &format!(":{port}'"))
        .await;
    patient.set("WEB__LISTEN", &format!("127.0.0.1:{port}"));
    patient
        .finds("ports", Level::Fail, "the same address", "another port")
        .await;
    patient.set("RELAY__PORT", "0");
    patient
        .finds("ports", Level::Fail, "web.listen", &format!(":{port}'"))
        .await;
    // TEST-NET-1 (RFC 5737) is nobody's address.
    patient.set("WEB__LISTEN", "192.0.2.1:1");
    patient
        .finds("ports", Level::Fail, "cannot listen", "ip address")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_keyturn_is_asked_how_it_is() {
    let mut patient = Patient::new().await;
    let config = Arc::new(patient.config());
    let (ports, handed_over) = oneshot::channel();
    let factory = Handover {
        ports,
        served: None,
        fails: false,
    };
    let keyturn = Keyturn::start(Arc::clone(&config), Box::new(factory)).unwrap();
    let ports = timeout(PATIENCE, handed_over).await.unwrap().unwrap();
    patient.set("WEB__LISTEN", &keyturn.web_address().to_string());
    let jwks = ports.readiness.register("jwks");
    jwks.not_ready("the issuer sleeps");
    patient
        .finds(
            "ports",
            Level::Fail,
            "jwks: the issuer sleeps",
            "journalctl",
        )
        .await;

    let extension = keyturn::extension::RotationExtension::of(&keyturn);
    let host = Host::start(&config.relay, move |app| {
        extension.attach(&app)?;
        Ok(app.add_extension(extension))
    });
    let host = host.await.unwrap();
    patient.set("RELAY__PORT", &host.address().port().to_string());
    jwks.ready();
    timeout(PATIENCE, async {
        while !ports.readiness.all_ready() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    patient.finds("ports", Level::Ok, "is ready", "").await;
    patient
        .finds("ports", Level::Ok, "the relay answers", "")
        .await;
    let member = Member::open(MemberConfig::new(
        patient.path("member.db"),
        StorageKey::from_text(&"07".repeat(32)).unwrap(),
        Keys::parse(&fs::read_to_string(patient.path("nostr.nsec")).unwrap()).unwrap(),
    ));
    patient
        .finds(
            "mls",
            Level::Ok,
            "the running keyturn has the database open",
            "",
        )
        .await;
    drop(member);

    let deadline = Instant::now() + PATIENCE;
    drop(ports);
    tokio::task::spawn_blocking(move || keyturn.shutdown(deadline))
        .await
        .unwrap();
    host.shutdown(deadline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_is_noticed() {
    let mut patient = Patient::new().await;
    let ahead = SystemTime::now() + Duration::from_secs(7_200);
    let file = fs::File::options()
        .write(true)
        .open(patient.path("mac.key"))
        .unwrap();
    file.set_modified(ahead).unwrap();
    patient
        .finds("clock", Level::Fail, "mac.key was written", "timedatectl")
        .await;
    file.set_modified(SystemTime::now()).unwrap();
    let later = patient.now.plus(Duration::from_secs(7_200));
    patient.store().append(audit(later)).await.unwrap();
    patient
        .finds("clock", Level::Fail, "newest audit record", "timedatectl")
        .await;
    patient.now = UnixMs(1_000);
    patient
        .finds("clock", Level::Fail, "before 2026", "timedatectl")
        .await;
}
