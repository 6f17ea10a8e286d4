//! What is tried again and what is not; deadlines; the breaker.

use std::time::Instant;

use tokio::time::timeout;

use super::*;

/// One MacSign or MacVerify by the same name, so that a table can have both.
async fn ask(
    key: &CloudKmsKey,
    method: Method,
    key_ref: &str,
    hash: &SecretHash,
) -> Result<(), MacError> {
    match method {
        Method::Sign => signed(key).await.map(drop),
        _ => verifies(key, key_ref, SECRET, hash)
            .await
            .map(|right| assert!(right)),
    }
}

const fn status(http: u16, code: &'static str) -> Failure {
    Failure::Status {
        http,
        code,
        retry_after: None,
    }
}

#[tokio::test]
async fn an_answer_that_fails_a_check_is_asked_for_again_and_then_an_error() {
    let server = FakeKms::start().await.unwrap();
    let key = CloudKmsKey::new(settings(&server));
    let (hash, key_ref) = signed(&key).await.unwrap();
    for (method, failure, check) in [
        (Method::Sign, Failure::Unverified, "did not check the data"),
        (Method::Sign, Failure::CorruptMac, "its checksum differ"),
        (Method::Sign, Failure::NoChecksum, "its checksum differ"),
        (Method::Sign, Failure::OtherName, "another key version"),
        (
            Method::Verify,
            Failure::Unverified,
            "did not check the data",
        ),
        (
            Method::Verify,
            Failure::MacUnverified,
            "did not check the MAC",
        ),
        (Method::Verify, Failure::Contradiction, "contradicts itself"),
        (Method::Verify, Failure::OtherName, "another key version"),
    ] {
        let before = server.calls(method);
        server.fail_next([failure.clone(), failure.clone()]);
        ask(&key, method, &key_ref, &hash).await.unwrap();
        assert_eq!(
            server.calls(method) - before,
            3,
            "{failure:?}: the third one counts"
        );

        server.fail(failure.clone());
        let error = ask(&key, method, &key_ref, &hash).await.err();
        let Some(MacError::Integrity(what)) = error else {
            panic!("{failure:?}: {error:?}")
        };
        assert!(what.contains(check), "{failure:?}: {what}");
        assert_eq!(server.calls(method) - before, 6, "{failure:?}: bounded");
        server.heal();
    }
    // A wrong secret may not be turned into a right one either.
    server.fail(Failure::Contradiction);
    assert!(matches!(
        verifies(&key, &key_ref, "guess", &hash).await,
        Err(MacError::Integrity(_))
    ));
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    let server = FakeKms::start().await.unwrap();
    let key = CloudKmsKey::new(settings(&server));
    let (hash, key_ref) = signed(&key).await.unwrap();
    for failure in [
        status(429, "RESOURCE_EXHAUSTED"),
        status(503, "UNAVAILABLE"),
        status(500, "INTERNAL"),
        status(504, "DEADLINE_EXCEEDED"),
        Failure::Proxy(502),
        Failure::Reset,
        Failure::Garbage,
        Failure::Truncated,
    ] {
        for method in [Method::Sign, Method::Verify] {
            let before = server.calls(method);
            server.fail_next([failure.clone(), failure.clone()]);
            ask(&key, method, &key_ref, &hash).await.unwrap();
            assert_eq!(server.calls(method) - before, 3, "{failure:?}");
            server.fail(failure.clone());
            let error = ask(&key, method, &key_ref, &hash).await.unwrap_err();
            assert!(
                matches!(
                    error,
                    MacError::Unavailable {
                        retryable: true,
                        ..
                    }
                ),
                "{failure:?}: {error:?}"
            );
            assert_eq!(server.calls(method) - before, 6, "{failure:?}: bounded");
            server.heal();
        }
    }
    let endpoint = server.endpoint();
    drop(server);
    let nobody = CloudKmsKey::new(Settings {
        endpoint: Some(endpoint.parse().unwrap()),
        ..settings(&FakeKms::start().await.unwrap())
    });
    // The listening task ends soon after its server was dropped.
    let refused = timeout(PATIENCE, async {
        loop {
            if let Err(error) = signed(&nobody).await {
                return error;
            }
        }
    });
    assert!(matches!(
        refused.await.unwrap(),
        MacError::Unavailable {
            retryable: true,
            ..
        }
    ));
}

#[tokio::test]
async fn what_does_not_pass_is_asked_once() {
    let server = FakeKms::start().await.unwrap();
    let key = CloudKmsKey::new(settings(&server));
    let (hash, key_ref) = signed(&key).await.unwrap();
    for failure in [
        status(400, "INVALID_ARGUMENT"),
        status(400, "FAILED_PRECONDITION"),
        status(401, "UNAUTHENTICATED"),
        status(403, "PERMISSION_DENIED"),
        status(404, "NOT_FOUND"),
        Failure::Proxy(403),
        Failure::Proxy(404),
    ] {
        for method in [Method::Sign, Method::Verify] {
            let before = server.calls(method);
            server.fail(failure.clone());
            let error = ask(&key, method, &key_ref, &hash).await.unwrap_err();
            assert!(
                matches!(
                    error,
                    MacError::Unavailable {
                        retryable: false,
                        ..
                    } | MacError::Denied { .. }
                ),
                "{failure:?}: {error:?}"
            );
            assert_eq!(server.calls(method) - before, 1, "{failure:?}");
            server.heal();
        }
    }
}

#[tokio::test]
async fn the_service_says_how_long_to_wait() {
    let server = FakeKms::start().await.unwrap();
    let key = CloudKmsKey::new(settings(&server));
    let wait = Duration::from_millis(300);
    server.fail_next([Failure::Status {
        http: 429,
        code: "RESOURCE_EXHAUSTED",
        retry_after: Some(wait),
    }]);
    let begun = Instant::now();
    signed(&key).await.unwrap();
    assert!(begun.elapsed() >= wait, "{:?}", begun.elapsed());

    // Longer than anybody waits, or than a clock counts: the answer comes now, and nobody is asked again.
    for wait in [PATIENCE * 2, Duration::from_secs(u64::MAX)] {
        let before = server.calls(Method::Sign);
        server.fail(Failure::Status {
            http: 429,
            code: "RESOURCE_EXHAUSTED",
            retry_after: Some(wait),
        });
        let error = timeout(PATIENCE, signed(&key)).await.unwrap().err();
        assert!(matches!(
            error,
            Some(MacError::Unavailable {
                retryable: true,
                ..
            })
        ));
        assert_eq!(server.calls(Method::Sign) - before, 1, "{wait:?}");
    }
}

#[tokio::test]
async fn an_attempt_that_hangs_is_given_up_and_so_is_the_whole() {
    let server = FakeKms::start().await.unwrap();
    let short = Duration::from_secs(1);
    let key = CloudKmsKey::new(Settings {
        attempt_timeout: short,
        ..settings(&server)
    });
    signed(&key).await.unwrap();
    server.fail_next([Failure::Hang]);
    let begun = Instant::now();
    signed(&key).await.unwrap();
    assert!(begun.elapsed() >= short, "it waited for the first one");
    // A machine that is slower than that itself gives up more of them.
    assert!(server.calls(Method::Sign) >= 3);

    // The deadline over all is shorter than the attempts together, and than one of them.
    for (attempt_timeout, attempts) in [(short, 1_000), (PATIENCE, 3)] {
        let key = CloudKmsKey::new(Settings {
            attempt_timeout,
            timeout: short * 3,
            attempts,
            ..settings(&server)
        });
        server.fail(Failure::Hang);
        let error = timeout(PATIENCE, signed(&key)).await.unwrap().err();
        assert!(
            matches!(
                error,
                Some(MacError::Unavailable {
                    retryable: true,
                    ..
                })
            ),
            "{error:?}"
        );
        server.heal();
    }

    let key = CloudKmsKey::new(settings(&server));
    server.fail_next([Failure::Slow(short)]);
    let before = server.calls(Method::Sign);
    signed(&key).await.unwrap();
    assert_eq!(server.calls(Method::Sign) - before, 1, "slow is not wrong");
}

/// Three failures open it; it stays open for so long that only the test's own clock matters.
fn nervous(server: &FakeKms, pause: Duration) -> Settings {
    Settings {
        attempts: 1,
        breaker: BreakerSettings {
            failures: 3,
            pause,
            longest_pause: pause,
        },
        ..settings(server)
    }
}

#[tokio::test]
async fn a_service_that_keeps_failing_is_left_alone() {
    let server = FakeKms::start().await.unwrap();
    let key = CloudKmsKey::new(nervous(&server, PATIENCE * 60));
    server.fail(status(503, "UNAVAILABLE"));
    for _ in 0..50 {
        let error = signed(&key).await.err();
        assert!(matches!(
            error,
            Some(MacError::Unavailable {
                retryable: true,
                ..
            })
        ));
    }
    assert_eq!(server.calls(Method::Sign), 3);
    assert!(!key.healthy());
}

#[tokio::test]
async fn refusals_do_not_open_the_breaker() {
    let server = FakeKms::start().await.unwrap();
    let key = CloudKmsKey::new(nervous(&server, PATIENCE * 60));
    server.deny("cloudkms.cryptoKeyVersions.useToSign");
    for _ in 0..10 {
        assert!(signed(&key).await.is_err());
    }
    assert_eq!(server.calls(Method::Sign), 10, "the service is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_caller_finds_out_whether_it_is_back() {
    let server = FakeKms::start().await.unwrap();
    let pause = Duration::from_millis(100);
    let key = Arc::new(CloudKmsKey::new(nervous(&server, pause)));
    server.fail(Failure::Reset);
    while key.healthy() {
        assert!(signed(key.as_ref()).await.is_err());
    }
    // The probe is kept waiting, and whoever comes meanwhile is turned away at once.
    server.heal();
    server.fail_next([Failure::Slow(Duration::from_secs(3))]);
    let before = server.calls(Method::Sign);
    let probing = eventually(async || {
        let key = Arc::clone(&key);
        let task = tokio::spawn(async move { signed(key.as_ref()).await });
        let at_the_service = || server.calls(Method::Sign) > before;
        // Turned away, as long as the breaker is open, or let through to the service.
        eventually(async || (task.is_finished() || at_the_service()).then_some(())).await;
        at_the_service().then_some(task)
    })
    .await;
    for _ in 0..20 {
        assert!(signed(key.as_ref()).await.is_err());
    }
    assert_eq!(server.calls(Method::Sign) - before, 1, "one at a time");
    probing.await.unwrap().unwrap();
    assert!(key.healthy());
    signed(key.as_ref()).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_goes_away_holds_nobody_up() {
    let server = FakeKms::start().await.unwrap();
    let key = CloudKmsKey::new(nervous(&server, Duration::from_millis(1)));
    server.fail(status(503, "UNAVAILABLE"));
    while key.healthy() {
        assert!(signed(&key).await.is_err());
    }
    server.heal();
    server.fail_next([Failure::Hang]);
    // The probe hangs, and its caller gives up.
    let before = server.calls(Method::Sign);
    eventually(async || {
        let _gone = timeout(Duration::from_millis(500), signed(&key)).await;
        (server.calls(Method::Sign) > before).then_some(())
    })
    .await;
    eventually(async || signed(&key).await.ok()).await;
    assert!(key.healthy());
}

/// Polls until there is something, or panics.
async fn eventually<T>(mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    timeout(PATIENCE, async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap()
}

#[test]
fn every_attempt_is_counted_by_its_class_and_timed() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let shown = metrics::with_local_recorder(&recorder, || {
        keyturn_store::metrics::describe();
        runtime.block_on(async {
            let server = FakeKms::start().await.unwrap();
            let key = CloudKmsKey::new(Settings {
                breaker: BreakerSettings {
                    failures: 3,
                    pause: PATIENCE,
                    longest_pause: PATIENCE,
                },
                ..settings(&server)
            });
            let (hash, key_ref) = signed(&key).await.unwrap();
            server.fail_next([Failure::CorruptMac, Failure::Garbage]);
            signed(&key).await.unwrap();
            server.fail_next([status(403, "PERMISSION_DENIED")]);
            drop(verifies(&key, &key_ref, SECRET, &hash).await);
            server.fail(status(429, "RESOURCE_EXHAUSTED"));
            drop(verifies(&key, &key_ref, SECRET, &hash).await);
            drop(verifies(&key, &key_ref, SECRET, &hash).await);
        });
        recorder.handle().render()
    });
    for line in [
        "keyturn_kms_calls_total{op=\"sign\",result=\"ok\"} 2\n",
        "keyturn_kms_calls_total{op=\"sign\",result=\"integrity\"} 1\n",
        "keyturn_kms_calls_total{op=\"sign\",result=\"garbled\"} 1\n",
        "keyturn_kms_calls_total{op=\"verify\",result=\"denied\"} 1\n",
        "keyturn_kms_calls_total{op=\"verify\",result=\"throttled\"} 3\n",
        "keyturn_kms_calls_total{op=\"verify\",result=\"breaker_open\"} 1\n",
        "keyturn_kms_seconds_count{op=\"sign\"} 4\n",
        "keyturn_kms_seconds_count{op=\"verify\"} 4\n",
        "keyturn_kms_breaker 2\n",
        "# HELP keyturn_kms_breaker ",
        "# HELP keyturn_kms_calls_total ",
        "# HELP keyturn_kms_seconds ",
    ] {
        assert!(shown.contains(line), "{line} is not in\n{shown}");
    }
    for value in ["test", "pepper", "projects", "ext-totp-svc"] {
        assert!(!shown.contains(value), "{value} is in\n{shown}");
    }
}
