//! Tokens: sent with every call, and part of every deadline.

use std::sync::atomic::{AtomicU32, Ordering};

use google_cloud_auth::credentials::{
    CacheableResource, Credentials, CredentialsProvider, EntityTag,
};
use google_cloud_auth::errors::CredentialsError;
use http::{Extensions, HeaderMap, HeaderValue};
use tokio::time::timeout;

use super::*;

/// Fails `failures` times, then has a token.
#[derive(Debug)]
struct Tokens {
    failures: AtomicU32,
    passes: bool,
    hangs: bool,
}

impl CredentialsProvider for Tokens {
    async fn headers(
        &self,
        _: Extensions,
    ) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        let left = |left: u32| left.checked_sub(1);
        if self
            .failures
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
            .is_ok()
        {
            return Err(CredentialsError::from_msg(self.passes, "no token"));
        }
        let mut headers = HeaderMap::new();
        let token = HeaderValue::from_static("Bearer token-of-the-test");
        headers.insert(http::header::AUTHORIZATION, token);
        Ok(CacheableResource::New {
            entity_tag: EntityTag::new(),
            data: headers,
        })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}

fn tokens(failures: u32, passes: bool, hangs: bool) -> Credentials {
    Credentials::from(Tokens {
        failures: AtomicU32::new(failures),
        passes,
        hangs,
    })
}

#[tokio::test]
async fn the_token_goes_with_the_call_and_a_passing_failure_to_get_one_passes() {
    let server = FakeKms::start().await.unwrap();
    let key = CloudKmsKey::with_credentials(settings(&server), tokens(2, true, false));
    signed(&key).await.unwrap();
    assert_eq!(
        server.authorization().as_deref(),
        Some("Bearer token-of-the-test")
    );
    assert_eq!(server.calls(Method::Sign), 1, "nothing is sent without one");
}

#[tokio::test]
async fn credentials_that_are_no_good_are_an_error_at_once() {
    let server = FakeKms::start().await.unwrap();
    let key = CloudKmsKey::with_credentials(settings(&server), tokens(1, false, false));
    let error = signed(&key).await.err();
    assert!(
        matches!(&error, Some(MacError::Unavailable { retryable: false, cause }) if cause.contains("credentials")),
        "{error:?}"
    );
    assert_eq!(server.calls(Method::Sign), 0);
    assert!(!key.healthy());
}

#[tokio::test]
async fn a_token_that_never_comes_is_within_the_deadline() {
    let server = FakeKms::start().await.unwrap();
    let key = CloudKmsKey::with_credentials(
        Settings {
            timeout: Duration::from_millis(200),
            ..settings(&server)
        },
        tokens(0, true, true),
    );
    let error = timeout(PATIENCE, signed(&key)).await.unwrap().err();
    assert!(matches!(
        error,
        Some(MacError::Unavailable {
            retryable: true,
            ..
        })
    ));
}
