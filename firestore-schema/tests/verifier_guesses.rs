//! Guessing against the verifier: what it costs, and whom it keeps out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/mac.rs"]
mod mac;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use keyturn_proto::{ClientId, PresentedSecret, Secret, UnixMs, VersionId};
use keyturn_store::documents::{ClientStatus, SnapshotEntry, VersionState};
use keyturn_store::mac::prehash::BcryptHash;
use keyturn_store::mac::{LocalMacKey, MacKey as _};
use keyturn_store::verifier::{
    ClientSnapshot, Settings, SnapshotSource, SourceError, Verified, Verifier, VerifyError, Which,
};
use mac::Counting;

const NOW: UnixMs = UnixMs(1_760_000_000_000);
const GUESSES: u32 = 100_000;
const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 66));
const OWNER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));

/// Some clients, and how often anybody was looked for.
struct Fixed(HashMap<ClientId, ClientSnapshot>, Arc<AtomicU32>);

#[async_trait]
impl SnapshotSource for Fixed {
    async fn snapshot(&self, client: &ClientId) -> Result<Option<ClientSnapshot>, SourceError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok(self.0.get(client).cloned())
    }
}

struct Stand {
    verifier: Verifier<Fixed, Counting>,
    mac: Counting,
    reads: Arc<AtomicU32>,
}

impl Stand {
    /// Client `generated` with a secret of ours; `plain` and `bcrypt` with an imported one.
    async fn new(generated: &Secret, imported: &str) -> Self {
        let key = LocalMacKey::from_keys(&[7; 32], &[]);
        let hash = BcryptHash::parse(&bcrypt::hash(imported, 4).unwrap()).unwrap();
        let prefilter = hex::encode(keyturn_proto::derive::prefilter(generated.expose()));
        let prehash = hash.setting().as_str().to_owned();
        let mut clients = HashMap::new();
        for (name, input, prefilter, prehash) in [
            ("generated", generated.expose(), Some(prefilter), None),
            ("plain", imported, None, None),
            ("bcrypt", hash.expose(), None, Some(prehash)),
        ] {
            let client: ClientId = name.parse().unwrap();
            let version_id: VersionId = format!("{:026}", 1).parse().unwrap();
            let made = key.sign(&client, &version_id, input).await;
            let made = made.unwrap_or_else(|_| unreachable!("a local key signs"));
            let entry = SnapshotEntry {
                version_id,
                state: VersionState::Current,
                not_before: UnixMs(0),
                not_after: None,
                secret_hash: made.hash.as_str().to_owned(),
                mac_key_ref: made.key_ref,
                prefilter,
                prehash,
            };
            let snapshot = ClientSnapshot {
                status: ClientStatus::Active,
                entries: vec![entry],
                revision: 0,
                coverage: None,
            };
            clients.insert(client, snapshot);
        }
        let mac = Counting::new();
        let reads = Arc::new(AtomicU32::new(0));
        let source = Fixed(clients, Arc::clone(&reads));
        Self {
            verifier: Verifier::new(source, mac.clone(), Settings::default()).unwrap(),
            mac,
            reads,
        }
    }

    async fn at(
        &self,
        client: &str,
        secret: &str,
        source: IpAddr,
    ) -> Result<Verified, VerifyError> {
        let secret = PresentedSecret::new(secret);
        self.verifier.verify(client, &secret, source, NOW).await
    }

    fn calls(&self) -> u32 {
        self.mac.taken()
    }

    fn reads(&self) -> u32 {
        self.reads.swap(0, Ordering::SeqCst)
    }
}

fn accepted(result: Result<Verified, VerifyError>) -> bool {
    result.is_ok_and(|verified| verified.which == Which::Current)
}

/// One of `n` sources in different networks.
fn spread(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(u32::from_be_bytes([10, 0, 0, 0]) + n))
}

#[tokio::test]
async fn a_hundred_thousand_guesses_at_a_generated_secret_reach_the_mac_key_a_handful_of_times() {
    let secret = Secret::generate().unwrap();
    let stand = Stand::new(&secret, "imported").await;
    // From one source, and from everywhere; of the right shape, and not.
    for n in 0..GUESSES {
        let source = if n % 2 == 0 { ATTACKER } else { spread(n) };
        let generated = Secret::generate().unwrap();
        let guess = match n % 3 {
            0 => format!("guess {n}"),
            _ => generated.expose().to_owned(),
        };
        let refused = stand.at("generated", &guess, source).await;
        assert_eq!(refused, Err(VerifyError::Refused));
    }
    // 32 bits: one in four billion passes.
    assert!(stand.calls() <= 2);
    // Cold, even from where the guesses came (all of them behind one proxy, say): nothing was used up.
    assert!(accepted(
        stand.at("generated", secret.expose(), ATTACKER).await
    ));
    assert_eq!(stand.calls(), 1);
    assert!(accepted(
        stand.at("generated", secret.expose(), OWNER).await
    ));
}

#[tokio::test]
async fn a_hundred_thousand_guesses_at_clients_that_do_not_exist_read_little_and_keep_nobody_out() {
    let secret = Secret::generate().unwrap();
    let stand = Stand::new(&secret, "imported").await;
    let started = std::time::Instant::now();
    for n in 0..GUESSES {
        let nobody = format!("nobody-{n}");
        let refused = stand.at(&nobody, secret.expose(), ATTACKER).await;
        assert_eq!(refused, Err(VerifyError::Refused));
    }
    let (calls, reads) = (stand.calls(), stand.reads());
    assert_eq!(calls, 0);
    // A burst of 200, 20 a second after that, and one for each second in which it is tried again.
    let seconds = u32::try_from(started.elapsed().as_secs()).unwrap() + 1;
    assert!((200..=200 + 25 * seconds).contains(&reads), "{reads}");
    // The same id again and again costs nothing either, and what is no id at all is nobody's.
    for n in 0..GUESSES {
        let nobody = if n % 2 == 0 { "nobody" } else { "no/body" };
        let refused = stand.at(nobody, secret.expose(), spread(n)).await;
        assert_eq!(refused, Err(VerifyError::Refused));
    }
    // Read when it was first asked for; its time does not run out, since no time passes.
    assert_eq!((stand.calls(), stand.reads()), (0, 1));
    // A cold caller from anywhere else.
    assert!(accepted(
        stand.at("generated", secret.expose(), OWNER).await
    ));
    assert_eq!((stand.calls(), stand.reads()), (1, 1));
    // Whoever is known is found for everybody, and a right secret is right from there as well.
    assert!(accepted(
        stand.at("generated", secret.expose(), ATTACKER).await
    ));
}

#[tokio::test]
async fn guesses_at_imported_secrets_are_limited_and_their_owner_is_not_kept_out() {
    let imported = "hunter2 from 2009";
    let stand = Stand::new(&Secret::generate().unwrap(), imported).await;
    for client in ["plain", "bcrypt"] {
        let started = std::time::Instant::now();
        // One source that does not stop.
        for n in 0..GUESSES {
            let refused = stand.at(client, &format!("guess {n}"), ATTACKER).await;
            assert_eq!(refused, Err(VerifyError::Refused));
        }
        // A burst of 25, and 5 a second after that.
        let seconds = u32::try_from(started.elapsed().as_secs()).unwrap() + 1;
        let calls = stand.calls();
        assert!(calls <= 25 + 5 * seconds, "{client}: {calls}");
        // The owner, cold, in the middle of it.
        assert!(
            accepted(stand.at(client, imported, OWNER).await),
            "{client}"
        );

        // Then from everywhere: more sources than the client's limits have room for.
        stand.calls();
        for n in 0..GUESSES {
            let refused = stand
                .at(client, &format!("guess {n}"), spread(n % 5_000))
                .await;
            assert_eq!(refused, Err(VerifyError::Refused));
        }
        let seconds = u32::try_from(started.elapsed().as_secs()).unwrap() + 1;
        let calls = stand.calls();
        assert!(calls <= 200 + 40 * seconds, "{client}: {calls}");
        // The owner is known. Nothing is remembered of this secret: a trailing byte makes it another one, and bcrypt's 72 do not reach it.
        let refused = stand.at(client, &format!("{imported}!"), OWNER).await;
        assert_eq!(refused, Err(VerifyError::Refused));
        assert_eq!(stand.calls(), 1, "{client}: the owner's question was asked");
        assert!(
            accepted(stand.at(client, imported, OWNER).await),
            "{client}"
        );
        // Nor does what happens to one client hold another's up.
        stand.calls();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_with_the_same_cold_bcrypt_secret_share_one_check() {
    let imported = "hunter2 from 2009";
    let stand = Arc::new(Stand::new(&Secret::generate().unwrap(), imported).await);
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let stand = Arc::clone(&stand);
            tokio::spawn(async move { stand.at("bcrypt", imported, OWNER).await })
        })
        .collect();
    // More of them than one source may ask about one client: they ask once.
    for task in tasks {
        assert!(accepted(task.await.unwrap()));
    }
    // Somebody may have looked before the first answer was there and joined after it was gone.
    let calls = stand.calls();
    assert!((1..=25).contains(&calls), "{calls}");
}

#[tokio::test]
async fn bcrypts_72_bytes_hold_and_a_nul_costs_nothing() {
    let long = "x".repeat(72);
    let stand = Stand::new(&Secret::generate().unwrap(), &long).await;
    assert!(accepted(
        stand.at("bcrypt", &format!("{long}tail"), OWNER).await
    ));
    assert!(!accepted(stand.at("bcrypt", &long[..71], OWNER).await));
    stand.calls();
    assert!(!accepted(
        stand.at("bcrypt", &format!("{long}\0"), OWNER).await
    ));
    assert_eq!(stand.calls(), 0);
    // A plaintext import has no such rule.
    assert!(!accepted(
        stand.at("plain", &format!("{long}tail"), OWNER).await
    ));
}
