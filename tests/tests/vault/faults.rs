//! A server that misbehaves: whether something was issued is never guessed too low, nothing is lost, nothing hangs.

use std::time::{Duration, Instant};

use keyturn::devices::issuer::{IssueRequest, IssuerError, NonceHash, Reason, SecretIdIssuer as _};
use keyturn_tests::eventually;
use keyturn_tests::vault::{Api, Fault, Stand};

use super::behaviour::{failure, good, intent, issuer, request, stand_for_devices};

/// Where issuing happens, and nothing else.
const ISSUE: &str = "river-iot/secret-id";

async fn world() -> (Api, Stand) {
    let api = Api::start().await;
    let stand = stand_for_devices(&api.operator()).await;
    (api, stand)
}

/// Whatever becomes of the answer, what was made is found by its nonce and can be destroyed.
#[tokio::test]
async fn an_answer_that_is_lost_leaves_no_secret_id_behind() {
    let (api, stand) = world().await;
    for (number, fault) in [
        Fault::status(ISSUE, 500, r#"{"errors":["internal error"]}"#),
        Fault::status(ISSUE, 502, "<html>bad gateway</html>"),
        Fault::status(ISSUE, 504, ""),
        // A proxy whose backend was gone when the answer was due.
        Fault::status(ISSUE, 503, "<html>no server is available</html>"),
        Fault::status(ISSUE, 503, r#"{"errors":["no server is available"]}"#),
        Fault::status(ISSUE, 501, ""),
        Fault::hang(ISSUE),
        Fault::reset(ISSUE),
        Fault::garbage(ISSUE, "<html>welcome</html>"),
        Fault::garbage(ISSUE, r#"{"data":{"secret_id":7}}"#),
        Fault::garbage(ISSUE, r#"{"data":null}"#),
        Fault::garbage(
            ISSUE,
            r#"{"data":{"secret_id":"s","secret_id_accessor":"../../x"}}"#,
        ),
        Fault::huge(ISSUE),
    ]
    .into_iter()
    .enumerate()
    {
        let shown = format!("{fault:?}");
        api.fault(fault.after_doing_it());
        let issuer = issuer(stand.settings());
        let nonce = NonceHash::of(&format!("lost {number}"));
        let started = Instant::now();
        let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
        assert!(error.in_doubt(), "{shown}: {error:?}");
        assert!(started.elapsed() < Duration::from_secs(60), "{shown}");
        let found = good(issuer.find(&stand.role, &[intent(&nonce)], &[]).await);
        assert_eq!(found.len(), 1, "{shown}");
        good(issuer.destroy(&stand.role, &found[0].accessor).await);
        assert!(stand.accessors().await.is_empty(), "{shown}");
    }
}

#[tokio::test]
async fn what_was_surely_not_done_is_not_in_doubt() {
    let (api, stand) = world().await;
    for (status, why) in [
        (400, Reason::Rejected),
        (412, Reason::Standby),
        (429, Reason::RateLimited),
        (472, Reason::Standby),
        (473, Reason::Standby),
        (501, Reason::Sealed),
        (503, Reason::Sealed),
    ] {
        api.fault(Fault::status(
            ISSUE,
            status,
            r#"{"errors":["Vault is sealed"]}"#,
        ));
        let issuer = issuer(stand.settings());
        let nonce = NonceHash::of("not done");
        let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
        assert_eq!(error.reason(), why, "{status}");
        assert!(!error.in_doubt(), "{status}");
        assert!(stand.accessors().await.is_empty(), "{status}");
    }
}

#[tokio::test]
async fn a_server_that_asks_for_patience_gets_it() {
    let (api, stand) = world().await;
    let issuer = issuer(stand.settings());
    for (seconds, after) in [("7", 7), ("999999", 600), ("soon", 1)] {
        api.fault(Fault::retry_after(ISSUE, 429, seconds));
        let nonce = NonceHash::of("patience");
        let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
        let expected = IssuerError::Retryable {
            why: Reason::RateLimited,
            after: Duration::from_secs(after),
        };
        assert_eq!(error, expected, "{seconds}");
    }
}

/// Whatever a server hands out instead of what was asked for is taken back.
#[tokio::test]
async fn an_answer_that_is_not_what_was_asked_for_is_refused() {
    let (api, stand) = world().await;
    let issuer = issuer(stand.settings());
    let nonce = NonceHash::of("other than asked");
    for answer in [
        r#"{"data":{"secret_id":"s","secret_id_accessor":"a1","secret_id_ttl":0}}"#,
        r#"{"data":{"secret_id":"s","secret_id_accessor":"a1","secret_id_ttl":3601}}"#,
        r#"{"data":{"secret_id":"s","secret_id_accessor":"a1","secret_id_ttl":60,"secret_id_num_uses":0}}"#,
        r#"{"data":{"secret_id":"s","secret_id_accessor":"a1","secret_id_ttl":60,"secret_id_num_uses":9}}"#,
    ] {
        api.fault(Fault::garbage(ISSUE, answer));
        api.forget_seen();
        let twice = IssueRequest {
            num_uses: 2,
            ..request(&stand.role, &nonce)
        };
        let error = failure(issuer.issue(twice).await);
        assert_eq!(
            error,
            IssuerError::Permanent {
                why: Reason::Rejected
            },
            "{answer}"
        );
        assert!(
            api.seen().iter().any(|it| it.path.ends_with("/destroy")),
            "{answer}"
        );
    }
    // Wrapped by somebody else, or without having been asked.
    let wrapped = r#"{"wrap_info":{"token":"t","ttl":60,"creation_path":"cubbyhole/x","wrapped_accessor":"a1"}}"#;
    for wrap_ttl in [None, Some(Duration::from_secs(60))] {
        api.fault(Fault::garbage(ISSUE, wrapped));
        let error = failure(
            issuer
                .issue(IssueRequest {
                    wrap_ttl,
                    ..request(&stand.role, &nonce)
                })
                .await,
        );
        assert_eq!((error.reason(), error.in_doubt()), (Reason::Garbled, true));
    }
}

#[tokio::test]
async fn a_server_that_fails_is_left_alone_and_tried_again() {
    let (api, stand) = world().await;
    let issuer = issuer(stand.settings());
    let nonce = NonceHash::of("circuit");
    good(issuer.issue(request(&stand.role, &nonce)).await);
    api.seal(true);
    for _ in 0..5 {
        let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
        assert_eq!(error.reason(), Reason::Sealed);
    }
    api.forget_seen();
    let mut asked = 0;
    for _ in 0..50 {
        let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
        match error.reason() {
            Reason::CircuitOpen => assert!(error.retry_after() <= Duration::from_secs(30)),
            // A slow machine can get as far as the one call that tries again.
            Reason::Sealed => asked += 1,
            other => panic!("{other}"),
        }
    }
    assert!(asked < 5, "{asked}");
    assert_eq!(api.seen().len(), asked);
    api.seal(false);
    eventually("it works again", async || {
        issuer.issue(request(&stand.role, &nonce)).await.ok()
    })
    .await;
}

/// Plain 500s about accessors that are gone are answers, not failures of the server.
#[tokio::test]
async fn destroying_what_is_gone_does_not_open_the_circuit() {
    let (_api, stand) = world().await;
    let issuer = issuer(stand.settings());
    for number in 0..20 {
        let gone = format!("gone-{number}").parse().unwrap();
        good(issuer.destroy(&stand.role, &gone).await);
    }
    let nonce = NonceHash::of("still there");
    good(issuer.issue(request(&stand.role, &nonce)).await);
}

/// A destruction that fails may not have happened: it is said, and the next one does it.
#[tokio::test]
async fn a_destruction_that_fails_is_tried_again() {
    let (api, stand) = world().await;
    let issuer = issuer(stand.settings());
    let nonce = NonceHash::of("destroy");
    let issued = good(issuer.issue(request(&stand.role, &nonce)).await);
    api.fault(Fault::status("secret-id-accessor/destroy", 500, "{}"));
    let error = failure(issuer.destroy(&stand.role, &issued.accessor).await);
    assert_eq!(error.reason(), Reason::ServerError);
    assert_eq!(stand.accessors().await.len(), 1);
    good(issuer.destroy(&stand.role, &issued.accessor).await);
    assert!(stand.accessors().await.is_empty());
}

/// Half a list of orphans is none: recovery must not take the rest for destroyed.
#[tokio::test]
async fn a_search_that_fails_half_way_fails() {
    let (api, stand) = world().await;
    let issuer = issuer(stand.settings());
    let nonces = ["a", "b", "c"].map(NonceHash::of);
    for nonce in &nonces {
        good(issuer.issue(request(&stand.role, nonce)).await);
    }
    let intents = nonces.each_ref().map(intent);
    api.fault(Fault::status("secret-id-accessor/lookup", 500, "{}"));
    let error = failure(issuer.find(&stand.role, &intents, &[]).await);
    assert_eq!(error.reason(), Reason::ServerError);
    assert!(!error.in_doubt());
    assert_eq!(good(issuer.find(&stand.role, &intents, &[]).await).len(), 3);
}
