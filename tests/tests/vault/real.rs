//! Against a server that nobody here wrote.

use std::time::Duration;

use keyturn::devices::issuer::{IssueRequest, IssuerError, NonceHash, Reason, SecretIdIssuer as _};
use keyturn_tests::eventually;
use keyturn_tests::vault::{Operator, Rvault, Stand, certificates};
use serde_json::json;

use super::behaviour::{self, failure, good, issuer, request, secret_id, stand_for_devices};

/// The Vault of the environment, or an `rvault` of our own.
struct Real {
    /// Lives as long as the test.
    _server: Option<Rvault>,
    operator: Operator,
    is_rvault: bool,
}

impl Real {
    async fn here() -> Self {
        let (server, operator) = match Operator::of_the_environment() {
            Some(operator) => (None, operator),
            None => {
                let server = Rvault::start().await;
                let operator = server.operator();
                (Some(server), operator)
            }
        };
        Self {
            // The environment may name one as well.
            is_rvault: operator.is_rvault().await,
            _server: server,
            operator,
        }
    }

    async fn stand(&self) -> Stand {
        stand_for_devices(&self.operator).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_id_lives_from_issue_to_destruction() {
    let real = Real::here().await;
    let stand = real.stand().await;
    behaviour::the_whole_life(&stand).await;
    stand.clear().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_secret_ids_are_found_by_their_nonce() {
    let real = Real::here().await;
    let stand = real.stand().await;
    behaviour::lost_ones_are_found_by_nonce(&stand).await;
    stand.clear().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_looked_for_is_not_called_gone() {
    let real = Real::here().await;
    let stand = real.stand().await;
    behaviour::what_cannot_be_looked_for_is_not_called_gone(&stand).await;
    stand.clear().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uses_and_networks_are_limited() {
    let real = Real::here().await;
    let stand = real.stand().await;
    behaviour::uses_are_limited(&stand).await;
    behaviour::networks_are_passed_on(&stand, !real.is_rvault).await;
    stand.clear().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_what_is_wrong() {
    let real = Real::here().await;
    let stand = real.stand().await;
    behaviour::refusals_say_what_is_wrong(&stand).await;
    stand.clear().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_logs_in_by_itself() {
    let real = Real::here().await;
    let stand = real.stand().await;
    stand.least_privileged_policy().await;
    let role = json!({ "token_ttl": "20m", "token_policies": [format!("{}-issuer", stand.mount)] });
    behaviour::it_logs_in_by_itself(&stand, role).await;
    stand.clear().await;
}

/// `rvault` ignores the wish to wrap: then the secret_id must not be handed out in the clear, nor live on. A real Vault wraps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrapped_secret_id_is_wrapped_or_not_given_at_all() {
    let real = Real::here().await;
    let stand = real.stand().await;
    if real.is_rvault {
        let issuer = issuer(stand.settings());
        let nonce = NonceHash::of("wrapped");
        let wrapping = IssueRequest {
            wrap_ttl: Some(Duration::from_secs(60)),
            ..request(&stand.role, &nonce)
        };
        let error = failure(issuer.issue(wrapping).await);
        assert_eq!(
            error,
            IssuerError::Permanent {
                why: Reason::Unsupported
            }
        );
        assert!(stand.accessors().await.is_empty());
    } else {
        behaviour::the_device_unwraps_once(&stand).await;
    }
    stand.clear().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_issued_outlives_a_killed_server() {
    let mut server = Rvault::start().await;
    let stand = stand_for_devices(&server.operator()).await;
    let issuer = issuer(stand.settings());
    let nonce = NonceHash::of("before");
    let issued = good(issuer.issue(request(&stand.role, &nonce)).await);
    server.kill();
    let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
    assert!(
        matches!(error.reason(), Reason::Unreachable | Reason::CircuitOpen),
        "{error:?}"
    );
    assert_eq!(failure(issuer.health().await).reason(), Reason::Unreachable);
    server.restart().await;
    eventually("the issuer works again", async || {
        issuer.issue(request(&stand.role, &nonce)).await.ok()
    })
    .await;
    assert!(
        stand
            .log_in(&issued.role_id, secret_id(&issued))
            .await
            .is_some()
    );
    good(issuer.destroy(&stand.role, &issued.accessor).await);
    assert!(
        stand
            .log_in(&issued.role_id, secret_id(&issued))
            .await
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_server_is_waited_for() {
    let server = Rvault::start().await;
    let stand = stand_for_devices(&server.operator()).await;
    let issuer = issuer(stand.settings());
    let nonce = NonceHash::of("sealed");
    good(issuer.issue(request(&stand.role, &nonce)).await);
    let before = stand.accessors().await;
    server.seal().await;
    let error = failure(issuer.issue(request(&stand.role, &nonce)).await);
    assert!(
        matches!(
            error,
            IssuerError::Retryable {
                why: Reason::Sealed,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(failure(issuer.health().await).reason(), Reason::Sealed);
    server.unseal().await;
    assert_eq!(stand.accessors().await, before);
    eventually("the issuer works again", async || {
        issuer.issue(request(&stand.role, &nonce)).await.ok()
    })
    .await;
    good(issuer.health().await);
}

/// TLS with the operator's own CA; another CA, or the machine's list, does not do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_configured_ca_is_trusted() {
    let server = Rvault::start_tls(certificates()).await;
    let stand = stand_for_devices(&server.operator()).await;
    behaviour::the_whole_life(&stand).await;
    let other = certificates();
    for ca_file in [None, Some(other.path().join("ca.crt"))] {
        let mut settings = stand.settings();
        settings.ca_file = ca_file;
        let nonce = NonceHash::of("other CA");
        let error = failure(issuer(settings).issue(request(&stand.role, &nonce)).await);
        assert!(
            matches!(
                error,
                IssuerError::Retryable {
                    why: Reason::Unreachable,
                    ..
                }
            ),
            "{error:?}"
        );
    }
}
